"""The white-noise test: residuals binned down to the floor that a wrong sky leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import nnls

from .errors import DatasetError, ParameterError
from .grouping import By, Grouping, groupings
from .keyed import Keyed, add_up
from .residuals import sky_centres
from .schema import SLIT_IDENTITY
from .scores import STACK_CLIP
from .search import Found, Where, search
from .spans import SpanGrid, span_grid

__all__ = ["white_noise"]

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_FEWEST = 4  # groups to take an error from
_PERCENT = {"units": "percent"}


def white_noise(
    residuals: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    sizes: Sequence[int] = _SIZES,
    by: By | str = "slit",
    where: Where = sky_centres,
    grid: SpanGrid | None = None,
    **conditions: Any,
) -> xr.Dataset:
    """Scatter of binned residuals against the size of bins, and the floor it falls to. Computes.

    White noise falls as one over the root of the number of pixels; what a wrong sky leaves does
    not, and a histogram of single pixels does not show it. In each group of pixels and wavelength
    bin, residuals are averaged as fractions of the sky, weighted by their errors: with flux f,
    error e and the sky b, ``P = sum f b / e^2``, ``Q = sum b^2 / e^2``, the mean is ``P / Q``,
    and ``1 / Q`` its variance, were the errors true and independent. The sky is the mean background
    of all pixels of a detector pixel's wavelengths: that of one nod is noise itself, and would
    make its own floor. Over the bins of one size,

        rms^2 = sum(P^2 / Q) / sum(Q),    expected^2 = (number of bins) / sum(Q)

    and a relative error s of the sky that is the same all over a bin makes
    ``rms^2 = scatter^2 expected^2 + s^2``. The two are fitted over all sizes by least squares, none
    of them negative.

    Parameters
    ----------
    residuals
        From `residuals`; or several such datasets of the same slits by name, such as
        ``{"master": res, "nods": nods}``: then of the pixels that all of them have. Residuals of a
        master on the slits it was fitted to come out better than they are: hold slits out.
    sizes
        Of bins, in detector pixels along wavelength.
    by
        What is binned together: ``"slit"``, each slit for itself, so that the floor holds what
        slits differ by; None, all slits, for what they have in common; or coordinates as in
        `summarize`.
    where
        Pixels to take, as in `query`; those beyond 5 sigma are left out.
    grid
        Spans of one detector pixel, for dispersers mbkg_xr does not know.
    **conditions
        As in `query`.

    Returns
    -------
    xarray.Dataset
        By ``subtraction`` and ``size``: ``rms``, ``expected`` and ``systematic`` (the root of
        rms^2 - scatter^2 expected^2, 0 where that is negative), in % of the sky; ``bins`` and
        ``pixels``, the mean number of pixels in one. By ``subtraction``: ``floor`` (s, in % of the
        sky) with ``floor_error``, and ``scatter``, that of single pixels over their stated errors.
        The error is from leaving out one group after the other, NaN for fewer than four.

    Raises
    ------
    DatasetError
        Without residuals and background, or where the datasets have other slits.
    ParameterError
        On sizes below 1, or conditions that make no sense.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=4, background_slits=4)
    >>> found = mx.white_noise({"nods": mx.residuals(mx.subtract_nods(ds))}, sizes=[1, 8, 64])
    >>> found.rms.dims, bool(found.rms[0, 0] > found.rms[0, -1])
    (('subtraction', 'size'), True)
    """
    sets = {"residual": residuals} if isinstance(residuals, xr.Dataset) else dict(residuals)
    _check(sets)
    widths = np.asarray(sizes)
    if widths.ndim != 1 or not widths.size or widths.dtype.kind not in "iu" or widths.min() < 1:
        raise ParameterError(
            "unusable sizes of bins", where="sizes", expected="detector pixels, 1 or more",
            found=sizes,
        )  # fmt: skip
    if len(sets) > 1 and where is sky_centres:
        where = reduce(and_, (sky_centres(ds) for ds in sets.values()))
    parts = []
    for ds in sets.values():
        spans = span_grid(ds) if grid is None else grid
        found = search(ds, where, conditions)
        plan = _Plan(_grouping(ds, by, found.candidates, spans), spans)
        columns = ["flux", "error", "background", "wavelength", *plan.columns]
        sums = add_up(found.reduce(_sums, columns, plan))
        parts.append(_scatter(sums, spans.size, np.unique(widths)))
    out = xr.concat(parts, "subtraction", coords="minimal", compat="override", join="exact")
    first = next(iter(sets.values()))
    return out.assign_coords(subtraction=list(sets)).assign_attrs(
        {k: first.attrs[k] for k in ("configuration",) if k in first.attrs}
        | {"by": str(by), "pixels": f"within {STACK_CLIP:g} sigma"}
    )


def _check(sets: Mapping[str, xr.Dataset]) -> None:
    first = next(iter(sets.values()), None)
    if first is None:
        raise ParameterError("no residuals given", expected="a dataset, or several by name")
    for name, ds in sets.items():
        if "residual" not in ds or "background" not in ds:
            raise DatasetError(
                "no residuals of a background", where=name,
                expected="a dataset from residuals() of subtract or subtract_nods",
                found=" ".join(map(str, ds.data_vars)),
            )  # fmt: skip
        same = ds["flux"].shape == first["flux"].shape and all(
            np.array_equal(ds[c].values, first[c].values) for c in SLIT_IDENTITY
        )
        if not same:
            raise DatasetError(
                "residuals of different slits", where=name,
                expected=f"the slits of {next(iter(sets))}, in their order",
                found=str(ds["flux"].shape), remedy="test datasets made from the same slits",
            )  # fmt: skip


def _grouping(ds: xr.Dataset, by: By, slits: NDArray[np.bool_], grid: SpanGrid) -> Grouping | None:
    """None: each slit for itself."""
    return None if by == "slit" else groupings(ds, [by], None, slits, grid)[0]


@dataclass(frozen=True)
class _Plan:
    grouping: Grouping | None
    grid: SpanGrid

    @property
    def columns(self) -> list[str]:
        return [] if self.grouping is None else self.grouping.columns


def _sums(found: Found, plan: _Plan) -> Keyed:
    """N and sums of f / e^2, 1 / e^2 and background / e^2, by group and span."""
    names = ("flux", "error", "background")
    flux, error, sky = (found[n].astype(np.float64) for n in names)
    group = found["slit"] if plan.grouping is None else plan.grouping.index(found)
    u = plan.grid.pixel_coordinate(found["wavelength"])
    with np.errstate(invalid="ignore", divide="ignore"):
        use = np.isfinite(u) & np.isfinite(sky) & (np.abs(flux / error) <= STACK_CLIP)
    use &= (group >= 0) & (error > 0)
    weight = 1 / error[use] ** 2
    span = np.clip(u[use].astype(np.int64), 0, plan.grid.size - 1)
    keys = group[use] * plan.grid.size + span
    return Keyed.of(keys, flux[use] * weight, weight, sky[use] * weight)


def _scatter(sums: Keyed | None, n_spans: int, sizes: NDArray[np.int64]) -> xr.Dataset:
    """The curve and the floor of one set of residuals."""
    if sums is None:
        sums = Keyed.of(np.empty(0, np.int64), *[np.empty(0)] * 3)
    groups, group = np.unique(sums.keys // n_spans, return_inverse=True)
    span = sums.keys % n_spans
    n, f, w, b = sums.sums.T
    level = np.bincount(span, b, n_spans) / np.maximum(np.bincount(span, w, n_spans), 1e-300)
    columns = np.stack([n, f * level[span], w * level[span] ** 2], axis=1)
    # By group and size: sum of P^2 / Q, number of bins, sum of Q, pixels.
    totals = np.zeros((groups.size, sizes.size, 4))
    for k, size in enumerate(sizes):
        n_bins = -(-n_spans // int(size))
        bins = Keyed.summed(group * n_bins + span // size, columns)
        n, p, q = bins.sums[bins.sums[:, 2] > 0].T
        rows = bins.keys[bins.sums[:, 2] > 0] // n_bins
        np.add.at(totals[:, k], rows, np.stack([p**2 / q, np.ones(n.size), q, n], axis=1))
    whole = totals.sum(axis=0)
    rms2, expected2 = _curve(whole)
    floor, scatter = _fit(rms2, expected2, whole[:, 1])
    error = np.nan
    if groups.size >= _FEWEST:
        without = [_fit(*_curve(whole - t), (whole - t)[:, 1])[0] ** 2 for t in totals]
        g = groups.size
        variance = (g - 1) / g * np.sum((np.array(without) - np.mean(without)) ** 2)
        # Of the square, whose error is the same however small the floor.
        error = np.sqrt(variance) / (2 * floor) if floor**4 > variance else variance**0.25
    systematic = np.sqrt(np.maximum(rms2 - scatter**2 * expected2, 0))
    with np.errstate(invalid="ignore"):
        pixels = whole[:, 3] / whole[:, 1]
    percent: dict[str, tuple[NDArray, str]] = {
        "rms": (np.sqrt(rms2), "rms of binned residuals, of the sky"),
        "expected": (np.sqrt(expected2), "that of white noise of the stated errors"),
        "systematic": (systematic, "what white noise does not explain, of the sky"),
    }
    counts = {
        "bins": (whole[:, 1].astype(np.int64), {"long_name": "bins"}),
        "pixels": (pixels, {"long_name": "mean number of pixels in a bin"}),
    }
    return xr.Dataset(
        {k: ("size", 100 * v, {"long_name": text, **_PERCENT}) for k, (v, text) in percent.items()}
        | {k: ("size", v, attrs) for k, (v, attrs) in counts.items()}
        | {
            "floor": ((), 100 * floor, {"long_name": "systematic error of the sky", **_PERCENT}),
            "floor_error": ((), 100 * error, {"long_name": "its standard error", **_PERCENT}),
            "scatter": ((), scatter, {"long_name": "scatter of pixels over stated errors"}),
        },
        {"size": ("size", sizes, {"long_name": "size of bins", "units": "pixel"})},
    )


def _curve(totals: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """rms^2 and expected^2, by size."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[:, 0] / totals[:, 2], totals[:, 1] / totals[:, 2]


def _fit(
    rms2: NDArray[np.float64], expected2: NDArray[np.float64], bins: NDArray[np.float64]
) -> tuple[float, float]:
    """Floor and scatter."""
    good = np.isfinite(rms2) & (rms2 > 0)
    if good.sum() < 2:
        return np.nan, np.nan
    # The rms^2 of n bins is known to sqrt(2 / n) of itself.
    weight = np.sqrt(bins[good] / 2) / rms2[good]
    design = np.stack([expected2[good], np.ones(int(good.sum()))], axis=1)
    found, _ = nnls(design * weight[:, None], rms2[good] * weight)
    return float(np.sqrt(found[1])), float(np.sqrt(found[0]))
