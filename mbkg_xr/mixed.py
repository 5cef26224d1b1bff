"""The mixed model of slits: scales, colours, pedestals, drift, and which shutters are not sky.

Works on the sums of `mbkg_xr.shutters`, without pixels. In a shutter of slit j that holds only sky,
the excess over the master at wavelength bin b is

    e_b = a_j . P_b + p_(exposure, detector) q_b / S_b + noise,

P Legendre polynomials, q the shape of a pedestal; each shutter adds a level of its own, and beside
a source comes a share of that source's light. The coefficients, pedestals among them, have a
hierarchy of normal priors (`mbkg_xr.hierarchy`), whose variances the data decide, and what a
shutter holds of its own is integrated out (`mbkg_xr.leaks`). Slits that are wrong as a whole are
left out first (`mbkg_xr.vetoes`), then shutters that exceed what the others of their slit allow,
the worst first.

What is degenerate is fixed by convention: the mean of all scales belongs to the master (weighted by
what the slits tell), and so do the mean of the drifts and that of the pedestals; the profile is 1
at shutter centres.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .hierarchy import Hierarchy
from .leaks import EXPECTED_LEAK, EXPECTED_LEVEL, Own, Shutters
from .populations import quadratic, ranks, source_light
from .scales import Scales, SlitScales
from .shutters import ShutterSums, sky_shutters
from .slit_algebra import inverses, solve_each
from .terms import FIRST_SHUTTER, N_SHUTTERS
from .vetoes import Veto, find_vetoes

__all__ = ["solve_scales"]

Array = NDArray[np.float64]

_ROUNDS, _FURTHER = 40, 16  # the first time, and from where a former search ended
_MOST_FAR = 0.3  # of a slit's information: no outliers, but a slit that is far off
_PEDESTAL = 0.01  # of the sky, standard deviation expected of pedestals
_BRIGHT = 5.0  # spreads of the scales, of the brightest second source not told from throughput
_VETO_ROUNDS = (2, 5, 9, 14, 20)


def solve_scales(
    sums: ShutterSums,
    slits: xr.Dataset,
    phase: Array,
    shape: Array,
    options: Scales,
    before: SlitScales | None = None,
) -> SlitScales:
    """Find scales, pedestals and the shutters that tell of sky.

    Parameters
    ----------
    sums
        From `mbkg_xr.shutters.look`.
    slits
        The slit coordinates.
    phase
        ``(bin,)``, -1 to 1 over the fitted range.
    shape
        ``(bin,)``, what a unit of pedestal is of the master; zero where it is not known.
    options
        How slits may differ.
    before
        What was found for the same slits from former sums, to go on from.
    """
    shutters = _shutters(sums, slits, phase, shape, options)
    n = options.order + 1
    place = quadratic(slits) if options.smooth else np.zeros((slits.sizes["slit"], 0))
    prior = np.array([options.prior, *[options.colour] * options.order]) ** 2
    means = Hierarchy.of(
        # Slitlet numbers begin anew in each MSA configuration; the shutters tell them apart.
        ranks(slits, ("program", "visit", "slitlet", "quadrant", "shutter_row", "shutter_column")),
        ranks(slits, ("exposure", "detector")),
        place,
        prior,
        np.full(shutters.basis.shape[1] - n, _PEDESTAL**2),
    )
    own, rounds = Own(EXPECTED_LEAK, EXPECTED_LEVEL**2), _ROUNDS
    if before is not None and before.reached[0].common.shape == means.common.shape:
        (means, own), rounds = before.reached, _FURTHER
    limit = np.inf if options.slit_veto is None else options.slit_veto
    veto = find_vetoes(sums, shutters, own, means.slitlet, means.exposure, prior, limit)
    sky = shutters.told & ~veto.slit[:, None]
    shutters.keep = sky.copy()
    for number in range(rounds):
        if number in _VETO_ROUNDS:
            if number == _VETO_ROUNDS[0]:
                shutters.keep = sky.copy()
            _veto(shutters, means, own, options.veto)
        data, right = shutters.together(own)
        means = means.step(data, right)
        scale = np.empty_like(right)
        solve_each(data, right, means.mean(), means.tau[1], scale)
        own = shutters.found(scale, own)
    return _found(shutters, means, own, n, veto)


def _shutters(
    sums: ShutterSums, slits: xr.Dataset, phase: Array, shape: Array, options: Scales
) -> Shutters:
    background = slits["is_background"].values
    source = np.where(background, np.nan, slits["source_shutter"].values)
    away = np.abs(FIRST_SHUTTER + np.arange(N_SHUTTERS) - source[:, None])
    held = ~np.isnan(away) & (away <= 0.5)
    light = source_light(
        (sums.weight * held[:, :, None]).sum(axis=1),
        (sums.excess * held[:, :, None]).sum(axis=1),
        phase,
    )
    sky = sky_shutters(slits)
    weight, excess = _within(sums)
    basis = legendre.legvander(phase, options.order).astype(np.float64)
    if options.pedestal and shape.any():
        basis = np.column_stack([basis, shape])
    return Shutters(
        weight,
        excess,
        sky,
        np.nan_to_num(away).round().astype(np.int64),
        light,
        basis,
        sky & (weight.sum(axis=2) > 0),
    )


def _within(sums: ShutterSums) -> tuple[Array, Array]:
    """Weight and excess; of slits that are nothing but outliers to the present master, which may be
    the one that is wrong, with what was kept from them.
    """
    far = sums.far[:, 0].sum(axis=(1, 2))
    most = np.flatnonzero(far > _MOST_FAR * (far + sums.weight.sum(axis=(1, 2))))
    if not most.size:
        return sums.weight, sums.excess
    weight, excess = sums.weight.copy(), sums.excess.copy()
    weight[most] += sums.far[most, 0]
    excess[most] += sums.far[most, 1]
    return weight, excess


def _veto(shutters: Shutters, means: Hierarchy, own: Own, limit: float) -> None:
    """Leave out shutters that exceed what the others of their slit allow, the worst first."""
    rows = np.arange(len(shutters.keep))
    for _ in range(N_SHUTTERS):
        # A slit of which no shutter went is what it was.
        excess = np.where(shutters.keep[rows], _excess(shutters, means, own, rows), -np.inf)
        worst = np.argmax(excess, axis=1)
        beyond = excess[np.arange(worst.size), worst] > limit
        if not beyond.any():
            break
        rows = rows[beyond]
        shutters.keep[rows, worst[beyond]] = False


def _excess(
    shutters: Shutters, means: Hierarchy, own: Own, rows: NDArray[np.int64] | None = None
) -> Array:
    """``(s, z)``: level of each shutter over what its slit's others say, in its errors."""
    mean, tau = means.mean(), means.tau[1]
    if rows is not None and rows.size < len(mean):
        shutters, mean = shutters.part(rows), mean[rows]
    out = [
        part.excess_over(*_without_each(part, own, mean[lot], None, tau), own)
        for lot, part in shutters.lots()
    ]
    return np.concatenate(out)


