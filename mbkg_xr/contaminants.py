"""Shutters that count as empty and are not: found from residuals held out of the fit.

Each shutter is predicted by a master fitted without its slit and a scale found without the shutter;
what it holds beyond that is looked at along the slit (a second source is a trace, narrower than a
shutter), along the dispersion (a line, a slope) and as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

from .blas import serial_blas
from .blocks import reduce_blocks
from .errors import ParameterError
from .excess import N_PARTS, N_SUMS, sum_excess
from .master import master_grid
from .moments import time_factors
from .parts import has_parts, master_part, part_index
from .quality import DEFAULT_EXCLUDE, flag_mask
from .schema import SLIT_IDENTITY
from .shutters import open_shutters, sky_shutters
from .slit_terms import ranks_in
from .subtract import subtract
from .terms import FIRST_SHUTTER, N_SHUTTERS

__all__ = ["find_contaminants"]

Array = NDArray[np.float64]

#: Parts of a shutter a trace may fill: all of it, each fifth, and two neighbouring ones.
_FILTERS = np.array(
    [np.ones(N_PARTS, dtype=bool)]
    + [np.arange(N_PARTS) == k for k in range(N_PARTS)]
    + [np.isin(np.arange(N_PARTS), (k, k + 1)) for k in range(N_PARTS - 1)]
)
_INDEPENDENT = 6  # of these, about
_PLACES = 400  # where a line may be
_CHANCE = 1.5  # cosmic rays make lines, too: so much, in standard deviations, is theirs
_CALIBRATED = 30  # shutters from which on their own scatter is the unit of the score
_SHAPE = 3.0  # standard deviations from which on a shape is told
_COLUMNS = (*SLIT_IDENTITY, "shutter", "score", "excess", "excess_error", "shape", "verdict")


@serial_blas
def find_contaminants(ds: xr.Dataset, master: xr.Dataset, *, limit: float = 3.0) -> pd.DataFrame:
    """Rank the shutters that count as sky by what they hold beyond it. Computes.

    Nothing is applied: see `without_contaminants`.

    Parameters
    ----------
    ds
        The slit dataset the master was fitted to, or ``subtract(ds, master, heldout=True)`` of it.
    master
        From `fit_master`.
    limit
        Score from which on the verdict is ``contaminated``: one in 700 sky shutters exceeds 3 by
        chance.

    Returns
    -------
    pandas.DataFrame
        A row a shutter, the worst first: ``exposure``, ``detector``, ``slitlet``, ``shutter``
        (yrel); ``score``, the significance in standard deviations of the excess in the shutter, in
        the part of it where it is clearest or in a line, made less by the number of places looked
        at, with errors as large as the shutters of this programme scatter; ``excess`` and
        ``excess_error`` (mean over the shutter's rows, % of the sky); ``shape``: ``trace`` (narrow
        along the slit), ``line``, ``rising``, ``falling`` or ``flat`` with wavelength; ``verdict``:
        ``contaminated``, ``leak`` (not more than the slit's own source may spill, or brightest at
        the edge next to it), ``dark`` (too faint by as much) or ``sky``; ``left_out``, whether the
        fit had left the shutter out.

    Raises
    ------
    DatasetError
        Where the slits are not the master's, or nothing could be held out.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=6, background_slits=3))
    >>> table = mx.find_contaminants(ds, mx.fit_master(ds))
    >>> list(table.columns[:5])
    ['exposure', 'detector', 'slitlet', 'shutter', 'score']
    """
    if not limit > 0:
        raise ParameterError("unusable limit", expected="a positive number", found=limit)
    if has_parts(master):
        which = part_index(ds, master)
        tables = [
            find_contaminants(ds.isel(slit=which == i), master_part(master, value), limit=limit)
            for i, value in enumerate(master["part"].values)
            if (which == i).any()
        ]
        table = pd.concat(tables).sort_values("score", ascending=False, ignore_index=True)
        table.attrs["limit"] = float(limit)
        return table
    held = ds if "background" in ds else subtract(ds, master, heldout=True)
    sums = _sums(held, master)
    told = sky_shutters(held) & (sums[..., 0].sum(axis=2) > 0)
    level, error, whole = _levels(sums)
    leak, doubt = _spilt(held, whole, master)
    score, best = _score(level, np.hypot(error, doubt[..., None]), level - leak[..., None], told)
    bare, _ = _score(level, error, level, told)
    slope, line = sums[:, :, 0, 4:6].transpose(2, 0, 1)
    in_line = _less_by(line, _PLACES) - _CHANCE
    of_all = np.maximum(score, in_line)
    verdict = np.where(np.maximum(bare, in_line) > limit, "leak", "sky")
    verdict = np.where(
        (of_all > limit) & ~_falls_from_source(held, level, error), "contaminated", verdict
    )
    # Nothing in a slit makes light less: a shutter too dark is seen on the whole of it.
    dark, _ = _score(-level[..., :1], error[..., :1], -level[..., :1], told)
    verdict = np.where((verdict == "sky") & (dark > limit), "dark", verdict)
    rank = ranks_in(held, master)
    used = np.ones(told.shape, dtype=bool)
    if "shutter_used" in master:
        used = np.where(rank[:, None] >= 0, master["shutter_used"].values[rank], True)
    at, z = np.nonzero(told)
    table = pd.DataFrame(
        {
            **{name: held[name].values[at] for name in SLIT_IDENTITY},
            "shutter": FIRST_SHUTTER + z,
            "score": of_all[told],
            "excess": 100 * level[..., 0][told],
            "excess_error": 100 * error[..., 0][told],
            "shape": _shapes(level, error, best, slope, line, of_all)[told],
            "verdict": verdict[told],
            "left_out": ~used[told],
        }
    )
    table.attrs["limit"] = float(limit)
    return table.sort_values("score", ascending=False, ignore_index=True)


@serial_blas
# ------------------------------------------------------------------------------------------------


def _sums(held: xr.Dataset, master: xr.Dataset) -> Array:
    """``(slit, shutter, part, N_SUMS)``, from one pass over the pixels."""
    grid = master_grid(master)
    names = ["flux", "error", "background", "background_error", "quality", "wavelength", "yrel"]
    names += ["var_rnoise"] if "var_rnoise" in held else []
    bits = flag_mask(held["quality"], DEFAULT_EXCLUDE, missing="ignore")
    factor = time_factors(held)
    opened = open_shutters(held["n_shutters"].values)
    covered = np.flatnonzero(master["constrained"].values)
    phase = (2 * np.arange(grid.size) - covered[0] - covered[-1]) / max(np.ptp(covered), 1)
    scatter = float(master.attrs["scatter"])

    def block(start: int, arrays: Sequence[Any], gain: Array) -> Array:
        part = slice(start, start + arrays[0].shape[0])
        out = np.zeros((arrays[0].shape[0], N_SHUTTERS, N_PARTS, N_SUMS))
        read = arrays[7] if len(arrays) > 7 else np.empty((0, 0, 0), dtype=np.float32)
        sum_excess(
            *arrays[:7], read, arrays[4].dtype.type(bits), opened[part], factor[part],
            gain, scatter, phase, grid.edges, grid.lookup, grid.step, out,
        )  # fmt: skip
        return out

    return reduce_blocks(
        held, names, block, lambda a, b: np.concatenate([a, b]), master["photon_gain"].values
    )


def _levels(sums: Array) -> tuple[Array, Array, Array]:
    """``(slit, shutter, filter)``: level of each filter over the sky and its error, as fractions of
    it; and the level of the whole shutter, its source's light included.
    """
    w = sums[..., 0] @ _FILTERS.T
    a = sums[..., 1] @ _FILTERS.T
    b = sums[..., 2] @ _FILTERS.T
    safe = np.maximum(w, 1e-30)
    level = np.where(w > 0, a / safe, 0.0)
    # What the background's own error is over the shutter is the same for all its pixels.
    error = np.where(w > 0, np.sqrt(1 / safe + np.square(b / safe)), np.inf)
    return level, error, level[..., 0]


def _spilt(held: xr.Dataset, level: Array, master: xr.Dataset) -> tuple[Array, Array]:
    """``(slit, shutter)``: what the slit's own source is expected to spill, and the doubt of it."""
    away = np.abs(_from_source(held))
    light = np.where(away <= 0.5, np.maximum(level, 0), 0.0).sum(axis=1, keepdims=True)
    share = np.where(away <= 1.5, 1.0, 0.1) * ~np.isnan(away)
    mean, scatter = master.attrs.get("leak", (0.0, 0.0))
    return mean * share * light, (mean + scatter) * share * light


