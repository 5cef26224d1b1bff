"""Products that others subtracted, laid on the pixels of a result: the same slits, side by side."""

from __future__ import annotations

import warnings
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .blocks import map_slits
from .errors import DatasetError, ParameterError
from .nods import nod_errors
from .quality import do_not_use
from .schema import PIXEL_DIMS, SLIT_IDENTITY, slit_label
from .subtract import before_subtraction

__all__ = ["NOD_ERRORS", "laid_on"]

#: What is done with the errors of products that others nodded.
NOD_ERRORS = ("auto", "given", "grow")

_SAMPLE = 64  # slits that wavelengths and errors are compared on
_APART = 2.0  # pixels: more than the shift of a point source's wavelengths
_GROWN = 1.06  # nodding with 8 other nods, the largest number in use, makes errors grow so much
_NAMED = 3  # slits a warning names


def laid_on(result: xr.Dataset, given: xr.Dataset, *, errors: str = "auto") -> xr.Dataset:
    """Lay already subtracted slits on the slits and pixels of a result. Lazy, but for a check.

    Slits are matched by exposure, detector and slitlet, pixels by detector row and column, so that
    other orders and cut-outs of other sizes do. The wavelengths and errors of up to 64 slits are
    read to make sure that the pixels are the same, and to see whether the errors grew.

    Parameters
    ----------
    result
        From `mbkg_xr.subtract`, before or after `mbkg_xr.residuals`.
    given
        Slits whose background others subtracted.
    errors
        What is done with the errors of `given`. ``"given"``: nothing. ``"grow"``: the standard
        error of the mean of the other nods is added, from the errors in `result`; the official
        pipeline (3.0, and those before) subtracts nods and leaves ERR as it was. ``"auto"``: grow
        them where they are those of single pixels.

    Returns
    -------
    xarray.Dataset
        The slits of `result` with the flux, errors and quality of `given`; NaN and DO_NOT_USE
        where those have no such slit or pixel. ``attrs["nod_errors"]`` says what was done.

    Raises
    ------
    DatasetError
        Where no slit is in both, units differ, or pixels do not lie together.
    ParameterError
        On an unknown choice of `errors`.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=2, background_slits=2)
    >>> nods = mx.subtract_nods(ds)
    >>> given = nods.drop_vars(["background", "background_error"])
    >>> given = given.assign_coords(subtracted=("slit", ["S_BKDSUB"] * ds.sizes["slit"]))
    >>> out = laid_on(nods, given.isel(slit=slice(None, None, -1)))
    >>> float(abs(out.flux - nods.flux).max()), out.attrs["nod_errors"]
    (0.0, 'as given')
    """
    if errors not in NOD_ERRORS:
        raise ParameterError(
            "unknown treatment of errors", expected=" or ".join(NOD_ERRORS), found=errors
        )
    _check_units(result, given)
    partner = _partners(result, given)
    out = _placed(result, given, partner)
    before = before_subtraction(result)
    sample = _sample(before, out, np.flatnonzero(partner >= 0))
    _check_wavelengths(sample)
    if errors == "auto":
        errors = "given" if _have_grown(sample) else "grow"
    if errors == "grow":
        more = nod_errors(before)
        grown = map_slits(np.hypot, out["error"], out["error"].data, more.data, dtype=np.float32)
        out["error"] = (PIXEL_DIMS, grown, out["error"].attrs)
    how = {"given": "as given", "grow": "as given, and those of the other nods"}[errors]
    return out.drop_vars("given_wavelength").assign_attrs(
        background_method="subtracted before", nod_errors=how
    )


def _check_units(result: xr.Dataset, given: xr.Dataset) -> None:
    units = [str(ds["flux"].attrs["units"]) for ds in (result, given)]
    if units[0] != units[1]:
        raise DatasetError(
            "results in different units",
            where=slit_label(given, 0),
            expected=units[0],
            found=units[1],
            remedy="compare products that were calibrated alike",
        )


def _partners(result: xr.Dataset, given: xr.Dataset) -> NDArray[np.int64]:
    """Index of each slit's partner, -1 for none. Says which have none."""
    keys = [list(zip(*(ds[c].values.tolist() for c in SLIT_IDENTITY), strict=True))
            for ds in (result, given)]  # fmt: skip
    position = {key: i for i, key in enumerate(keys[1])}
    partner = np.array([position.get(key, -1) for key in keys[0]], dtype=np.int64)
    if not (partner >= 0).any():
        raise DatasetError(
            "no slit in common",
            where=slit_label(given, 0),
            expected="exposure, detector and slitlet as in " + " ".join(map(str, keys[0][0])),
            found=" ".join(map(str, keys[1][0])),
            remedy="give products of the same exposures",
        )
    lonely = {
        "of the result have no partner among the products given": (
            result, np.flatnonzero(partner < 0)
        ),
        "of the products given are not in the result": (
            given, np.setdiff1d(np.arange(len(keys[1])), partner)
        ),
    }  # fmt: skip
    for text, (ds, index) in lonely.items():
        if index.size:
            names = ", ".join(slit_label(ds, int(i)) for i in index[:_NAMED])
            more = " ..." if index.size > _NAMED else ""
            warnings.warn(
                f"{index.size} of {ds.sizes['slit']} slits {text}, and are left out of the "
                f"comparison: {names}{more}",
                stacklevel=2,
            )
    return partner


