"""Statistics of residuals by any coordinate, many groupings in one pass over the pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .errors import DatasetError, ParameterError
from .grouping import By, Grouping, groupings, name_of
from .histogram_core import OF_HISTOGRAM, of_histogram
from .keyed import Keyed, add_up
from .residuals import sky_centres
from .schema import PIXEL_DIMS
from .scores import STACK_CLIP, Z_EDGES
from .search import Found, Where, search
from .spans import SpanGrid, span_grid

__all__ = ["SUMMARY", "summarize"]

#: What `summarize` finds, and in which words.
SUMMARY: Mapping[str, str] = {
    "n": "pixels",
    "median": "median",
    "mean": "mean of what lies within the histogram's range",
    "std": "standard deviation of the same",
    "mad_sigma": "scaled median absolute deviation",
    "skew": "skewness",
    "gauss_mean": "mean of the Gaussian fitted to the core",
    "gauss_sigma": "standard deviation of that Gaussian",
    "frac_3sigma": "fraction beyond 3 sigma",
    "frac_5sigma": "fraction beyond 5 sigma",
    "frac_under": "fraction above zero: under-subtracted",
    "frac_over": "fraction below zero: over-subtracted",
    "stack": "rms over wavelength bins of sum(z) / sqrt(n)",
    "stack_nod": "the same, nod by nod",
}
_NORMALISED = ("frac_3sigma", "frac_5sigma", "stack", "stack_nod")

# 1/64 of a power of two wide, whatever the units.
_LOG_EDGES = np.exp2(np.arange(-40 * 64, 20 * 64 + 1) / 64)
_WIDE_EDGES = np.concatenate([-_LOG_EDGES[::-1], _LOG_EDGES])
_STACK_PIXELS = 2  # detector pixels in one wavelength bin of `stack`


@overload
def summarize(residuals: xr.Dataset, *, by: list, **options: Any) -> xr.Dataset | xr.DataTree: ...
@overload
def summarize(
    residuals: xr.Dataset, *, by: str | tuple[str, ...] | None = ..., **options: Any
) -> xr.Dataset: ...


def summarize(
    residuals: xr.Dataset,
    *,
    by: By | list[By] = None,
    bins: Mapping[str, ArrayLike | int] | None = None,
    of: str = "residual",
    where: Where = sky_centres,
    grid: SpanGrid | None = None,
    **conditions: Any,
) -> xr.Dataset | xr.DataTree:
    """Statistics of residuals by any coordinate or bins of it, in one pass. Computes.

    Medians and quantiles are taken from histograms, which add: chunks may be any, memory grows with
    the number of groups and not with that of pixels.

    Parameters
    ----------
    residuals
        From `residuals`.
    by
        A coordinate of slits (``"quadrant"``), or one of pixels in bins (``"wavelength"``); a tuple
        crosses several, ``("quadrant", "wavelength")``; a list is of groupings, all found in one
        pass; None takes all pixels together.
    bins
        By coordinate, edges of bins or their number. Without, wavelength is in 20 bins over the
        disperser's range and yrel in steps of 0.2; any other coordinate of pixels needs edges.
        Those of slits are grouped by value without. The last bin holds its upper edge; what lies
        outside is in no group.
    of
        The variable. For any but ``"residual"``, which is in units of its error, there is no
        ``stack`` and no fraction beyond so many sigma, and medians are good to 1 %.
    where
        Pixels to take: as in `query`. By default those at the centres of sky shutters; None for
        all.
    grid
        Spans that define the wavelength bins of ``stack``, for dispersers mbkg_xr does not know.
    **conditions
        Conditions on coordinates, as in `query`: ``wavelength=(1, 2), nod=1``.

    Returns
    -------
    xarray.Dataset
        Of the groups' dimensions, with `SUMMARY`: number of pixels, median, mean and standard
        deviation (of ``|z| < 40``), scaled MAD, skewness, mean and sigma of a Gaussian fitted to
        what lies within 2.5 scaled MADs of the median (by maximum likelihood of the truncated
        Gaussian), fractions beyond 3 and 5 sigma, above and below zero, ``stack`` and
        ``stack_nod`` as in `compare`. NaN where there is no pixel. Bins have their centre as
        coordinate and their edges beside it, as in ``wavelength_low``.
    xarray.DataTree
        If `by` is a list of several: such a dataset a grouping, named ``quadrant``,
        ``quadrant_wavelength`` and so on; ``all`` for None.

    Raises
    ------
    ParameterError
        On unknown coordinates, bins or conditions that make no sense.
    DatasetError
        Where there are no residuals.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=2)
    >>> res = mx.residuals(mx.subtract_nods(ds))
    >>> mx.summarize(res, by="nod").mad_sigma.dims
    ('nod',)
    >>> found = mx.summarize(res, by=["slitlet", ("nod", "wavelength")], bins={"wavelength": 8})
    >>> found["nod_wavelength"].sizes["wavelength"], found["slitlet/n"].sizes["slitlet"]
    (8, 4)
    """
    if of not in residuals or residuals[of].dims != PIXEL_DIMS:
        raise DatasetError(
            f"no variable {of!r} to summarize",
            expected="a dataset from residuals(), or the name of a pixel variable as `of`",
            found=" ".join(map(str, residuals.data_vars)),
        )
    if residuals[of].dtype.kind != "f":
        kind = f"{of} is {residuals[of].dtype}"
        raise ParameterError("no variable to summarize", expected="real numbers", found=kind)
    normalised = of == "residual"
    found = search(residuals, where, conditions)
    wanted: list[By] = list(by) if isinstance(by, list) else [by]
    if not wanted:
        raise ParameterError("nothing to group by", where="by", expected="one grouping or more")
    if normalised and grid is None:
        grid = span_grid(residuals)
    plan = _Plan(
        of,
        groupings(residuals, wanted, bins, found.candidates, grid),
        Z_EDGES if normalised else _WIDE_EDGES,
        grid if normalised else None,
        np.unique(residuals["nod"].values, return_inverse=True)[1].astype(np.int64),
    )
    columns = list(dict.fromkeys([of, *plan.columns]))
    sums = add_up(found.reduce(_sums, columns, plan))
    units = {"units": "1"} if normalised else {
        k: v for k, v in residuals[of].attrs.items() if k == "units"
    }  # fmt: skip
    attrs = _attrs(residuals, of, where, conditions)
    out = {}
    for i, (one, grouping) in enumerate(zip(wanted, plan.groups, strict=True)):
        values = _statistics(_Group.none() if sums is None else sums.groups[i], grouping, plan)
        dimensioned = {
            k: (v, {"long_name": SUMMARY[k], **(units if k in _IN_UNITS else {"units": "1"})})
            for k, v in values.items()
        }
        out[name_of(one)] = grouping.dataset(residuals, dimensioned).assign_attrs(attrs)
    return xr.DataTree.from_dict(out) if len(wanted) > 1 else out[name_of(wanted[0])]


_IN_UNITS = ("median", "mean", "std", "mad_sigma", "gauss_mean", "gauss_sigma")


def _attrs(ds: xr.Dataset, of: str, where: Where, conditions: Mapping[str, Any]) -> dict[str, str]:
    """What the statistics are of."""
    attrs = {k: ds.attrs[k] for k in ("configuration", "background_method") if k in ds.attrs}
    asked = [f"{k} {v}" for k, v in conditions.items() if v is not None]
    if where is sky_centres:
        asked.append("centres of sky shutters")
    elif where is not None:
        asked.append(getattr(where, "__name__", "a mask"))
    return {**attrs, "of": of, "pixels": ", ".join(asked) or "any coordinate"}


@dataclass(frozen=True)
class _Plan:
    """What to sum."""

    of: str
    groups: list[Grouping]
    edges: NDArray[np.float64]
    grid: SpanGrid | None  # of the bins of `stack`
    nod: NDArray[np.int64]  # of slits

    @property
    def columns(self) -> list[str]:
        more = [name for g in self.groups for name in g.columns]
        return more if self.grid is None else [*more, "wavelength"]

    @property
    def stack_shape(self) -> tuple[int, int]:
        """Nods, and wavelength bins."""
        bins = 0 if self.grid is None else -(-self.grid.size // _STACK_PIXELS)
        return int(self.nod.max(initial=0)) + 1, bins


@dataclass(frozen=True)
class _Group:
    """Sums of one grouping, by group: all of them add."""

    powers: Keyed  # n, and of |z| within the edges: n, sums of z, z^2, z^3; z > 0, z < 0, ...
    histogram: Keyed  # by group and bin
    stack: Keyed  # n, sum z by group, nod and wavelength bin

    @classmethod
    def none(cls) -> _Group:
        nothing = Keyed.of(np.empty(0, np.int64), *[np.empty(0)] * 8)
        return cls(nothing, nothing, nothing)

    def __add__(self, other: _Group) -> _Group:
        return _Group(
            self.powers + other.powers,
            self.histogram + other.histogram,
            self.stack + other.stack,
        )


@dataclass(frozen=True)
class _Sums:
    groups: list[_Group]

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums([a + b for a, b in zip(self.groups, other.groups, strict=True)])


def _sums(found: Found, plan: _Plan) -> _Sums:
    """Sums of the pixels of a chunk, for each grouping."""
    z = found[plan.of].astype(np.float64)
    good = np.isfinite(z)
    found = {k: v[good] for k, v in found.items()}
    z = z[good]
    # Far outliers would turn sums of cubes into noise.
    near = np.abs(z) < plan.edges[-1]
    inner = np.where(near, z, 0)
    large = np.abs(z)
    columns = [near, inner, inner**2, inner**3, z > 0, z < 0, large > 3, large > 5]
    bins = np.searchsorted(plan.edges, z, side="right")
    nods, n_stacks = plan.stack_shape
    if plan.grid is not None:
        u = plan.grid.pixel_coordinate(found["wavelength"])
        place = np.clip(np.nan_to_num(u).astype(np.int64) // _STACK_PIXELS, 0, n_stacks - 1)
        place += n_stacks * plan.nod[found["slit"]]
        # A stack asks whether the sky was right: one cosmic ray must not answer.
        stacked = large <= STACK_CLIP
    out = []
    for grouping in plan.groups:
        group = grouping.index(found)
        use = group >= 0
        stack = Keyed.of(np.empty(0, np.int64), np.empty(0))
        if plan.grid is not None:
            some = use & stacked
            stack = Keyed.of(group[some] * (nods * n_stacks) + place[some], z[some])
        out.append(
            _Group(
                Keyed.of(group[use], *(c[use] for c in columns)),
                Keyed.of(group[use] * (plan.edges.size + 1) + bins[use]),
                stack,
            )
        )
    return _Sums(out)


# ------------------------------------------------------------------------------------------------


def _statistics(sums: _Group, grouping: Grouping, plan: _Plan) -> dict[str, NDArray]:
    """One value a group of each statistic."""
    size = grouping.size
    out = {name: np.full(size, np.nan) for name in SUMMARY}
    out["n"] = np.zeros(size, dtype=np.int64)
    keys = sums.powers.keys
    n, m, s1, s2, s3, positive, negative, three, five = sums.powers.sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, var = s1 / m, np.maximum(s2 / m - (s1 / m) ** 2, 0)
        third = s3 / m - 3 * mean * s2 / m + 2 * mean**3
        skew = np.where(var > 0, third / var**1.5, np.nan)
    columns = {
        "n": n, "mean": mean, "std": np.sqrt(var), "skew": skew, "frac_under": positive / n,
        "frac_over": negative / n, "frac_3sigma": three / n, "frac_5sigma": five / n,
    }  # fmt: skip
    for name, values in columns.items():
        out[name][keys] = values
    n_bins = plan.edges.size + 1
    starts = np.searchsorted(sums.histogram.keys, keys * n_bins)
    stops = np.searchsorted(sums.histogram.keys, (keys + 1) * n_bins)
    for key, a, b in zip(keys, starts, stops, strict=True):
        bins = sums.histogram.keys[a:b] - key * n_bins
        counts = sums.histogram.sums[a:b, 0]
        found = of_histogram(bins, counts, plan.edges)
        for name, value in zip(OF_HISTOGRAM, found, strict=True):
            out[name][key] = value
    if plan.grid is None:
        return {k: v for k, v in out.items() if k not in _NORMALISED}
    nods, n_stacks = plan.stack_shape
    by_nod = sums.stack
    joined = (by_nod.keys // (nods * n_stacks)) * n_stacks + by_nod.keys % n_stacks
    together = Keyed.summed(joined, by_nod.sums)
    for name, stack, cells in (
        ("stack", together, n_stacks),
        ("stack_nod", by_nod, nods * n_stacks),
    ):
        square = stack.sums[:, 1] ** 2 / np.maximum(stack.sums[:, 0], 1)
        mean_square = Keyed.of(stack.keys // cells, square)
        out[name][mean_square.keys] = np.sqrt(mean_square.sums[:, 1] / mean_square.sums[:, 0])
    return out