def _without_each(
    shutters: Shutters, own: Own, mean: Array, of_mean: Array | None, tau: Array
) -> tuple[Array, Array]:
    """``(s, z, k)``: the scale of each slit from all of its shutters but one; its covariance."""
    data, right = shutters.parts(own)
    return _posterior(
        data.sum(axis=1)[:, None] - data,
        right.sum(axis=1)[:, None] - right,
        mean[:, None],
        None if of_mean is None else of_mean[:, None],
        tau,
    )


def _posterior(
    data: Array, right: Array, mean: Array, of_mean: Array | None, tau: Array
) -> tuple[NDArray, NDArray]:
    own = inverses(data + np.eye(tau.size) / tau)
    scale = (own @ (right + mean / tau)[..., None])[..., 0]
    if of_mean is None:
        return scale, own
    pull = own / tau
    return scale, own + pull @ of_mean @ np.swapaxes(pull, -1, -2)


def _hidden(shutters: Shutters, means: Hierarchy, scale: Array, own: Own, veto: Veto) -> Array:
    """``(slit,)``: variance by second sources in slits of one sky shutter, which has no other that
    would show them: as frequent, and as bright, as in the shutters of other slits.
    """
    told = shutters.told & ~veto.slit[:, None]
    several = told & (told.sum(axis=1) > 1)[:, None]
    surplus = np.square(shutters.surplus(scale, own))
    # Of brighter ones the whole slit is left out.
    most = min(veto.limit, _BRIGHT) ** 2 * means.tau[:2, 0].sum()
    found = several & ~shutters.keep & (surplus < most)
    variance = surplus[found].sum() / max(int(several.sum()), 1)
    return np.where(told.sum(axis=1) == 1, variance, 0.0)


def _found(shutters: Shutters, means: Hierarchy, own: Own, n: int, veto: Veto) -> SlitScales:
    """The first `n` coefficients are a scale's, the last, if there is one more, a pedestal."""
    data, right = shutters.together(own)
    mean, of_mean, tau = means.mean(), means.covariance(), means.tau[1]
    scale, covariance = _posterior(data, right, mean, of_mean, tau)
    found, rest = [], np.zeros(2)
    for lot, part in shutters.lots():
        without, error = _without_each(part, own, mean[lot], of_mean[lot], tau)
        shares, inverse, slope = part.stray_and_level(scale[lot], own)
        rest += part.rest(without, error, own)
        found.append((without, error[..., :n, :n], shares, inverse[..., 1, 1], slope[..., :n]))
    without, error, shares, of_level, slope = map(np.concatenate, zip(*found, strict=True))
    covariance[:, 0, 0] += _hidden(shutters, means, scale, own, veto)
    # What all slits have in common is the master's.
    weights = np.einsum("skk->sk", data)
    middle = (weights * scale).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-30)
    scale, without = scale - middle, without - middle
    return SlitScales(
        scale=scale[:, :n],
        # What such a slit holds may be its throughput after all.
        covariance=covariance[:, :n, :n] + veto.doubt(n),
        without=without[..., :n],
        without_covariance=error,
        level=np.where(shutters.keep, shares[..., 1], 0.0),
        level_variance=np.where(shutters.keep, of_level, own.level),
        level_slope=np.where(shutters.keep[..., None], slope, 0.0),
        used=shutters.keep,
        excess=_excess(shutters, means, own),
        pedestal=scale[:, n:].sum(axis=1),
        spread=np.sqrt(means.tau[:, :n]),
        floor=float(np.sqrt(max(rest[0] / rest[1], 0.0))) if rest[1] > 0 else 0.0,
        own_spread=float(np.sqrt(own.level)),
        leak=own.leak,
        light=shutters.light,
        stray=np.where(shutters.keep, shares[..., 0], 0.0),
        reached=(means, own),
        veto=veto,
    )