def _from_source(held: xr.Dataset) -> NDArray:
    """``(slit, shutter)``: pitches from the slit's own source; NaN in sky slits."""
    source = np.where(held["is_background"].values, np.nan, held["source_shutter"].values)
    return (FIRST_SHUTTER + np.arange(N_SHUTTERS)) - source[:, None]


def _falls_from_source(held: xr.Dataset, level: Array, error: Array) -> NDArray[np.bool_]:
    """``(slit, shutter)``: beside the source, and brightest at the edge next to it."""
    away = np.rint(_from_source(held))
    parts, noise = level[..., 1 : 1 + N_PARTS], error[..., 1 : 1 + N_PARTS]
    # The source of a shutter one pitch up lies below it, and lights its first fifth.
    parts = np.where(away[..., None] > 0, parts, parts[..., ::-1])
    noise = np.where(away[..., None] > 0, noise, noise[..., ::-1])
    rest = np.where(np.isfinite(noise), parts, -np.inf)
    return (np.abs(away) == 1) & (parts[..., 0] + noise[..., 0] >= rest[..., 1:].max(axis=2))


def _score(
    level: Array, error: Array, over: Array, told: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.int64]]:
    """``(slit, shutter)``: significance of the best filter, and which it is."""
    with np.errstate(invalid="ignore"):
        z = np.where(told[..., None] & np.isfinite(error), over / error, 0.0)
    if told.sum() >= _CALIBRATED:
        # What all shutters show is the profile's, and what they scatter by is the true error.
        for k in range(z.shape[1]):
            if told[:, k].sum() >= _CALIBRATED:
                z[:, k] -= np.median(z[told[:, k], k], axis=0)
        spread = 1.4826 * np.median(np.abs(z[told]), axis=0)
        z /= np.maximum(spread, 1.0)
    best: NDArray[np.int64] = np.argmax(z, axis=2)
    most = z.max(axis=2)
    return np.where(told, _less_by(most, min(_INDEPENDENT, z.shape[2])), -np.inf), best


