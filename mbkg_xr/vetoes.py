"""Whole slits that are not sky: told by how far they lie from all others.

Scales have a prior, by which a slit that is wrong as a whole takes part of what it is wrong by for
its own throughput and leaves the rest to the master. So each slit is looked at by itself first: its
level, its colours and what is left of it bin by bin, from its own shutters alone, against the
middle and the width of all slits. Both are of the densest half of them (the shorth; Rousseeuw &
Leroy 1988, Statistica Neerlandica 42, 103), which slits that are wrong by the same amount move less
than a median and its MAD; the width is never less than the slit's own error and than a floor, and
of few slits it keeps close to what is expected beforehand. A slit that would do but for one of its
shutters is none of these: that shutter is another matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .leaks import Own, Shutters
from .populations import sum_by
from .shutters import ShutterSums
from .slit_algebra import inverses, least_scores, middles_of, shortest_half
from .tables import let_go, zeros

__all__ = ["EVIDENCE", "MOST_VETOED", "Veto", "find_vetoes"]

Array = NDArray[np.float64]

#: What a slit is judged by.
EVIDENCE = ("level", "colour", "bin")
#: No more than this share of the slits is left out, the worst first; none at all where more than
#: half seem wrong, since then nobody knows what is.
MOST_VETOED = 0.4
_LEAST = 3  # slits, of which one may be told from the others
_OF_EXPOSURE = 4  # slits from which on an exposure has a middle of its own
# Least widths, of levels, of colours and of bins: flats differ, and a spline leaves some of lines.
_FLOOR, _FLOOR_OF_COLOUR, _FLOOR_OF_BIN = 0.01, 0.02, 0.02
_EXPECTED_OF_BIN = 0.03
_PRIOR_COUNTS = 4.0  # slitlets that the width expected beforehand is worth
_FREE = 1.0  # a slit by itself may be off by this and more
_LEAST_SKY = 0.05  # of the master, that the middle of all slits comes to at the least
_ROUNDS = 10


@dataclass(frozen=True)
class Veto:
    """What whole slits were judged by.

    Attributes
    ----------
    slit
        ``(slit,)``: not sky.
    departure
        ``(slit, evidence)``: from the middle of all slits, as a fraction of the sky, in `EVIDENCE`.
    score
        The same in standard deviations.
    at
        ``(slit,)``: the bin that departs most.
    judged, suspect
        Numbers of slits that were looked at, and of those beyond the limit, left out or not.
    limit
        In standard deviations.
    """

    slit: NDArray[np.bool_]
    departure: Array
    score: Array
    at: NDArray[np.int64]
    judged: int
    suspect: int
    limit: float

    @property
    def refused(self) -> bool:
        """Whether so many slits seem wrong that not all of them, or none, are left out."""
        return self.suspect > self.slit.sum()

    def doubt(self, order: int) -> Array:
        """``(slit, order, order)``: for slits left out, the square of what they depart by."""
        out = np.zeros((self.slit.size, order, order))
        for k in range(min(order, 2)):
            most = np.minimum(np.abs(self.departure[:, k]), 1.0)
            out[:, k, k] = np.where(self.slit, most**2, 0.0)
        return out


def find_vetoes(
    sums: ShutterSums,
    shutters: Shutters,
    own: Own,
    slitlet: NDArray[np.int64],
    exposure: NDArray[np.int64],
    prior: Array,
    limit: float,
) -> Veto:
    """Judge whole slits.

    Parameters
    ----------
    sums
        From `mbkg_xr.shutters.look`; the pixels that are far off count, too.
    shutters
        The same, made ready.
    own
        What shutters hold of their own.
    slitlet, exposure
        ``(slit,)``, which of each a slit belongs to.
    prior
        ``(order,)``, variances of the coefficients of scales expected beforehand.
    limit
        In standard deviations.
    """
    n = slitlet.size
    told, ratio = _told(sums, shutters)
    seen = np.flatnonzero(told.any(axis=1))
    departure, score = np.zeros((2, n, len(EVIDENCE)))
    at = np.zeros(n, dtype=np.int64)
    vetoed = np.zeros(n, dtype=np.bool_)
    if seen.size < _LEAST:
        return Veto(vetoed, departure, score, at, int(seen.size), 0, limit)
    times = np.maximum(1 + _middle(ratio), _LEAST_SKY)
    del ratio
    members = np.unique(slitlet[seen]).size
    # Visits to a single slitlet are as good as slitlets.
    count = members if members > 1 else seen.size
    choices = int(told.sum(axis=1).max()) + 1

    def every() -> Iterator[Shutters]:
        return (_against(times, sums, some, lot, told[lot]) for lot, some in shutters.lots())

    coefficients, bins = _by_itself(every, own, prior, choices, times.size)
    many = _exposures(exposure[seen])
    value, variance, expected = coefficients
    floor = np.where(np.arange(prior.size) > 0, _FLOOR_OF_COLOUR, _FLOOR)
    of_coefficients = [
        _against_all(value[:, :, k], variance[:, :, k], many, expected[k], floor[k], count, limit)
        for k in range(prior.size)
    ]
    departure[seen, 0], score[seen, 0] = of_coefficients[0]
    if prior.size > 1:
        departure[seen, 1], score[seen, 1], _ = _worst(of_coefficients[1:])
    departure[seen, 2], score[seen, 2], at[seen] = _worst(
        _against_all(left, noise, many, _EXPECTED_OF_BIN**2, _FLOOR_OF_BIN, count, limit)
        for left, noise in zip(*bins, strict=True)
    )
    vetoed[seen] = (score[seen] > limit).any(axis=1)
    vetoed = vetoed | _most_visits(vetoed, np.asarray(told.any(axis=1)), slitlet)
    suspect = int(vetoed.sum())
    if 2 * suspect > seen.size:
        vetoed[:] = False
    elif suspect > MOST_VETOED * seen.size:
        order = np.argsort(np.where(vetoed, score.max(axis=1), 0.0), kind="stable")
        vetoed[order[: -int(MOST_VETOED * seen.size)]] = False
    return Veto(vetoed, departure, score, at, int(seen.size), suspect, limit)


def _told(sums: ShutterSums, shutters: Shutters) -> tuple[NDArray[np.bool_], Array]:
    """``(slit, shutter)``: sky with pixels, outliers or not; and ``(bin, slit)``: what these
    shutters hold over the master, NaN where there are no pixels.
    """
    told = np.zeros_like(shutters.sky)
    ratio = zeros((sums.weight.shape[2], len(told)))
    for lot, some in shutters.lots():
        weight, excess = _with_far(sums, lot)
        told[lot] = some.sky & (weight.sum(axis=2) > 0)
        w, e = ((part * told[lot][:, :, None]).sum(axis=1) for part in (weight, excess))
        ratio[:, lot] = np.where(w > 0, e / np.where(w > 0, w, 1.0), np.nan).T
    return told, ratio


def _with_far(sums: ShutterSums, lot: slice) -> tuple[Array, Array]:
    far = sums.far[lot]
    return sums.weight[lot] + far[:, 0], sums.excess[lot] + far[:, 1]


def _middle(ratio: Array) -> Array:
    """``(bin,)``: what the middle of all slits holds over the master."""
    out = np.zeros(len(ratio))
    for b, values in enumerate(ratio):
        known = values[~np.isnan(values)]
        if known.size >= _LEAST:
            out[b] = _shorth(known)[0]
    return out


def _against(
    times: Array, sums: ShutterSums, some: Shutters, lot: slice, told: NDArray[np.bool_]
) -> Shutters:
    """Those of some slits that say anything, with sums against the middle of all slits in each
    bin, in place of those against the master, which slits that are no sky may have spoilt.
    """
    # Of m (1 + c): sum m^2 (1 + c)^2 / v, and sum m (1 + c) (y - m (1 + c)) / v.
    weight, excess = _with_far(sums, lot)
    excess = (excess - (times - 1) * weight) * times
    none = np.zeros_like(some.most)
    some = replace(some, weight=weight * times**2, excess=excess, most=none)
    some.keep = told
    return some.part(np.flatnonzero(told.any(axis=1)))


def _by_itself(
    every: Callable[[], Iterator[Shutters]], own: Own, prior: Array, choices: int, n_bins: int
) -> tuple[tuple[Array, Array, Array], tuple[NDArray, NDArray]]:
    """What slits say by themselves, of all their shutters and of all but each one.

    ``(slit, choice, order)`` coefficients, their variances, and those expected beforehand, of
    polynomials that are orthogonal over what the slits tell: the first is the mean level. And
    ``(bin, slit, choice)``, what is left of the bins, and its variance. Of slits that say anything.
    """
    n = prior.size
    ridge = np.eye(n) / _FREE**2
    whole = np.concatenate([some.parts(own)[0][..., :n, :n].sum(axis=1) for some in every()])
    # Each slit counts alike. Of gratings they see different parts of the range: medians, number by
    # number, would be no information at all.
    usual = np.mean(whole / whole[:, :1, :1], axis=0) + np.eye(n) * 1e-6
    usual *= np.median(whole[:, 0, 0])
    turn = np.linalg.cholesky(usual + ridge).T
    turn /= turn.diagonal()[:, None]
    value, variance = np.empty((2, len(whole), choices, n))
    left, noise = (zeros((n_bins, len(whole), choices), np.float32) for _ in range(2))
    at = 0
    for some in every():
        here = slice(at, at + len(some.keep))
        data, right, *of_bins = _of_choices(some, own, n, choices)
        left[:, here], noise[:, here] = (np.moveaxis(values, 2, 0) for values in of_bins)
        covariance = inverses(data + ridge)
        value[here] = (covariance @ right[..., None])[..., 0] @ turn.T
        variance[here] = np.square(turn @ np.linalg.cholesky(covariance)).sum(axis=3)
        # A slit that sees part of the range tells its level there, colours as they may be.
        total = np.maximum(data[..., 0, 0], 1e-30)
        shift = data[..., 0, 1:] / total[..., None] - usual[0, 1:] / usual[0, 0]
        value[here, :, 0] = right[..., 0] / total
        variance[here, :, 0] = 1 / total + np.square(shift) @ prior[1:]
        at = here.stop
    return (value, variance, np.square(turn) @ prior), (left, noise)


def _of_choices(some: Shutters, own: Own, n: int, choices: int) -> tuple[NDArray, ...]:
    """Information on `n` coefficients and its right-hand side, what is left of the bins and its
    variance (single precision is enough for these), for each choice of shutters.
    """
    choice = _choices(some.keep, choices)
    slits, shutters = some.keep.shape
    data, right = some.parts(own)
    data = choice @ data[..., :n, :n].reshape(slits, shutters, -1)
    right = choice @ right[..., :n]
    weight, excess = choice @ some.weight, choice @ some.excess
    fitted = _smooth(weight, excess, some.basis[:, :n], some.light)
    safe = np.maximum(weight, 1e-30)
    left = np.where(weight > 0, excess / safe - fitted, 0.0).astype(np.float32)
    noise = np.where(weight > 0, 1 / safe, np.inf).astype(np.float32)
    return data.reshape(slits, choices, n, n), right, left, noise


def _choices(told: NDArray[np.bool_], choices: int) -> Array:
    """``(slit, choice, shutter)``: all shutters of a slit, then all but each of them; all, where
    there is no other.
    """
    number = np.where(told, np.cumsum(told, axis=1), 0)
    left_out = number[:, None] == np.arange(choices)[:, None]
    without = told[:, None] & ~left_out
    return np.where(without.any(axis=2, keepdims=True), without, told[:, None]).astype(np.float64)


def _smooth(weight: Array, excess: Array, basis: Array, light: Array) -> Array:
    """Least squares of the excess: a smooth series, and a share of the source's light."""
    shape = (weight.shape[0], 1, *basis.shape)
    columns = np.concatenate(
        [np.broadcast_to(basis, shape), light[:, None, :, None]], axis=3
    )  # (slit, 1, bin, column)
    weighted = np.swapaxes(weight[..., None] * columns, 2, 3)
    gram = weighted @ columns
    gram += np.eye(gram.shape[-1]) / _FREE**2
    linear = (np.swapaxes(columns, 2, 3) @ excess[..., None])[..., 0]
    return (columns @ np.linalg.solve(gram, linear[..., None]))[..., 0]


