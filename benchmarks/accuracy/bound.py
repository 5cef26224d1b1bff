"""The least error that is possible: exact weights, and the best spline for the very truth."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.linalg import eigh

import mbkg_xr as mx
from mbkg_xr.models import Problem
from mbkg_xr.models.basis import dense
from mbkg_xr.models.bspline import spline_basis
from mbkg_xr.models.penalised import PenalisedSystem
from mbkg_xr.quality import DEFAULT_EXCLUDE, flag_mask
from mbkg_xr.spans import SpanGrid


def usable(ds: xr.Dataset) -> np.ndarray:
    """All pixels that see only sky: every row of the shutters of sky slits and of empty shutters,
    bars included; not flagged, no outlier.
    """
    bits = flag_mask(ds["quality"], DEFAULT_EXCLUDE, missing="ignore")
    good = ((ds["quality"].values & np.uint32(bits)) == 0) & ~ds["outlier"].values
    good &= np.isfinite(ds["flux"].values) & (ds["error"].values > 0)
    source = np.where(ds["is_background"].values, np.nan, ds["source_shutter"].values)
    last = (ds["n_shutters"].values // 2)[:, None, None]
    first = -((ds["n_shutters"].values - 1) // 2)[:, None, None]
    good &= (ds["yrel"].values >= first - 0.5) & (ds["yrel"].values <= last + 0.5)
    return good & ~(np.abs(ds["yrel"].values - source[:, None, None]) <= 0.5)


def true_variance(ds: xr.Dataset, error_scale: float = 1.2) -> np.ndarray:
    """Variance of each pixel's flux: read noise, and photons of the true light."""
    flux = ds["flux"].values.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        photon = ds["var_poisson"].values / flux
    positive = flux > 0
    # Where the counts are not positive the product says nothing: the usual photon noise there.
    bins = np.nan_to_num(ds["wavelength"].values * 20).astype(int)
    usual = np.zeros(bins.max() + 1)
    for b in np.unique(bins[positive]):
        usual[b] = np.median(photon[positive & (bins == b)])
    photon = np.where(positive, photon, usual[bins])
    signal = np.maximum(ds["true_background"].values, 0)
    return error_scale**2 * (ds["var_rnoise"].values + photon * signal)


def exact_problem(ds: xr.Dataset, mask: np.ndarray, grid: SpanGrid) -> Problem:
    """Moments with true weights, of the noise-free truth: what a perfect analyst would have, who
    also knows how much of the sky's light each pixel gets (less near the bars).
    """
    wave = ds["wavelength"].values[mask].astype(float)
    u = grid.pixel_coordinate(wave)
    n = u.astype(int)
    t = u - n
    y = ds["true_sky"].values[mask].astype(float)
    light = ds["true_background"].values[mask] / y
    w = light**2 / true_variance(ds)[mask]
    moments = np.zeros((1, grid.size, 12))
    columns = [w * t**m for m in range(7)] + [w * y * t**m for m in range(4)] + [w * y * y]
    for m, column in enumerate(columns):
        moments[0, :, m] = np.bincount(n, column, grid.size)
    count = np.bincount(n, minlength=grid.size)[None]
    return Problem(grid, moments, count, np.ones(grid.size))


def oracle_risk(
    problem: Problem,
    sky: np.ndarray,
    weight: np.ndarray,
    *,
    adapted: bool,
    spacings: tuple[int, ...] = mx.BSpline().spacings,
    penalties: tuple[float, ...] = tuple(10.0 ** (k / 4) for k in range(-20, 16)),
) -> float:
    """Least mean squared departure from `sky` (span means), over noise, of any of these splines."""
    best = np.inf
    for spacing in spacings:
        knots, basis = spline_basis(problem.grid, *problem.domain, spacing)
        system = PenalisedSystem.build(problem, basis, knots, spacing=spacing)
        # An analyst who knows the sky knows how rough it is where: the profile of the noise-free
        # data, whose variance is known too.
        profile = system.adapted_penalty(dispersion=1.0) if adapted else 1.0
        fisher, right = dense(system.bands[0]), system.rhs[0]
        fisher[np.diag_indices_from(fisher)] += 1e-9 * np.median(fisher.diagonal())
        # One decomposition for all penalties: both matrices become diagonal (Demmler & Reinsch).
        penalised, vectors = eigh(dense(system.penalty_bands(profile)), fisher)
        use = np.flatnonzero(weight[system.averaged.spans] > 0)
        values = np.einsum("m,smw->sw", 0.5 ** np.arange(4), system.averaged.coef[use])
        index = system.averaged.first[use, None] + np.arange(values.shape[1])
        modes = np.einsum("sw,swk->sk", values, vectors[index])
        spans = system.averaged.spans[use]
        for penalty in penalties:
            kept = 1 / (1 + penalty * np.maximum(penalised, 0))
            departure = modes @ (kept * (vectors.T @ right)) - sky[spans]
            variance = (modes**2) @ kept**2
            best = min(best, float(np.mean(weight[spans] * (departure**2 + variance))))
    return best
