"""The master on each slit's own pixels.

Two ways that agree: the exact mean of the model over each pixel, from its antiderivative, and the
area-overlap rebin (`rebin2d`) of the two-dimensional master, constant along the slit.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits
from .errors import DatasetError, ParameterError
from .kernels import kernel
from .master import error_at, master_grid, sample_master
from .parts import require_one_sky
from .rebin import pixel_corners, rebin2d
from .schema import PIXEL_DIMS, SLIT_IDENTITY, validate
from .skies import has_skies, over_skies
from .slit_terms import SlitTerms, ranks_in, slit_terms
from .spans import SpanGrid, find_span

__all__ = ["master_image", "project_master"]

Array = NDArray[np.float64]


def master_image(
    master: xr.Dataset, *, yrel: tuple[float, float] = (-2.0, 2.0), step: float = 0.2
) -> xr.Dataset:
    """The two-dimensional master background: the sky in regular cells, constant along the slit.

    Parameters
    ----------
    master
        From `fit_master`.
    yrel
        Range along the slit, in shutter pitches.
    step
        Size of a cell along the slit.

    Returns
    -------
    xarray.Dataset
        ``sky(yrel, wavelength)``: the mean over each cell, with ``yrel_edge`` and
        ``wavelength_edge``; ``attrs["sampling_loss"]`` as in `sample_master`.

    Raises
    ------
    ParameterError
        On a reversed range, or a step that does not fit into it.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> image = mx.master_image(mx.fit_master(ds), yrel=(-1.5, 1.5), step=0.5)
    >>> image.sky.dims, image.sizes["yrel"]
    (('yrel', 'wavelength'), 6)
    """
    require_one_sky(master, "an image")
    low, high = map(float, yrel)
    if not (low < high and 0 < step <= high - low):
        raise ParameterError(
            "unusable yrel range", expected="low < high and 0 < step <= high - low",
            found=f"{yrel}, step {step}",
        )  # fmt: skip
    sampled = sample_master(master)
    steps = sampled.attrs["steps_per_pixel"]
    grid = master_grid(master)
    polynomial = master["polynomial"].values
    # Pixels at the ends of the fitted range reach half a pixel past it: where the model goes on,
    # so does the grid.
    good = np.convolve(master["constrained"].values, np.ones(3), "same") > 0
    good &= np.isfinite(polynomial).all(axis=1)
    spans = np.arange(*(np.flatnonzero(good)[[0, -1]] + [0, 1]))
    edges = (grid.edges[spans, None] + grid.widths[spans, None] * np.arange(steps) / steps).ravel()
    edges = np.append(edges, grid.edges[spans[-1] + 1])
    integrals = _Integrals.of(grid, polynomial)
    cells = integrals.mean(edges[:-1], edges[1:])
    # What no pixel was there to tell stays unknown.
    cells = np.where(np.repeat(good[spans], steps), cells, np.nan)
    rows = np.linspace(low, high, round((high - low) / step) + 1)
    units = master.attrs["units"]
    return xr.Dataset(
        {"sky": (("yrel", "wavelength"), np.tile(cells, (rows.size - 1, 1)), {"units": units})},
        {
            "wavelength": ("wavelength", 0.5 * (edges[:-1] + edges[1:]), {"units": "um"}),
            "yrel": ("yrel", 0.5 * (rows[:-1] + rows[1:]), {"units": "shutter pitch"}),
            "wavelength_edge": ("wavelength_edge", edges, {"units": "um"}),
            "yrel_edge": ("yrel_edge", rows, {"units": "shutter pitch"}),
        },
        attrs=sampled.attrs,
    )


def project_master(
    ds: xr.Dataset, master: xr.Dataset, *, method: str = "exact", heldout: bool = False
) -> xr.Dataset:
    """What the master predicts for each pixel of each slit. Lazy.

    Parameters
    ----------
    ds
        A slit dataset.
    master
        From `fit_master`, in the same units and configuration. Of a master with parts each slit
        gets its own part's, of one with a drift the sky of its own time; slits of a part or a time
        that was not fitted get NaN, with a warning.
    method
        ``"exact"``: mean over the pixel's wavelength range, from the antiderivative (pixel edges
        by cubic interpolation between the centres). ``"rebin2d"``: area-overlap rebin of
        `master_image`, over the pixel's quadrilateral in yrel and wavelength.
    heldout
        Predict each slit with the master fitted without it.

    Returns
    -------
    xarray.Dataset
        ``background`` and ``background_error`` (slit, y, x) float32, NaN outside the fitted range
        and outside the slit; with ``method="rebin2d"`` also ``coverage``, the fraction of each
        pixel that the grid covers.

    Raises
    ------
    DatasetError
        Where units or configuration differ, or a slit has no held-out master.
    ParameterError
        On an unknown method.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> background = mx.project_master(ds, mx.fit_master(ds))
    >>> background.background.dims
    ('slit', 'y', 'x')
    """
    validate(ds)
    grid = master_grid(master)
    for name, ours, theirs in (
        ("units", ds["flux"].attrs["units"], master.attrs["units"]),
        ("configuration", ds.attrs["configuration"], master.attrs["configuration"]),
    ):
        if ours != theirs:
            raise DatasetError(
                f"dataset and master differ in {name}",
                expected=ours,
                found=theirs,
                remedy="fit a master to data of the same configuration and units",
            )
    if method not in ("exact", "rebin2d"):
        raise ParameterError(
            "unknown method of projection", expected="'exact' or 'rebin2d'", found=method
        )
    if has_skies(master):
        project = partial(project_master, method=method, heldout=heldout)
        return over_skies(ds, master, project, need="heldout_polynomial" if heldout else None)
    polynomials, errors, inside, which = _masters(ds, master, heldout)
    applied = slit_terms(ds, master, heldout=heldout)
    of_slit = np.arange(ds.sizes["slit"])
    yrel = ds["yrel"].data
    response = ds["response"].data if "response" in ds.coords else None
    units = {"units": ds["flux"].attrs["units"]}
    wavelength = ds["wavelength"].data
    if method == "exact":
        stacked = map_slits(
            _project_block,
            ds["flux"],
            wavelength,
            yrel,
            which,
            of_slit,
            *([] if response is None else [response]),
            dtype=np.float32,
            outputs=2,
            applied=applied,
            grid=grid,
            integrals=_Integrals.of(grid, polynomials),
            constrained=inside,
            sky_error=errors,
        )
        names = ["background", "background_error"]
    else:
        if heldout:
            raise ParameterError(
                "held-out masters are projected exactly", expected="method='exact'", found=method
            )
        stacked = map_slits(
            _rebin_block,
            ds["flux"],
            wavelength,
            yrel,
            of_slit,
            *([] if response is None else [response]),
            dtype=np.float32,
            outputs=3,
            applied=applied,
            grid=grid,
            master=master.compute(),
        )
        names = ["background", "background_error", "coverage"]
    attrs = {
        "background": {"long_name": "master background", **units},
        "background_error": {"long_name": "standard error of the master background", **units},
        "coverage": {"long_name": "fraction of the pixel covered by the master", "units": "1"},
    }
    return xr.Dataset(
        {name: (PIXEL_DIMS, stacked[..., i], attrs[name]) for i, name in enumerate(names)}
    )


def _masters(
    ds: xr.Dataset, master: xr.Dataset, heldout: bool
) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.int64]]:
    """Span polynomials, their errors and ranges, and which of them each slit takes."""
    n = ds.sizes["slit"]
    if not heldout:
        names = ("polynomial", "sky_error", "constrained")
        values = [master[name].values[None] for name in names]
        return values[0], values[1], values[2], np.zeros(n, dtype=np.int64)
    if "heldout_polynomial" not in master:
        raise DatasetError(
            "the master was fitted to one slit only, and nothing could be held out",
            expected="heldout_polynomial",
            found="none",
        )
    rank = ranks_in(ds, master)
    strangers = np.flatnonzero(rank < 0)
    if strangers.size:
        raise DatasetError(
            "slit unknown to the master",
            where=str(tuple(ds[c].values[strangers[0]].item() for c in SLIT_IDENTITY)),
            expected="slits of the dataset the master was fitted to",
            found=f"{strangers.size} others",
        )
    which = master["group"].values[rank].astype(np.int64)
    return (
        master["heldout_polynomial"].values,
        master["heldout_error"].values,
        master["heldout_constrained"].values,
        which,
    )


class _Integrals:
    """Antiderivatives of span polynomials, for several masters at once."""

    def __init__(self, grid: SpanGrid, polynomials: Array, cumulative: Array):
        self.grid, self.polynomials, self.cumulative = grid, polynomials, cumulative

    @classmethod
    def of(cls, grid: SpanGrid, polynomials: Array) -> _Integrals:
        """From ``(span, 4)`` or ``(master, span, 4)`` polynomials."""
        p = np.atleast_3d(polynomials) if polynomials.ndim == 3 else polynomials[None]
        each = np.nan_to_num(p @ (1 / np.arange(1, 5))) * grid.widths
        cumulative = np.concatenate([np.zeros((p.shape[0], 1)), np.cumsum(each, axis=1)], axis=1)
        return cls(grid, np.ascontiguousarray(p, dtype=np.float64), cumulative)

    def mean(self, low: Array, high: Array) -> Array:
        """Mean of the first master over intervals (numpy twin of the pixel kernel)."""
        return (self._at(high) - self._at(low)) / (high - low)

    def _at(self, wavelength: Array) -> Array:
        u = self.grid.pixel_coordinate(wavelength)
        n = np.clip(np.nan_to_num(u).astype(int), 0, self.grid.size - 1)
        t = u - n
        c = np.nan_to_num(self.polynomials[0, n])
        part = t * (c[:, 0] + t * (c[:, 1] / 2 + t * (c[:, 2] / 3 + t * c[:, 3] / 4)))
        return self.cumulative[0, n] + self.grid.widths[n] * part


def _project_block(
    wavelength: NDArray,
    yrel: NDArray,
    which: NDArray,
    of_slit: NDArray,
    response: NDArray | None = None,
    *,
    applied: SlitTerms | None,
    grid: SpanGrid,
    integrals: _Integrals,
    constrained: NDArray,
    sky_error: Array,
) -> NDArray[np.float32]:
    out = np.full((*wavelength.shape, 2), np.nan, dtype=np.float32)
    _project_pixels(
        wavelength, which.ravel(), grid.edges, grid.lookup, grid.step,
        integrals.polynomials, integrals.cumulative, constrained, sky_error, out,
    )  # fmt: skip
    if applied is not None:
        applied.apply(out, wavelength, yrel, of_slit.ravel(), grid)
    return out if response is None else out * response[..., None]


@kernel(inline="always")
def _integral(wavelength, edges, lookup, step, polynomial, cumulative):  # pragma: no cover
    n, t = find_span(wavelength, edges, lookup, step)
    if n < 0:
        return np.nan
    c = polynomial[n]
    part = t * (c[0] + t * (c[1] / 2 + t * (c[2] / 3 + t * c[3] / 4)))
    return cumulative[n] + (edges[n + 1] - edges[n]) * part


@kernel
def _half_way(row, j, n):  # pragma: no cover - compiled
    """Wavelength half a pixel past column j, NaN where neither neighbour is known."""
    a = np.float64(row[j])
    b = np.float64(row[j + 1]) if j + 1 < n else np.nan
    before = np.float64(row[j - 1]) if j > 0 else np.nan
    after = np.float64(row[j + 2]) if j + 2 < n else np.nan
    if not np.isnan(a) and not np.isnan(b):
        if not np.isnan(before) and not np.isnan(after):
            return (9 * (a + b) - before - after) / 16
        return 0.5 * (a + b)
    if not np.isnan(a):
        return a + 0.5 * (a - before)
    return b - 0.5 * (after - b)


@kernel
def _project_pixels(
    wavelength, which, edges, lookup, step, polynomials, cumulative, constrained, sky_error, out
):  # pragma: no cover - compiled
    nodes = sky_error.shape[2]
    for s in range(wavelength.shape[0]):
        polynomial, cumulated = polynomials[which[s]], cumulative[which[s]]
        inside, errors = constrained[which[s]], sky_error[which[s]]
        for i in range(wavelength.shape[1]):
            row = wavelength[s, i]
            nx = row.shape[0]
            for j in range(nx):
                n, t = find_span(np.float64(row[j]), edges, lookup, step)
                if n < 0 or not inside[n]:
                    continue
                high = _half_way(row, j, nx)
                if j > 0:
                    low = _half_way(row, j - 1, nx)
                else:
                    low = 2 * np.float64(row[j]) - high
                if high == low:
                    continue
                total = _integral(high, edges, lookup, step, polynomial, cumulated)
                total -= _integral(low, edges, lookup, step, polynomial, cumulated)
                out[s, i, j, 0] = total / (high - low)
                k = int(t * nodes)
                f = t * nodes - k
                error = errors[n, k]
                if k + 1 < nodes:
                    following = errors[n, k + 1]
                elif n + 1 < errors.shape[0]:
                    following = errors[n + 1, 0]
                else:
                    following = error
                if np.isnan(following):
                    following = error
                out[s, i, j, 1] = error + f * (following - error)


def _rebin_block(
    wavelength: NDArray,
    yrel: NDArray,
    of_slit: NDArray,
    response: NDArray | None = None,
    *,
    applied: SlitTerms | None,
    grid: SpanGrid,
    master: xr.Dataset,
) -> NDArray[np.float32]:
    out = np.full((*wavelength.shape, 3), np.nan, dtype=np.float32)
    finite = yrel[np.isfinite(yrel)]
    if finite.size:
        image = master_image(master, yrel=(float(finite.min()) - 0.5, float(finite.max()) + 0.5))
        corners = pixel_corners(wavelength, yrel)
        mean, coverage = rebin2d(
            image["sky"].values,
            image["yrel_edge"].values,
            image["wavelength_edge"].values,
            corners[1],
            corners[0],
        )
        u = grid.pixel_coordinate(wavelength)
        n = np.clip(np.nan_to_num(u).astype(int), 0, grid.size - 1)
        inside = np.isfinite(u) & master["constrained"].values[n]
        out[..., 0] = np.where(inside, mean, np.nan)
        out[..., 1] = np.where(inside, error_at(master, grid, wavelength), np.nan)
        out[..., 2] = np.where(np.isfinite(wavelength), coverage, np.nan)
    if applied is not None:
        applied.apply(out, wavelength, yrel, of_slit.ravel(), grid)
    if response is not None:
        out[..., :2] *= response[..., None]
    return out