def _less_by(z: Array, places: int) -> Array:
    """Significance of the largest of so many: as likely by chance as this of a single one."""
    chance = np.minimum(norm.logsf(z) + np.log(places), -1e-3)
    # Past all tables the tail is exp(-z^2 / 2): a number of places takes next to nothing off.
    with np.errstate(invalid="ignore"):
        far = np.sqrt(np.maximum(np.square(z) - 2 * np.log(places), 0))
    return np.where(z > 8, far, norm.isf(np.exp(np.maximum(chance, -700))))


def _shapes(
    level: Array,
    error: Array,
    best: NDArray[np.int64],
    slope: Array,
    line: Array,
    score: Array,
) -> NDArray:
    """What the excess looks like; of shutters without one, what the noise looks like."""
    at = best[..., None]
    in_part = np.take_along_axis(level, at, 2)[..., 0]
    noise = np.hypot(np.take_along_axis(error, at, 2)[..., 0], error[..., 0])
    narrow = (best > 0) & (in_part > 1.5 * level[..., 0]) & (in_part - level[..., 0] > noise)
    out = np.where(slope > _SHAPE, "rising", np.where(slope < -_SHAPE, "falling", "flat"))
    out = np.where(narrow, "trace", out)
    return np.where(_less_by(line, _PLACES) - _CHANCE >= np.maximum(score, _SHAPE), "line", out)
