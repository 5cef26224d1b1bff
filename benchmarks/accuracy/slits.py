"""Rows: scales of slits against their bound, and contaminants found."""

from __future__ import annotations

import argparse
from functools import lru_cache

import numpy as np
import xarray as xr
from bound import true_variance
from figures import figure
from numpy.polynomial import legendre
from programmes import BAND, programme

import mbkg_xr as mx
from mbkg_xr.schema import SLIT_IDENTITY
from mbkg_xr.simulate import CLEAN
from mbkg_xr.spans import span_grid

SCATTERED = {k: v for k, v in CLEAN.items() if k not in ("throughput_scatter", "colour_scatter")}


@lru_cache(maxsize=8)
def scale_errors(seed: int, signal_to_noise: float | None) -> tuple[float, float]:
    """Mean squared error of the slits' scales over the band, and the least possible.

    The scale of slit j is a Legendre series of coefficients t_j; its information from the selected
    pixels is J_j = sum m^2 / v P P^T (m the true sky, v the true variance). With t = u + a, u the
    slitlet's and a the slit's own, both normal with the covariances that the very truth of this
    programme has, no estimator's mean squared error is below the mean over slits of the trace of

        K [(diag(J) + S^-1)^-1]_jj,    S = cov(u) x 1 1^T + cov(a) x I,    K = <P P^T> over the band

    (the Bayesian Cramer-Rao bound, van Trees 1968, which is reached for normal noise). It is that
    of an analyst who is told the sky, that there are no pedestals, and the profile: what those cost
    counts against the estimator.
    """
    ds = programme(
        exposures=3,
        slits=20,
        background_slits=20,
        signal_to_noise=signal_to_noise,
        seed=seed,
        **SCATTERED,
    )
    master = mx.fit_master(ds)
    grid = span_grid(ds)
    order = master.sizes["order"]
    basis = legendre.legvander(master["phase"].values, order - 1)
    wave = ds["wavelength"].values
    use = ds["selected"].values & ~ds["outlier"].values & (wave > BAND[0]) & (wave < BAND[1])
    share = ds["true_background"].values / ds["true_sky"].values - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = ds["true_sky"].values ** 2 / true_variance(ds)
    # Slitlets whose spectrum is cut short have no say on some of their coefficients.
    inside = (grid.centres > BAND[0]) & (grid.centres < BAND[1])
    spans = [
        np.unique(grid.pixel_coordinate(w[u]).astype(int)).size
        for w, u in zip(wave, use, strict=True)
    ]
    short = ds["slitlet"].values[np.array(spans) < 0.9 * inside.sum()]
    whole = ~np.isin(ds["slitlet"].values, short)
    ds, use, wave = ds.isel(slit=whole), use[whole], wave[whole]
    share, weight = share[whole], weight[whole]
    n = ds.sizes["slit"]
    information, truth = np.zeros((n, order, order)), np.zeros((n, order))
    for j in range(n):
        pick = use[j]
        p = basis[grid.pixel_coordinate(wave[j][pick]).astype(int)]
        w = weight[j][pick]
        information[j] = p.T @ (w[:, None] * p)
        truth[j] = np.linalg.solve(information[j], p.T @ (w * share[j][pick]))
    truth -= truth.mean(axis=0)
    found = master["scale"].values[whole]
    found = found - found.mean(axis=0)
    kernel = basis[inside].T @ basis[inside] / inside.sum()
    wrong = found - truth
    error = np.einsum("jk,kl,jl->j", wrong, kernel, wrong).mean()
    return float(error), _bound(ds, information, truth, kernel)


