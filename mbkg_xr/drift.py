"""A sky that changes smoothly with time: what may be asked for, and the sky at one time.

The sky of an exposure at mjd is ``S(l, t) = sum_k P_k(tau) S_k(l)``, P_k Legendre polynomials of
tau, which is -1 at the first and 1 at the last exposure: S_0 is the mean over that time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .differences import Differences
from .errors import DatasetError, ParameterError
from .models import Drifted, pixel_mean
from .schema import slit_label

__all__ = [
    "Clock",
    "Drift",
    "drift_variables",
    "has_drift",
    "master_at",
    "with_drift",
    "without_trend",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How the sky may change with time, from exposure to exposure.

    Parameters
    ----------
    order
        Degree in time: 1 is a steady change.
    penalties
        Candidates of the penalty of the change, relative to the mean sky, in wavelength: the
        larger, the smoother. No change at all is always a candidate, and is chosen unless a change
        predicts slits left out of the fit better, by more than one standard error.

    Raises
    ------
    ParameterError
        On values that make no sense.

    Examples
    --------
    >>> Drift(order=2).order
    2
    """

    order: int = 1
    penalties: tuple[float, ...] = tuple(10.0**k for k in range(0, 8))

    def __post_init__(self) -> None:
        if not (isinstance(self.order, int) and 1 <= self.order <= 4):
            raise ParameterError(
                "unusable drift", where="order", expected="1 to 4", found=self.order
            )
        if not self.penalties or not all(p > 0 and np.isfinite(p) for p in self.penalties):
            raise ParameterError(
                "unusable drift",
                where="penalties",
                expected="positive numbers",
                found=self.penalties,
            )


@dataclass(frozen=True)
class Clock:
    """Time of a fit: the middle of its range and half of it, in days, and the degree."""

    middle: float
    half: float
    order: int

    @classmethod
    def of(cls, ds: xr.Dataset, order: int) -> Clock:
        """The range of a dataset's slits."""
        mjd = ds["mjd"].values
        unknown = np.flatnonzero(~np.isfinite(mjd))
        if unknown.size:
            raise ParameterError(
                "no drift without times",
                where=slit_label(ds, int(unknown[0])),
                expected="mjd of every slit",
                found=f"{unknown.size} slits without",
            )
        times = np.unique(mjd).size
        if times <= order:
            raise ParameterError(
                "too few exposures for a drift",
                where="mjd",
                expected=f"more than {order} different times",
                found=times,
                remedy="lower the order, or fit without drift",
            )
        low, high = float(mjd.min()), float(mjd.max())
        return cls(0.5 * (low + high), 0.5 * (high - low), order)

    @classmethod
    def of_master(cls, master: xr.Dataset) -> Clock:
        """That of a master, or of its moments."""
        middle, half = master.attrs["drift_mjd"]
        return cls(float(middle), float(half), int(master.attrs["drift_order"]))

    def tau(self, mjd: NDArray) -> Array:
        """-1 to 1 over the range."""
        return (np.asarray(mjd, dtype=np.float64) - self.middle) / self.half

    def inside(self, mjd: NDArray) -> NDArray[np.bool_]:
        """Whether times lie in the range, to a second."""
        with np.errstate(invalid="ignore"):
            return np.abs(np.asarray(mjd) - self.middle) <= self.half + 1 / 86400

    def functions(self, mjd: NDArray) -> Array:
        """``(slit, order + 1)``, the functions of time at each slit's; the first is 1."""
        tau = np.clip(np.nan_to_num(self.tau(mjd)), -1, 1)
        return np.asarray(legendre.legvander(tau, self.order), dtype=np.float64)


def without_trend(found: Differences, functions: Array, weight: Array) -> Differences:
    """Scales and pedestals without what follows time as the drift may: that is the drift's.

    A sky that grows and slits that all gain throughput are the same pixels. `functions (slit, k)`
    are those of time, `weight (slit,)` how much each slit counts in the master.
    """
    if found.scales is None or not weight.any():
        return found
    w = weight / weight.sum()
    centred = functions[:, 1:] - w @ functions[:, 1:]
    gram = centred.T @ (w[:, None] * centred)

    def trend(values: Array) -> Array:
        """Weighted regression on time, the mean staying as it is."""
        flat = values.reshape(values.shape[0], -1)
        slope = np.linalg.lstsq(gram, centred.T @ (w[:, None] * flat), rcond=1e-12)[0]
        return (centred @ slope).reshape(values.shape)

    off = trend(found.scales.scale)
    scales = replace(
        found.scales,
        scale=found.scales.scale - off,
        without=found.scales.without - off[:, None],
        pedestal=found.scales.pedestal - trend(found.scales.pedestal),
    )
    terms = replace(found.terms, scale=scales.scale, pedestal=scales.pedestal)
    return replace(found, terms=terms, scales=scales)


