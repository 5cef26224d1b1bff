"""How good the subtraction was: normalised residuals, their statistics, master beside nods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits, reduce_blocks
from .errors import DatasetError
from .histograms import histogram_quantiles
from .quality import do_not_use
from .schema import PIXEL_DIMS, SLIT_IDENTITY, validate
from .spans import SpanGrid, span_grid

__all__ = ["STATISTICS", "compare", "residuals", "sky_centres", "summarize_sky"]

#: The columns of `compare`, in order.
STATISTICS = (
    "n",
    "median",
    "std",
    "mad_sigma",
    "skew",
    "frac_3sigma",
    "frac_5sigma",
    "frac_under",
    "frac_over",
    "noise_gain",
    "stack",
    "stack_nod",
)

_CENTRE = 0.2  # half width in yrel of what counts as a shutter's centre
_Z_EDGES = np.linspace(-40, 40, 16001)
_GAIN_EDGES = np.linspace(0.995, 4.0, 6011)
_STACK_CLIP = 5.0
_STACK_PIXELS = 2  # detector pixels in one wavelength bin of `stack`


def residuals(ds: xr.Dataset) -> xr.Dataset:
    """Add the normalised residual ``flux / error`` of every pixel. Lazy.

    Parameters
    ----------
    ds
        From `subtract` or `subtract_nods`.

    Returns
    -------
    xarray.Dataset
        With ``residual`` (slit, y, x) float32, without unit; NaN where flux or error is.

    Raises
    ------
    DatasetError
        Where no background was subtracted.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> mx.residuals(mx.subtract_nods(ds)).residual.attrs["long_name"]
    'normalised residual'
    """
    validate(ds)
    if "background" not in ds:
        raise DatasetError(
            "nothing was subtracted from these slits",
            expected="a dataset from subtract or subtract_nods",
            found=" ".join(map(str, ds.data_vars)),
        )
    values = map_slits(_ratio, ds["flux"], ds["flux"].data, ds["error"].data, dtype=np.float32)
    attrs = {"long_name": "normalised residual", "units": "1"}
    return ds.assign(residual=(PIXEL_DIMS, values, attrs))


def _ratio(flux: NDArray, error: NDArray) -> NDArray:
    out = np.full(flux.shape, np.nan, dtype=np.float32)
    return np.divide(flux, error, out=out, where=error > 0)


def sky_centres(ds: xr.Dataset) -> xr.DataArray:
    """Good pixels at the centres of shutters that see only sky. Lazy.

    These are the pixels that all statistics are of: within 0.2 of a shutter's centre, in a shutter
    of the slitlet that does not hold the source, not flagged DO_NOT_USE, and with a background.

    Parameters
    ----------
    ds
        From `residuals`.

    Returns
    -------
    xarray.DataArray
        Boolean (slit, y, x).

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> res = mx.residuals(mx.subtract_nods(ds))
    >>> bool(mx.sky_centres(res).any())
    True
    """
    source = np.where(ds["is_background"].values, np.nan, ds["source_shutter"].values)
    known = ds["is_background"].values | np.isfinite(source)
    count = np.maximum(ds["n_shutters"].values, 1)
    mask = map_slits(
        _centre_block,
        ds["flux"],
        ds["yrel"].data,
        ds["quality"].data,
        ds["residual"].data,
        source,
        known,
        count,
        dtype=np.bool_,
        bad=do_not_use(ds["quality"]),
    )
    return xr.DataArray(mask, dims=PIXEL_DIMS, attrs={"long_name": "centre of a sky shutter"})


def _centre_block(yrel, quality, residual, source, known, count, *, bad):
    with np.errstate(invalid="ignore"):
        shutter = np.round(yrel)
        inside = (shutter >= -((count - 1) // 2)) & (shutter <= count // 2)
        good = (
            inside & (np.abs(yrel - shutter) <= _CENTRE) & ~(np.abs(yrel - source) <= 0.5) & known
        )
    return good & ((quality & quality.dtype.type(bad)) == 0) & np.isfinite(residual)


# ------------------------------------------------------------------------------------------------


@dataclass
class _Sums:
    """Sums of one set of residuals; all of them add."""

    powers: NDArray[np.float64]  # n, sum z, z^2, z^3
    histogram: NDArray[np.int64]  # of z
    gain: NDArray[np.int64]  # of the error's growth
    signs: NDArray[np.int64]  # z > 0, z < 0, |z| > 3, |z| > 5
    bins: NDArray[np.float64]  # n and sum z by nod and wavelength bin, (2, nod, bin)
    pixels: int  # usable residuals of this set, in common with the others or not

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @classmethod
    def of(
        cls, z: NDArray, gain: NDArray, bins: NDArray[np.int64], shape: tuple[int, int], pixels: int
    ) -> _Sums:
        z = z.astype(np.float64)
        # Far outliers would turn sums of cubes into noise; std and skew are of |z| < 40.
        near = z[np.abs(z) < _Z_EDGES[-1]]
        # A stack asks whether the sky was right: one cosmic ray must not answer.
        kept = np.abs(z) <= _STACK_CLIP
        b, size = bins[kept], shape[0] * shape[1]
        stacks = [np.bincount(b, minlength=size), np.bincount(b, z[kept], size)]
        return cls(
            np.array([near.size, near.sum(), (near**2).sum(), (near**3).sum()]),
            _counts(z, _Z_EDGES),
            _counts(gain, _GAIN_EDGES),
            np.array([(z > 0).sum(), (z < 0).sum(), (np.abs(z) > 3).sum(), (np.abs(z) > 5).sum()]),
            np.array(stacks, dtype=np.float64).reshape(2, *shape),
            pixels,
        )

    def statistics(self) -> dict[str, float]:
        n = int(self.histogram.sum())
        if n == 0:
            return dict.fromkeys(STATISTICS, float("nan")) | {"n": 0}
        middle = histogram_quantiles(self.histogram[None], _Z_EDGES, (0.5,))[0, 0]
        m, s1, s2, s3 = self.powers
        mean, var = s1 / m, s2 / m - (s1 / m) ** 2
        third = s3 / m - 3 * mean * s2 / m + 2 * mean**3
        gain = histogram_quantiles(self.gain[None], _GAIN_EDGES, (0.5,))[0, 0]
        positive, negative, three, five = (self.signs / n).tolist()
        return {
            "n": n,
            "median": float(middle),
            "std": float(np.sqrt(var)),
            "mad_sigma": float(_mad_sigma(self.histogram, middle)),
            "skew": float(third / var**1.5) if var > 0 else float("nan"),
            "frac_3sigma": three,
            "frac_5sigma": five,
            "frac_under": positive,
            "frac_over": negative,
            "noise_gain": float(gain),
            "stack": _stack(*self.bins.sum(axis=1)),
            "stack_nod": _stack(*self.bins),
        }


def _stack(n: NDArray, total: NDArray) -> float:
    """Root mean square of sum(z) / sqrt(n) over bins that hold pixels."""
    filled = n > 0
    return float(np.sqrt(np.mean(total[filled] ** 2 / n[filled])))


def _counts(values: NDArray, edges: NDArray) -> NDArray[np.int64]:
    inner, _ = np.histogram(values, edges)
    return np.concatenate([[np.sum(values < edges[0])], inner, [np.sum(values > edges[-1])]])


def _mad_sigma(histogram: NDArray, median: float) -> float:
    """1.4826 times the median distance from the median, from the histogram's bins."""
    outer = np.concatenate([_Z_EDGES[:1], 0.5 * (_Z_EDGES[1:] + _Z_EDGES[:-1]), _Z_EDGES[-1:]])
    distance = np.abs(outer - median)
    order = np.argsort(distance, kind="stable")
    cumulative = np.cumsum(histogram[order])
    return 1.4826 * np.interp(0.5 * cumulative[-1], cumulative, distance[order])


