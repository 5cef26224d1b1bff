"""The master spectrum as a dataset: what it holds, its value anywhere, and a fine sampling of it.

A master is a cubic polynomial on each span of one detector pixel, whatever model it came from, so
that evaluation, pixel means and antiderivatives are the same few lines for all models, and exact.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .differences import Differences
from .errors import DatasetError, ParameterError
from .models import ERROR_NODES, Fitted, pixel_mean
from .models.factor import LOSS
from .parts import has_parts, master_part
from .schema import SCHEMA_VERSION, SLIT_IDENTITY
from .spans import SpanGrid
from .terms import FIRST_SHUTTER, N_SHUTTERS
from .vetoes import EVIDENCE

__all__ = ["evaluate", "identity", "master_grid", "sample_master"]

Array = NDArray[np.float64]

#: Raised whenever masters get or lose something that is needed to subtract them.
MASTER_LAYOUT = 2


def build_master(
    fitted: Fitted,
    grid: SpanGrid,
    *,
    constrained: NDArray[np.bool_],
    heldout_constrained: NDArray[np.bool_],
    scatter: float,
    gain: Array,
    history: list[dict],
    slits: xr.Dataset,
    groups: NDArray[np.int64],
    pixels: NDArray[np.int64],
    differ: Differences,
    attrs: dict,
) -> xr.Dataset:
    """Put a fit into a dataset (see `fit_master` for what each variable means)."""
    units = attrs["units"]
    flux = {"units": units}
    data: dict = {
        "polynomial": (
            ("span", "power"),
            fitted.polynomial,
            {**flux, "long_name": "sky in powers of t within each span"},
        ),
        "expected": (
            ("span", "power"),
            fitted.expected,
            {**flux, "long_name": "pixel mean of the sky in powers of t within each span"},
        ),
        "sky_error": (
            ("span", "node"),
            fitted.sky_error * scatter,
            {**flux, "long_name": "standard error of the pixel mean"},
        ),
        "covariance_factor": (
            ("span", "node", "rank"),
            (fitted.factor * scatter).astype(np.float32),
            {
                **flux,
                "long_name": "factor of the covariance of the pixel mean along wavelength",
                "largest_loss_of_variance": LOSS,
            },
        ),
        "constrained": ("span", constrained, {"long_name": "span lies in the fitted range"}),
        "photon_gain": (
            "span",
            gain,
            {"long_name": "photon variance a unit of flux in 1000 s", "units": units},
        ),
        "coefficient": ("parameter", fitted.coefficient),
        "covariance": (("parameter", "parameter_2"), fitted.covariance * scatter**2),
        "knots": ("knot", fitted.knots, {"units": "um"}),
        "n_selected": ("slit", pixels[:, 0], {"long_name": "selected pixels"}),
        "n_used": ("slit", pixels[:, 1], {"long_name": "pixels left after clipping"}),
        "group": ("slit", groups, {"long_name": "what is left out together"}),
    }
    if not fitted.covariance.size:
        del data["covariance"]  # of a fit without held-out masters
    if fitted.heldout.size:
        data["heldout_polynomial"] = (
            ("leave_out", "span", "power"),
            fitted.heldout,
            {**flux, "long_name": "sky fitted without each group of slits"},
        )
        data["heldout_error"] = (
            ("leave_out", "span", "node"),
            fitted.heldout_error * scatter,
            {**flux, "long_name": "standard error of its pixel mean"},
        )
        data["heldout_constrained"] = (
            ("leave_out", "span"),
            heldout_constrained,
            {"long_name": "span lies in the range fitted without each group"},
        )
    data |= _difference_variables(differ, units)
    labels = np.array([str(row["label"]) for row in fitted.table])
    for key in fitted.table[0]:
        if key not in ("label", "criterion"):
            data[f"score_{key}"] = ("candidate", np.array([row[key] for row in fitted.table]))
    for key in history[0]:
        data[f"pass_{key}"] = ("pass", np.array([row[key] for row in history]))
    coords = {
        "edge": ("span_edge", grid.edges, {"units": "um", "long_name": "wavelength of span edges"}),
        "node": ("node", ERROR_NODES),
        "candidate": ("candidate", labels),
        **{k: ("slit", slits[k].values) for k in SLIT_IDENTITY},
        **_difference_coords(differ),
    }
    description = {k: v for k, v in fitted.description.items() if np.isfinite(float(v))}
    inside = np.flatnonzero(constrained)
    return xr.Dataset(
        data,
        coords,
        attrs={
            "mbkg_xr_schema": SCHEMA_VERSION,
            "master_layout": MASTER_LAYOUT,
            **attrs,
            **description,
            "dof": float(fitted.dof),
            "scatter": float(scatter),
            **_difference_attrs(differ),
            "chosen_by": fitted.table[0]["criterion"],
            "wavelength_range": [float(grid.edges[inside[0]]), float(grid.edges[inside[-1] + 1])],
        },
    )


def _difference_variables(differ: Differences, units: str) -> dict:
    """Scales, pedestals and profile, where they were found."""
    terms, scales = differ.terms, differ.scales
    out: dict = {}
    if scales is not None:
        about = "Legendre coefficients of the slit's scale less 1"
        out |= {
            "phase": ("span", terms.phase, {"long_name": "argument of the Legendre series"}),
            "scale": (("slit", "order"), scales.scale, {"long_name": about}),
            "scale_covariance": (("slit", "order", "order_2"), scales.covariance),
            "scale_without": (
                ("slit", "shutter", "order"),
                scales.without,
                {"long_name": about + ", found without one of its shutters"},
            ),
            "scale_without_covariance": (
                ("slit", "shutter", "order", "order_2"),
                scales.without_covariance,
            ),
            "shutter_level": (
                ("slit", "shutter"),
                scales.level,
                {"long_name": "what the shutter adds to its slit's scale"},
            ),
            "shutter_level_variance": (("slit", "shutter"), scales.level_variance),
            "shutter_level_slope": (
                ("slit", "shutter", "order"),
                scales.level_slope,
                {"long_name": "change of the level with the coefficients of the scale"},
            ),
            "shutter_used": (
                ("slit", "shutter"),
                scales.used,
                {"long_name": "shutter tells the slit's scale"},
            ),
            "shutter_excess": (
                ("slit", "shutter"),
                scales.excess,
                {"long_name": "level over what the slit's other shutters allow, in its errors"},
            ),
            "slit_used": (
                "slit",
                ~scales.veto.slit,
                {"long_name": "slit is not left out as a whole"},
            ),
            "slit_departure": (
                ("slit", "evidence"),
                scales.veto.departure,
                {"long_name": "departure of the slit from the middle of all, share of the sky"},
            ),
            "slit_departure_score": (
                ("slit", "evidence"),
                scales.veto.score,
                {"long_name": "the same in standard deviations"},
            ),
            "slit_departure_bin": (
                "slit",
                scales.veto.at,
                {"long_name": "wavelength bin of the last of its departures"},
            ),
            "scale_spread": (
                ("component", "order"),
                scales.spread,
                {"long_name": "standard deviation of slitlets, slits and exposures"},
            ),
            "pedestal": ("slit", terms.pedestal, {"long_name": "additive offset"}),
            "pedestal_shape": (
                "span",
                terms.pedestal_shape,
                {"units": units, "long_name": "flux of a pedestal of 1"},
            ),
        }
    if terms.profile.kinds and terms.profile.pedestal.size:
        out["pedestal_along"] = (
            ("kind", "yrel_node", "bin"),
            terms.profile.pedestal,
            {"long_name": "pedestal along the slit, 1 at shutter centres"},
        )
    if terms.profile.kinds:
        out |= {
            "profile": (
                ("kind", "yrel_node", "bin"),
                terms.profile.values,
                {"long_name": "uniform light along the slit, 1 at shutter centres"},
            ),
            "profile_error": (("kind", "yrel_node", "bin"), terms.profile.error),
            "profile_factor": (
                ("kind", "yrel_node", "profile_order", "profile_rank"),
                terms.profile.factor.astype(np.float32),
                {"long_name": "factor of the covariance of the profile's series in wavelength"},
            ),
            "profile_basis": (("bin", "profile_order"), terms.profile.basis),
        }
    return out


def _difference_coords(differ: Differences) -> dict:
    table = differ.terms.profile
    out: dict = {}
    if differ.scales is not None:
        out["shutter"] = ("shutter", FIRST_SHUTTER + np.arange(N_SHUTTERS))
        out["evidence"] = ("evidence", list(EVIDENCE))
        out["component"] = ("component", ["slitlet", "slit", "exposure"])
    if table.kinds:
        nodes = table.first + table.step * np.arange(table.values.shape[1])
        out["n_shutters"] = ("kind", np.array(table.kinds))
        out["yrel_node"] = ("yrel_node", nodes, {"units": "shutter pitch"})
    return out


def _difference_attrs(differ: Differences) -> dict:
    out: dict = {}
    if differ.scales is not None:
        out["leak"] = [float(v) for v in differ.scales.leak]
        out["shutter_spread"] = differ.scales.own_spread
        out["floor"] = differ.scales.floor
        out["slit_veto"] = float(differ.scales.veto.limit)
        out["slits_suspect"] = differ.scales.veto.suspect
    return out


def master_grid(master: xr.Dataset) -> SpanGrid:
    """The spans a master was fitted on.

    Raises
    ------
    DatasetError
        Where the dataset is not a master, or one laid out by another version of mbkg_xr.
    """
    if "polynomial" not in master or "edge" not in master.coords:
        raise DatasetError(
            "not a master spectrum",
            expected="a dataset from fit_master",
            found=" ".join(map(str, master.data_vars)) or "no variables",
        )
    layout = int(master.attrs.get("master_layout", 0))
    if layout != MASTER_LAYOUT:
        newer = layout > MASTER_LAYOUT
        raise DatasetError(
            "a master of another version of mbkg_xr",
            expected=f"layout {MASTER_LAYOUT}",
            found=f"layout {layout}",
            remedy="update mbkg_xr" if newer else "fit it anew",
        )
    return SpanGrid(master["edge"].values)


def identity(master: xr.Dataset) -> dict[str, Any]:
    """What a result says of the master it was made with, as attributes.

    Parameters
    ----------
    master
        From `fit_master`.

    Returns
    -------
    dict
        ``background_model``, ``background_slits`` and ``background_pixels`` (that it was fitted
        to), ``background_version`` (of mbkg_xr) and ``background_sha256``, a digest of all its
        numbers: the same for the same master, saved and opened again included.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> identity(mx.fit_master(ds))["background_slits"]
    8
    """
    digest = hashlib.sha256()
    for name in sorted(map(str, master.variables)):
        values = master[name].values
        if values.dtype.kind in "fiub":
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    used = master["n_used"].values
    if has_parts(master):
        chosen = [f"{master.sizes['part']} fits by {master.attrs['by']}"]
    else:
        chosen = master["candidate"].values[np.flatnonzero(master["score_chosen"].values)].tolist()
    return {
        "background_model": ", ".join([str(master.attrs["model"]), *map(str, chosen)]),
        "background_slits": int((used > 0).sum()),
        "background_pixels": int(used.sum()),
        "background_sha256": digest.hexdigest(),
        "background_version": version("mbkg_xr"),
    }


def evaluate(master: xr.Dataset, wavelength: ArrayLike, *, mean: bool = False) -> Array:
    """The master at given wavelengths.

    Parameters
    ----------
    master
        From `fit_master`.
    wavelength
        In um, of any shape.
    mean
        The mean over one detector pixel around each wavelength, instead of the sky itself.

    Returns
    -------
    numpy.ndarray
        In the master's units; NaN outside the fitted range. Of a master with parts, one row each.

    Raises
    ------
    DatasetError
        Where `master` is no master, or one of another layout.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> bool(mx.evaluate(master, 2.0) > 0), bool(np.isnan(mx.evaluate(master, 9.0)))
    (True, True)
    """
    grid = master_grid(master)
    polynomial = master["polynomial"].values
    if mean:
        polynomial = pixel_mean(polynomial)
    polynomial = np.where(master["constrained"].values[..., None], polynomial, np.nan)
    u = grid.pixel_coordinate(wavelength)
    n = np.clip(np.nan_to_num(u).astype(int), 0, grid.size - 1)
    t = u - n
    c = polynomial[..., n, :]
    return ((c[..., 3] * t + c[..., 2]) * t + c[..., 1]) * t + c[..., 0]


def sample_master(master: xr.Dataset, *, tolerance: float = 1e-3) -> xr.Dataset:
    """The master on a wavelength grid so fine that linear interpolation loses next to nothing.

    Each span is divided into the same number of steps of h detector pixels. Linear interpolation
    errs by at most ``h^2 / 8 max|S''|``, and a pixel that cuts through cells of constant sky by
    ``h^2 / 8 max|S'|``; the number of steps is the least that keeps both under `tolerance` of the
    sky everywhere, lines included.

    Parameters
    ----------
    master
        From `fit_master`.
    tolerance
        Largest loss by linear interpolation, as a fraction of the local sky.

    Returns
    -------
    xarray.Dataset
        ``sky(wavelength)`` and its standard error ``sky_error(wavelength)``, over the fitted
        range, with ``attrs["steps_per_pixel"]`` and ``attrs["sampling_loss"]`` (the largest loss
        reached, a fraction of the local sky). Of a master with parts, both by ``part``, too.

    Raises
    ------
    ParameterError
        If the tolerance is not between 0 and 1.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> fine = mx.sample_master(mx.fit_master(ds))
    >>> fine.attrs["sampling_loss"] < 1e-3
    True
    """
    if not 0 < tolerance < 1:
        raise ParameterError(
            "unusable tolerance", expected="a number between 0 and 1", found=tolerance
        )
    master_grid(master)  # refuses what is no master
    if not has_parts(master):
        worst = _worst_loss(master)
        return _sampled(master, worst, _steps(worst, tolerance))
    parts = [master_part(master, value) for value in master["part"].values]
    worst = max(map(_worst_loss, parts))
    each = [_sampled(part, worst, _steps(worst, tolerance)) for part in parts]
    part = master["part"].variable
    return xr.concat(each, "part", join="outer").assign_coords(part=part)


def _steps(worst: float, tolerance: float) -> int:
    return max(2, int(np.ceil(np.sqrt(worst / tolerance))))


def _worst_loss(master: xr.Dataset) -> float:
    """Largest loss by linear interpolation over steps of a whole span."""
    c = master["polynomial"].values[master["constrained"].values]
    # A cubic's derivatives are close to largest at an end of the span, or in its middle.
    at = np.array([0.0, 0.5, 1.0])
    slope = np.abs(c[:, 1:2] + 2 * c[:, 2:3] * at + 3 * c[:, 3:4] * at**2).max(axis=1)
    curvature = np.abs(2 * c[:, 2:3] + 6 * c[:, 3:4] * at).max(axis=1)
    level = np.abs(c @ 0.5 ** np.arange(4))
    # Where the sky itself is next to nothing a fraction of it says nothing: count the loss there
    # against a hundredth of the typical sky.
    level = np.maximum(level, 0.01 * np.median(level))
    return float((np.maximum(curvature, slope) / level).max()) / 8


def _sampled(master: xr.Dataset, worst: float, steps: int) -> xr.Dataset:
    grid = master_grid(master)
    spans = np.flatnonzero(master["constrained"].values)
    c = master["polynomial"].values[spans]
    t = np.arange(steps) / steps
    wavelength = (grid.edges[spans, None] + grid.widths[spans, None] * t).ravel()
    sky = (c @ np.vander(t, 4, increasing=True).T).ravel()
    wavelength = np.append(wavelength, grid.edges[spans[-1] + 1])
    sky = np.append(sky, c[-1].sum())
    # A gap is a gap: NaN at its first edge, so that nobody interpolates over it.
    ends = spans[:-1][np.diff(spans) > 1] + 1
    at = np.searchsorted(wavelength, grid.edges[ends])
    wavelength, sky = np.insert(wavelength, at, grid.edges[ends]), np.insert(sky, at, np.nan)
    units = master.attrs["units"]
    return xr.Dataset(
        {
            "sky": ("wavelength", sky, {"units": units}),
            "sky_error": ("wavelength", error_at(master, grid, wavelength), {"units": units}),
        },
        {"wavelength": ("wavelength", wavelength, {"units": "um"})},
        attrs={
            "configuration": master.attrs["configuration"],
            "steps_per_pixel": steps,
            "sampling_loss": worst / steps**2,
        },
    )


def error_at(master: xr.Dataset, grid: SpanGrid, wavelength: Array) -> Array:
    """Standard error of the sky, linear between the nodes; not cut to the fitted range."""
    nodes = (np.arange(grid.size)[:, None] + ERROR_NODES).ravel()
    error = master["sky_error"].values.ravel()
    good = np.isfinite(error)
    return np.interp(grid.pixel_coordinate(wavelength), nodes[good], error[good])
