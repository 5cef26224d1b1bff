"""The master on each slit's own pixels.

Two ways that agree: the exact mean of the model over each pixel, from its antiderivative, and the
area-overlap rebin (`rebin2d`) of the two-dimensional master, constant along the slit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .background import project_pixels
from .blocks import map_slits
from .errors import DatasetError, ParameterError
from .master import error_at, master_grid, sample_master
from .parts import require_one_sky
from .rebin import pixel_corners, rebin2d
from .schema import PIXEL_DIMS, SLIT_IDENTITY, validate
from .skies import has_skies, over_skies
from .slit_terms import SlitTerms, ranks_in, slit_terms
from .spans import SpanGrid

__all__ = [
    "NO_RESPONSE",
    "ExactMaster",
    "check_master",
    "exact_master",
    "master_image",
    "named",
    "project_master",
]

Array = NDArray[np.float64]

#: What kernels take where all pixels are calibrated for uniform sky.
NO_RESPONSE = np.empty((0, 0, 0), dtype=np.float32)


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
        On an unknown method, or ``rebin2d`` of held-out masters.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> background = mx.project_master(ds, mx.fit_master(ds))
    >>> background.background.dims
    ('slit', 'y', 'x')
    """
    check_master(ds, master)
    if method not in ("exact", "rebin2d"):
        raise ParameterError(
            "unknown method of projection", expected="'exact' or 'rebin2d'", found=method
        )
    if has_skies(master):
        project = partial(project_master, method=method, heldout=heldout)
        return over_skies(ds, master, project, need="heldout_polynomial" if heldout else None)
    if method == "exact":
        arrays, exact = exact_master(ds, master, heldout=heldout)
        made = map_slits(
            _project_block, ds["flux"], *arrays, dtype=(np.float32, np.float32), exact=exact
        )
    else:
        if heldout:
            raise ParameterError(
                "held-out masters are projected exactly", expected="method='exact'", found=method
            )
        made = map_slits(
            _rebin_block,
            ds["flux"],
            ds["wavelength"].data,
            ds["yrel"].data,
            np.arange(ds.sizes["slit"]),
            *([ds["response"].data] if "response" in ds.coords else []),
            dtype=(np.float32, np.float32, np.float32),
            applied=slit_terms(ds, master),
            grid=master_grid(master),
            master=master.compute(),
        )
    return named(made, ds["flux"].attrs["units"])


def named(made: Sequence[Any], units: str) -> xr.Dataset:
    """Background, its error, and perhaps the coverage, as variables."""
    about = {
        "background": {"long_name": "master background", "units": units},
        "background_error": {
            "long_name": "standard error of the master background",
            "units": units,
        },
        "coverage": {"long_name": "fraction of the pixel covered by the master", "units": "1"},
    }
    return xr.Dataset(
        {
            name: (PIXEL_DIMS, values, attrs)
            for values, (name, attrs) in zip(made, about.items(), strict=False)
        }
    )


def check_master(ds: xr.Dataset, master: xr.Dataset) -> None:
    """Refuse what is no master, or that of other slits than these."""
    validate(ds)
    master_grid(master)
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


@dataclass(frozen=True)
class ExactMaster:
    """All that the kernels of `mbkg_xr.background` take beside pixels.

    Attributes
    ----------
    grid, terms
        The spans, and what differs from slit to slit.
    masters
        Antiderivatives of the sky in powers of t ``(master, span, 5)``, fitted ranges ``(master,
        span)`` and errors ``(master, span, node)``.
    """

    grid: SpanGrid
    masters: tuple[Array, NDArray[np.bool_], Array]
    terms: SlitTerms

    def arguments(self, which: NDArray, slits: NDArray) -> tuple:
        """Of some slits."""
        spans = (self.grid.edges, self.grid.lookup, self.grid.step)
        return which.ravel(), spans, self.masters, self.terms.arrays(slits.ravel())


def exact_master(
    ds: xr.Dataset, master: xr.Dataset, *, heldout: bool
) -> tuple[list[Any], ExactMaster]:
    """The master of each slit, its number, its pixels' place and response, and what goes there."""
    polynomials, errors, inside, which = _masters(ds, master, heldout)
    grid = master_grid(master)
    integrals = _Integrals.of(grid, polynomials)
    n = ds.sizes["slit"]
    terms = slit_terms(ds, master, heldout=heldout) or SlitTerms.none(n, grid.size)
    arrays = [which, np.arange(n), ds["wavelength"].data, ds["yrel"].data]
    if "response" in ds.coords:
        arrays.append(ds["response"].data)
    inside, errors = np.ascontiguousarray(inside), np.ascontiguousarray(errors)
    return arrays, ExactMaster(grid, (integrals.powers(), inside, errors), terms)


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

    def powers(self) -> Array:
        """``(master, span, 5)``, in powers of t."""
        rising = self.polynomials / np.arange(1, 5) * self.grid.widths[:, None]
        return np.concatenate([self.cumulative[:, :-1, None], rising], axis=2)

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
    which: NDArray,
    slits: NDArray,
    wavelength: NDArray,
    yrel: NDArray,
    response: NDArray = NO_RESPONSE,
    *,
    exact: ExactMaster,
) -> tuple[NDArray, NDArray]:
    background, error = (np.empty(wavelength.shape, dtype=np.float32) for _ in range(2))
    pixels = (np.ascontiguousarray(a) for a in (wavelength, yrel, response))
    project_pixels(*pixels, *exact.arguments(which, slits), background, error)
    return background, error


def _rebin_block(
    wavelength: NDArray,
    yrel: NDArray,
    of_slit: NDArray,
    response: NDArray | None = None,
    *,
    applied: SlitTerms | None,
    grid: SpanGrid,
    master: xr.Dataset,
) -> tuple[NDArray, NDArray, NDArray]:
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
    return out[..., 0], out[..., 1], out[..., 2]