def summarize_sky(
    sets: dict[str, xr.Dataset], before: xr.DataArray | None = None, *, grid: SpanGrid | None = None
) -> dict[str, dict[str, float]]:
    """Statistics of several residual datasets over the pixels they have in common. Computes.

    Parameters
    ----------
    sets
        Residual datasets of the same slits by name, each from `residuals`. One without any usable
        residual gets ``n = 0`` and does not restrict the others.
    before
        The errors before subtraction, for ``noise_gain``; by default they are found from each
        dataset's ``error`` and ``background_error``.
    grid
        Spans that define the wavelength bins, for dispersers mbkg_xr does not know.

    Returns
    -------
    dict
        `STATISTICS` by name.
    """
    names = list(sets)
    first = sets[names[0]]
    grid = span_grid(first) if grid is None else grid
    columns: dict[str, Any] = {"wavelength": first["wavelength"].variable}
    for i, name in enumerate(names):
        ds = sets[name]
        same = ds["flux"].shape == first["flux"].shape and all(
            np.array_equal(ds[c].values, first[c].values) for c in SLIT_IDENTITY
        )
        if not same or "residual" not in ds:
            raise DatasetError(
                "residuals of different slits" if not same else "no residuals",
                expected=f"the slits of {names[0]}, in their order, from residuals()",
                found=f"{name}: {ds['flux'].shape}, variables {' '.join(map(str, ds.data_vars))}",
                remedy="compare datasets made from the same slits",
            )
        columns[f"mask{i}"] = sky_centres(ds).variable
        columns[f"z{i}"] = ds["residual"].variable
        columns[f"error{i}"] = ds["error"].variable
        columns[f"other{i}"] = ds["background_error"].variable
    if before is not None:
        columns["before"] = before.variable
    table = xr.Dataset(columns)
    n_bins = -(-grid.size // _STACK_PIXELS)
    nods, nod = np.unique(first["nod"].values, return_inverse=True)
    shape = (nods.size, n_bins)

    def block(start: int, arrays: Sequence[NDArray], restrict: list[int]) -> list[_Sums]:
        part = dict(zip(table.data_vars, arrays, strict=True))
        common = np.logical_and.reduce([part[f"mask{i}"] for i in restrict])
        u = grid.pixel_coordinate(part["wavelength"][common])
        bins = np.clip(np.nan_to_num(u).astype(np.int64) // _STACK_PIXELS, 0, n_bins - 1)
        bins += n_bins * nod[start + np.nonzero(common)[0]]
        out = []
        for i in range(len(names)):
            pixels = int(part[f"mask{i}"].sum())
            if i not in restrict:
                empty = np.empty(0)
                out.append(_Sums.of(empty, empty, np.empty(0, dtype=np.int64), shape, pixels))
                continue
            after = part[f"error{i}"][common].astype(np.float64)
            other = part[f"other{i}"][common].astype(np.float64)
            own = np.sqrt(np.maximum(after**2 - other**2, 0))
            if "before" in part:
                own = part["before"][common].astype(np.float64)
            ratio = np.divide(after, own, out=np.full_like(after, np.nan), where=own > 0)
            out.append(_Sums.of(part[f"z{i}"][common], ratio, bins, shape, pixels))
        return out

    def sweep(restrict: list[int]) -> list[_Sums]:
        columns = [str(name) for name in table.data_vars]
        return reduce_blocks(table, columns, block, _add_lists, restrict)

    sums = sweep(list(range(len(names))))
    present = [i for i, s in enumerate(sums) if s.pixels > 0]
    if 0 < len(present) < len(names):
        # One set without a single pixel has nothing in common with the others.
        sums = sweep(present)
    return {name: s.statistics() for name, s in zip(names, sums, strict=True)}


def _add_lists(a: list[_Sums], b: list[_Sums]) -> list[_Sums]:
    return [x + y for x, y in zip(a, b, strict=True)]


def compare(
    master: xr.Dataset, nods: xr.Dataset | None = None, *, heldout: xr.Dataset | None = None
) -> pd.DataFrame:
    """The same pixels with master and nodded subtraction, under one error convention. Computes.

    All residuals are divided by the propagated error: the pixel's own and its background's.

    Parameters
    ----------
    master
        Residuals of `subtract`.
    nods
        Residuals of `subtract_nods` of the same slits.
    heldout
        Residuals of ``subtract(..., heldout=True)``.

    Returns
    -------
    pandas.DataFrame
        A row a method, the columns of `STATISTICS`: number of pixels, median, standard deviation
        (of ``|z| < 40``), scaled MAD, skewness, fractions beyond 3 and 5 sigma, fractions under-
        (residual > 0) and over-subtracted, median growth of the error, and ``stack``: the rms over
        wavelength bins of two detector pixels of ``sum(z) / sqrt(n)`` of residuals within 5 sigma,
        1 for perfect residuals and true errors. In nodded subtraction each pixel is subtracted
        from its partner and the partner from it: their sums cancel, and ``stack`` is small
        whatever the sky. ``stack_nod`` takes the bins of each nod apart, and is the one to
        compare with nodding.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=3, slits=4, background_slits=2))
    >>> res = mx.residuals(mx.subtract(ds, mx.fit_master(ds)))
    >>> table = mx.compare(res, mx.residuals(mx.subtract_nods(ds)))
    >>> list(table.index)
    ['master', 'nods']
    """
    sets = {"master": master}
    if nods is not None:
        sets["nods"] = nods
    if heldout is not None:
        sets["heldout"] = heldout
    table = summarize_sky(sets)
    return pd.DataFrame.from_dict(table, orient="index", columns=list(STATISTICS)).astype(
        {"n": int}
    )