def _bound(ds: xr.Dataset, information: np.ndarray, truth: np.ndarray, kernel: np.ndarray) -> float:
    slitlet = ds["slitlet"].values
    numbers = np.unique(slitlet)
    order = truth.shape[1]
    means = np.array([truth[slitlet == c].mean(axis=0) for c in numbers])
    own = truth - means[np.searchsorted(numbers, slitlet)]
    count = (slitlet == numbers[0]).sum()
    of_slit = own.T @ own / (len(truth) - len(numbers))
    of_slitlet = np.cov(means.T) - of_slit / count
    values, vectors = np.linalg.eigh(of_slitlet)
    of_slitlet = vectors @ np.diag(np.maximum(values, 1e-9)) @ vectors.T
    total = []
    for c in numbers:
        rows = np.flatnonzero(slitlet == c)
        prior = np.kron(np.ones((rows.size, rows.size)), of_slitlet)
        prior += np.kron(np.eye(rows.size), of_slit)
        precision = np.linalg.inv(prior)
        for i, row in enumerate(rows):
            at = slice(order * i, order * (i + 1))
            precision[at, at] += information[row]
        covariance = np.linalg.inv(precision)
        for i in range(rows.size):
            at = slice(order * i, order * (i + 1))
            total.append(np.trace(kernel @ covariance[at, at]))
    return float(np.mean(total))


def _scales(options: argparse.Namespace, signal_to_noise: float | None) -> tuple[float, float]:
    pairs = np.array([scale_errors(s, signal_to_noise) for s in range(options.seeds)])
    return tuple(np.sqrt(pairs.mean(axis=0)))


def _scale_rows(label: str, signal_to_noise: float | None) -> None:
    @figure(f"scales{label}, over their own bound", high=1.2)
    def over_bound(options):
        error, bound = _scales(options, signal_to_noise)
        return error / bound

    @figure(f"   scales{label}: rms error", unit="%")
    def rms(options):
        return 100 * _scales(options, signal_to_noise)[0]


_scale_rows("", None)
_scale_rows(", S/N 3", 3)


# ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def accused(seeds: int, realistic: bool) -> dict[str, float]:
    """Shares of slits with a second source, 5 % of the sky in one shutter, that are found, and of
    the others that are accused, at S/N 3 a pixel.

    Alone: sky slits that are otherwise alike. Realistic: 3 % scatter, 2 % colour, leaks, bars; and
    slits with sources, where what is brightest at the edge next to the source counts as its leak.
    """
    options = {} if realistic else {k: v for k, v in CLEAN.items() if "contam" not in k}
    truth, found, left_out, sky = [], [], [], []
    for seed in range(seeds):
        ds = programme(
            exposures=3,
            slits=40,
            background_slits=12 if realistic else 40,
            signal_to_noise=3,
            contaminated_fraction=0.2,
            contaminant_scatter=0.0,
            seed=seed,
            **options,
        )
        table = mx.find_contaminants(ds, mx.fit_master(ds))
        keys = list(zip(*(ds[c].values.tolist() for c in SLIT_IDENTITY), strict=True))
        for verdicts, into in ((["contaminated"], found), (["contaminated", "leak"], left_out)):
            rows = table.loc[table["verdict"].isin(verdicts), list(SLIT_IDENTITY)]
            named = set(rows.itertuples(index=False, name=None))
            into.append(np.array([key in named for key in keys]))
        truth.append(ds["contaminated"].values)
        sky.append(ds["is_background"].values)
    t, f, out, of_sky = (np.concatenate(part) for part in (truth, found, left_out, sky))
    return {
        "found": float(f[t].mean()),
        "sky": float(f[t & of_sky].mean()),
        "either": float(out[t].mean()),
        "false": float(f[~t].mean()),
    }


@figure("contaminants of 5 % of the sky found", unit="%", low=90)
def contaminants(options):
    return 100 * accused(options.seeds, False)["found"]


@figure("   slits accused falsely", unit="%", high=2)
def false_alarms(options):
    return 100 * accused(options.seeds, False)["false"]


@figure("contaminants of 5 %, realistic programme: found, sky slits", unit="%", low=90)
def realistic_sky(options):
    return 100 * accused(options.seeds, True)["sky"]


@figure("   all slits, found or taken for a leak", unit="%")
def realistic_either(options):
    return 100 * accused(options.seeds, True)["either"]


@figure("   realistic programme: slits accused falsely", unit="%", high=2)
def realistic_false(options):
    return 100 * accused(options.seeds, True)["false"]