def _exposures(exposure: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exposures of enough slits to have a middle of their own; 0 are all others."""
    number = np.bincount(exposure)[exposure]
    return np.where(number >= _OF_EXPOSURE, exposure + 1, 0)


def _worst(judged: Iterable[tuple[Array, Array]]) -> tuple[Array, Array, NDArray[np.int64]]:
    """``(slit,)``: departure and score of the quantity that departs most, and which one it is."""
    each = iter(judged)
    departure, score = next(each)
    which = np.zeros(score.size, dtype=np.int64)
    for k, (away, z) in enumerate(each, start=1):
        let_go()
        more = z > score
        departure[more], score[more], which[more] = away[more], z[more], k
    return departure, score, which


def _against_all(
    value: NDArray,
    variance: NDArray,
    exposure: NDArray[np.int64],
    expected: float,
    floor: float,
    count: int,
    limit: float,
) -> tuple[Array, Array]:
    """``(slit,)``: departures of a quantity from the middle of all slits, and their scores.

    Of ``value`` and ``variance (slit, choice)`` the first choice tells middle and width, and the
    least departure of all choices counts.
    """
    one, doubt = (np.ascontiguousarray(a, np.float64) for a in (value, variance))
    first = one[:, 0]
    away, z = np.zeros((2, first.size))
    none = ~np.isfinite(first + doubt[:, 0])
    if (~none).sum() < _LEAST:
        return away, z
    out, order = none, np.argsort(first)
    for _ in range(_ROUNDS):
        middle = _middles(first, exposure, order[~out[order]])
        off = (first - middle)[~out]
        width = _width(off, doubt[~out, 0], expected, floor, count)
        least_scores(one, doubt, middle, width, away, z)
        now = none | (z > limit)
        if (now == out).all() or (~now).sum() < _LEAST:
            break
        out = now
    return away, z


def _middles(value: Array, exposure: NDArray[np.int64], order: NDArray[np.int64]) -> Array:
    """``(slit,)``: the middle of the slits of its exposure, or of all where these are few; of
    those in `order`, which is of rising value.
    """
    ordered = value[order]
    out = np.full(int(exposure.max()) + 1, shortest_half(ordered)[0])
    middles_of(ordered, exposure[order], _OF_EXPOSURE, out)
    return out[exposure]


def _width(off: Array, variance: Array, expected: float, floor: float, count: int) -> float:
    """Variance of the population, from the densest half of it and from what is expected."""
    # Of few the densest half is closer than half of a normal distribution.
    scatter = 1.4826 * _shorth(off)[1] * (1 + 1 / np.sqrt(count))
    found = max(scatter**2 - float(np.median(variance)), floor**2)
    share = count / (count + _PRIOR_COUNTS)
    return float(found**share * max(expected, floor**2) ** (1 - share))


def _shorth(values: Array) -> tuple[float, float]:
    """Middle and half width of the shortest interval that holds half of the values.

    Examples
    --------
    >>> _shorth(np.array([9.0, 1.0, 1.5, 9.5, 1.25]))
    (1.25, 0.25)
    """
    return shortest_half(np.sort(values))


def _most_visits(
    vetoed: NDArray[np.bool_], told: NDArray[np.bool_], slitlet: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Slits of slitlets that are out in at least half of their several visits."""
    n = int(slitlet.max()) + 1
    out, of = (sum_by(slitlet, a.astype(np.float64), n) for a in (vetoed & told, told))
    return told & ((of > 1) & (2 * out >= of))[slitlet]