def drift_variables(drifted: Drifted, clock: Clock, scatter: float, units: str) -> xr.Dataset:
    """What a master with a drift holds beside the mean sky: see `fit_master`."""
    rows = drifted.table
    data = {
        f"drift_score_{key}": ("drift_candidate", np.array([row[key] for row in rows]))
        for key in rows[0]
        if key not in ("label", "criterion")
    }
    coords = {"drift_candidate": [str(row["label"]) for row in rows]}
    out = xr.Dataset(data, coords)
    if not drifted.changes:
        return out
    flux = {"units": units}
    names = ("span", "node")
    out["drift_polynomial"] = (
        ("drift_term", "span", "power"),
        drifted.polynomial,
        {**flux, "long_name": "change of the sky with the functions of time"},
    )
    out["drift_covariance"] = (
        ("term", "term_2", *names),
        drifted.covariance * scatter**2,
        {"long_name": "covariance of the terms of the pixel mean"},
    )
    out["drift_factor"] = (
        ("drift_term", *names, "rank"),
        (drifted.factor[1:] * scatter).astype(np.float32),
        {**flux, "long_name": "factor of the covariance of the change, as covariance_factor"},
    )
    if drifted.heldout.size:
        out["heldout_drift"] = (
            ("leave_out", "drift_term", "span", "power"),
            drifted.heldout[:, 1:],
            {**flux, "long_name": "change fitted without each group of slits"},
        )
        out["heldout_drift_covariance"] = (
            ("leave_out", "term", "term_2", *names),
            drifted.heldout_covariance * scatter**2,
        )
    return out.assign_attrs(
        drift_order=clock.order,
        drift_mjd=[clock.middle, clock.half],
        drift_penalty=drifted.penalty,
    )


def with_drift(master: xr.Dataset, more: xr.Dataset) -> xr.Dataset:
    """A master with what `drift_variables` says."""
    return master.assign(more.data_vars).assign_coords(more.coords).assign_attrs(more.attrs)


def has_drift(master: xr.Dataset) -> bool:
    """Whether a master changes with time."""
    return "drift_polynomial" in master


def master_at(master: xr.Dataset, mjd: float) -> xr.Dataset:
    """The master at one time, of a fit with a drift.

    Parameters
    ----------
    master
        From ``fit_master(drift=...)``.
    mjd
        Within the time of the exposures it was fitted to.

    Returns
    -------
    xarray.Dataset
        A master without drift: its sky, and the sky's error at that time.

    Raises
    ------
    DatasetError
        Where the master does not change with time.
    ParameterError
        Where the time is outside that of the fit: nothing is extrapolated.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=6, background_slits=6, sky_trend=(0.3, 0.3))
    >>> master = mx.fit_master(mx.select_background(ds), drift=mx.Drift())
    >>> first, last = (mx.master_at(master, t) for t in (ds.mjd[0], ds.mjd[-1]))
    >>> round(float(mx.evaluate(last, 2.0) / mx.evaluate(first, 2.0)), 1)
    1.4
    """
    if not has_drift(master):
        raise DatasetError(
            "a master that does not change with time",
            expected="a dataset from fit_master(drift=...), with a drift found",
            found=f"model {master.attrs.get('model')}",
        )
    clock = Clock.of_master(master)
    mjd = float(mjd)
    if not clock.inside(np.array(mjd)):
        raise ParameterError(
            "outside the time of the fit",
            where="mjd",
            expected=f"{clock.middle - clock.half:.5f} to {clock.middle + clock.half:.5f}",
            found=mjd,
            remedy="fit a master to exposures of that time",
        )
    phi = clock.functions(np.array([mjd]))[0]
    polynomial = master["polynomial"] + _sum(phi[1:], master["drift_polynomial"])
    new = {
        "polynomial": polynomial,
        "expected": polynomial.copy(data=pixel_mean(polynomial.values)),
        "sky_error": _error(phi, master["drift_covariance"], master["sky_error"]),
    }
    if "heldout_drift" in master:
        new["heldout_polynomial"] = master["heldout_polynomial"] + _sum(
            phi[1:], master["heldout_drift"]
        )
        new["heldout_error"] = _error(
            phi, master["heldout_drift_covariance"], master["heldout_error"]
        )
    new["covariance_factor"] = master["covariance_factor"] + _sum(phi[1:], master["drift_factor"])
    for name, value in new.items():
        new[name] = value.transpose(*master[name].dims).assign_attrs(master[name].attrs)
    changing = ("drift_", "heldout_drift", "weight_drift")
    gone = [n for n in master.variables if str(n).startswith(changing)]
    out = master.drop_vars(gone).assign(new)
    out.attrs = {
        k: v for k, v in master.attrs.items() if not k.startswith(("drift_", "weight_mjd"))
    }
    return out.assign_attrs(mjd=mjd)


def _sum(phi: Array, terms: xr.DataArray) -> xr.DataArray:
    return (terms * xr.DataArray(phi, dims="drift_term")).sum("drift_term", skipna=False)


def _error(phi: Array, covariance: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    a, b = xr.DataArray(phi, dims="term"), xr.DataArray(phi, dims="term_2")
    variance = (covariance * a * b).sum(("term", "term_2"), skipna=False).transpose(*like.dims)
    return variance.copy(data=np.sqrt(np.maximum(variance.values, 0)))