def _placed(result: xr.Dataset, given: xr.Dataset, partner: NDArray[np.int64]) -> xr.Dataset:
    """Pixels of the partners where the result has the same detector pixels."""
    # Slits without a partner get some other's pixels here, and nothing of it below.
    index = np.maximum(partner, 0)
    in_order = np.array_equal(index, np.arange(given.sizes["slit"]))
    rows, columns = (
        result[name].values - given[name].values[index] for name in ("y_start", "x_start")
    )
    template = result["flux"]
    fills: dict[str, Any] = {
        **dict.fromkeys(("flux", "error", "wavelength", "response"), np.nan),
        "quality": do_not_use(given["quality"]),
    }
    planes = {}
    for name, fill in fills.items():
        if name not in given.variables:
            continue
        data = given[name].data if in_order else given[name].data[index]
        if isinstance(data, da.Array) and not isinstance(template.data, da.Array):
            data = data.compute()
        planes[name] = map_slits(
            _shifted, template, data, rows, columns, partner >= 0,
            dtype=given[name].dtype, fill=fill, shape=template.shape[1:],
        )  # fmt: skip
    # Slits may have been calibrated as a point here and as extended there.
    if "response" in planes:
        planes["flux"], planes["error"] = (
            planes[n] / planes["response"] for n in ("flux", "error")
        )
    if "response" in result.coords:
        response = result["response"].data
        planes["flux"], planes["error"] = (planes[n] * response for n in ("flux", "error"))
    said = given["subtracted"].values.astype(str)[index]
    out = result.drop_vars(
        ["background", "background_error", "residual", "quality"], errors="ignore"
    )
    out["flux"] = (PIXEL_DIMS, planes["flux"], template.attrs)
    out["error"] = (PIXEL_DIMS, planes["error"], result["error"].attrs)
    return out.assign_coords(
        quality=(PIXEL_DIMS, planes["quality"], given["quality"].attrs),
        given_wavelength=(PIXEL_DIMS, planes["wavelength"]),
        subtracted=("slit", np.where(partner >= 0, said, "no partner")),
    )


def _shifted(plane, rows, columns, present, *, fill, shape):
    out = np.full((plane.shape[0], *shape), fill, dtype=plane.dtype)
    steps = (r.ravel().tolist() for r in (rows, columns, present))
    for slot, source, dy, dx, there in zip(out, plane, *steps, strict=True):
        if not there:
            continue
        (y, sy), (x, sx) = (
            (slice(max(0, -d), max(0, min(n, m - d))), slice(max(0, d), max(0, min(m, n + d))))
            for d, n, m in zip((dy, dx), shape, plane.shape[1:], strict=True)
        )
        slot[y, x] = source[sy, sx]
    return out


def _sample(before: xr.Dataset, out: xr.Dataset, index: NDArray) -> xr.Dataset:
    """Wavelengths and errors of both in some slits that have a partner. Computes."""
    some = index[np.linspace(0, index.size - 1, min(index.size, _SAMPLE)).astype(int)]
    columns = {
        "wavelength": before["wavelength"],
        "given_wavelength": out["given_wavelength"],
        "error": before["error"],
        "given_error": out["error"],
        "quality": out["quality"],
    }
    both = xr.Dataset({name: column.variable for name, column in columns.items()})
    names = [slit_label(before, int(i)) for i in some]
    return both.isel(slit=some).compute().assign_coords(label=("slit", names))


def _check_wavelengths(sample: xr.Dataset) -> None:
    """The same detector pixel sees the same wavelength, whoever calibrated it."""
    for i in range(sample.sizes["slit"]):
        own, given = (
            sample[name].values[i].astype(float) for name in ("wavelength", "given_wavelength")
        )
        both = np.isfinite(own) & np.isfinite(given)
        step = np.nanmedian(np.abs(np.diff(own, axis=1)))
        apart = np.median(np.abs(own - given)[both]) / step if both.any() else np.inf
        if apart > _APART:
            raise DatasetError(
                "the same detector pixels have different wavelengths",
                where=str(sample["label"].values[i]),
                expected=f"less than {_APART:.0f} pixels apart",
                found=f"{apart:.0f} pixels" if both.any() else "no pixel in common",
                remedy="check the first row and column of the cut-outs (y_start, x_start)",
            )


def _have_grown(sample: xr.Dataset) -> bool:
    """Whether errors hold those of the nods that were subtracted."""
    own, given, quality = (sample[n].values for n in ("error", "given_error", "quality"))
    bad = quality.dtype.type(do_not_use(sample["quality"]))
    with np.errstate(invalid="ignore"):
        good = (own > 0) & (given > 0) & ((quality & bad) == 0)
    return bool(np.median(given[good] / own[good]) > _GROWN) if good.any() else True
