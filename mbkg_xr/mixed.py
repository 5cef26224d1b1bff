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
from .tables import lots, zeros
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
    prior = np.array([options.prior, *[options.colour] * options.order]) ** 2
    means = Hierarchy.of(
        # Slitlet numbers begin anew in each MSA configuration; the shutters tell them apart.
        ranks(slits, ("program", "visit", "slitlet", "quadrant", "shutter_row", "shutter_column")),
        ranks(slits, ("exposure", "detector")),
        quadratic(slits) if options.smooth else np.zeros((slits.sizes["slit"], 0)),
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
    light = zeros((len(held), phase.size))
    lit = np.flatnonzero(held.any(axis=1))
    for rows in (lit[some] for some in lots(lit.size)):
        within = held[rows][:, :, None]
        light[rows] = source_light(
            (sums.weight[rows] * within).sum(axis=1),
            (sums.excess[rows] * within).sum(axis=1),
            phase,
        )
    basis = legendre.legvander(phase, options.order).astype(np.float64)
    if options.pedestal and shape.any():
        basis = np.column_stack([basis, shape])
    return Shutters(
        sums.weight,
        sums.excess,
        sums.far,
        _most_far(sums),
        sky_shutters(slits),
        np.nan_to_num(away).round().astype(np.int64),
        light,
        basis,
    )


def _most_far(sums: ShutterSums) -> NDArray[np.bool_]:
    """``(slit,)``: nothing but outliers to the present master, which may be the one that is wrong:
    of these what was kept from the sums counts, too.
    """
    out = np.zeros(len(sums.weight), dtype=np.bool_)
    for lot in lots(out.size):
        far = sums.far[lot, 0].sum(axis=(1, 2))
        out[lot] = far > _MOST_FAR * (far + sums.weight[lot].sum(axis=(1, 2)))
    return out


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


def _excess(shutters: Shutters, means: Hierarchy, own: Own, rows: NDArray[np.int64]) -> Array:
    """``(row, z)``: level of each shutter over what its slit's others say, in its errors; of some
    rows, which rise.
    """
    mean, tau = means.mean(), means.tau[1]
    out = []
    for lot in lots(len(mean)):
        some = rows[slice(*np.searchsorted(rows, [lot.start, lot.stop]))]
        if some.size:
            which = lot if some.size == lot.stop - lot.start else some
            part = shutters.part(which)
            out.append(part.excess_over(*_without_each(part, own, mean[which], None, tau), own))
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
    # Of brighter ones the whole slit is left out.
    most = min(veto.limit, _BRIGHT) ** 2 * means.tau[:2, 0].sum()
    total = 0.0
    for lot, part in shutters.lots():
        surplus = np.square(part.surplus(scale[lot], own))
        total += surplus[several[lot] & ~part.keep & (surplus < most)].sum()
    variance = total / max(int(several.sum()), 1)
    return np.where(told.sum(axis=1) == 1, variance, 0.0)


def _found(shutters: Shutters, means: Hierarchy, own: Own, n: int, veto: Veto) -> SlitScales:
    """The first `n` coefficients are a scale's, the last, if there is one more, a pedestal."""
    mean, tau, size = means.mean(), means.tau[1], len(shutters.keep)
    scale, weights = np.empty((2, size, tau.size))
    covariance, error = zeros((size, n, n)), zeros((size, N_SHUTTERS, n, n))
    slope, without = (zeros((size, N_SHUTTERS, n)) for _ in range(2))
    level, of_level, stray, excess = np.empty((4, size, N_SHUTTERS))
    rest = np.zeros(2)
    for lot, part in shutters.lots():
        data, right = part.together(own)
        of_mean, keep = means.covariance(lot), part.keep
        scale[lot], one = _posterior(data, right, mean[lot], of_mean, tau)
        weights[lot] = np.einsum("skk->sk", data)
        others, doubt = _without_each(part, own, mean[lot], of_mean, tau)
        shares, inverse, change = part.stray_and_level(scale[lot], own)
        rest += part.rest(others, doubt, own)
        covariance[lot], error[lot] = one[:, :n, :n], doubt[..., :n, :n]
        without[lot] = others[..., :n]
        stray[lot], level[lot] = np.where(keep, np.moveaxis(shares, 2, 0), 0.0)
        of_level[lot] = np.where(keep, inverse[..., 1, 1], own.level)
        slope[lot] = np.where(keep[..., None], change[..., :n], 0.0)
        excess[lot] = part.excess_over(*_without_each(part, own, mean[lot], None, tau), own)
    covariance[:, 0, 0] += _hidden(shutters, means, scale, own, veto)
    # What such a slit holds may be its throughput after all.
    covariance += veto.doubt(n)
    # What all slits have in common is the master's.
    middle = (weights * scale).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-30)
    scale -= middle
    without -= middle[:n]
    return SlitScales(
        scale=scale[:, :n],
        covariance=covariance,
        without=without,
        without_covariance=error,
        level=level,
        level_variance=of_level,
        level_slope=slope,
        used=shutters.keep,
        excess=excess,
        pedestal=scale[:, n:].sum(axis=1),
        spread=np.sqrt(means.tau[:, :n]),
        floor=float(np.sqrt(max(rest[0] / rest[1], 0.0))) if rest[1] > 0 else 0.0,
        own_spread=float(np.sqrt(own.level)),
        leak=own.leak,
        light=shutters.light,
        stray=stray,
        reached=(means, own),
        veto=veto,
    )
