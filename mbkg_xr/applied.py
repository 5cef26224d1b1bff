"""What a fit did to the pixels, kept in its master, so that it can be done again.

Weights, clipping and what differs from slit to slit: with them any pixels, those of the fit or
others, become moments on the scale of that master.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .drift import Clock
from .errors import DatasetError
from .moments import PassState
from .parts import require_one_sky
from .robust import RULES
from .slit_terms import profile_table, ranks_in
from .spans import SpanGrid
from .terms import BIN_SPANS, N_SHUTTERS, Terms

__all__ = [
    "APPLIED_ATTRS",
    "applied_state",
    "applied_terms",
    "applied_variables",
    "as_master_variables",
    "digest",
    "of_slits",
    "require_applied",
    "shared",
]

Array = NDArray[np.float64]

#: Of the weights and the clipping, by span.
_STATE = ("weight_model", "photon_gain", "read_floor", "clip_centre", "clip_cut", "read_class_gain")
#: Of what differs from slit to slit: common to all, and one row a slit.
_COMMON = (
    "phase",
    "pedestal_shape",
    "scale_spread",
    "profile",
    "profile_error",
    "profile_factor",
    "profile_basis",
    "pedestal_along",
    "weight_drift",
)
_SLIT = (
    "scale",
    "scale_covariance",
    "scale_without",
    "scale_without_covariance",
    "shutter_level",
    "shutter_level_variance",
    "shutter_level_slope",
    "shutter_used",
    "shutter_excess",
    "slit_used",
    "slit_departure",
    "slit_departure_score",
    "slit_departure_bin",
    "pedestal",
    "source_share",
    "source_light",
)
_COORDS = ("edge", "node", "shutter", "component", "yrel_node")
APPLIED_ATTRS = (
    "rows",
    "weights",
    "clip",
    "clip_unit",
    "scatter",
    "leak",
    "shutter_spread",
    "floor",
    "slit_veto",
    "slits_suspect",
    "weight_mjd",
)


def applied_variables(state: PassState, terms: Terms, units: str) -> dict[str, Any]:
    """Variables of a master that are not there for another reason."""
    flux = {"units": units}
    out: dict[str, Any] = {
        "weight_model": (
            ("span", "power"),
            state.model,
            {**flux, "long_name": "sky that weights and clipping refer to, in powers of t"},
        ),
        "read_floor": (
            "span",
            state.floor,
            {"long_name": "read variance where pixels do not give it", "units": f"({units})^2"},
        ),
        "read_class_gain": (
            "read_class",
            state.by_class,
            {"long_name": "photon variance of pixels of more read variance, over photon_gain's"},
        ),
        "clip_centre": ("span", state.centre, {"long_name": "centre of residuals over errors"}),
        "clip_cut": ("span", state.cut, {"long_name": "largest distance from it of a used pixel"}),
    }
    if terms.drift.size:
        out["weight_drift"] = (
            ("weight_term", "span"),
            terms.drift,
            {"long_name": "change of that sky relative to it"},
        )
    if terms.leak.any():
        out["source_share"] = (
            ("slit", "shutter"),
            terms.leak,
            {"long_name": "share of the slit's source in each shutter"},
        )
        out["source_light"] = (
            ("slit", "bin"),
            terms.light,
            {"long_name": "light of the slit's source as a share of the master"},
        )
    return out


def applied_state(master: xr.Dataset) -> PassState:
    """Weights and clipping of the master's last pass."""
    values = {name: np.ascontiguousarray(master[name].values, dtype=float) for name in _STATE}
    return PassState(
        values["weight_model"],
        gain=values["photon_gain"],
        floor=values["read_floor"],
        centre=values["clip_centre"],
        cut=values["clip_cut"],
        # Asked for by the noise sums only, which moments have no use for.
        usual=np.zeros(values["clip_cut"].size),
        unit=float(master.attrs["clip_unit"]),
        log=master.attrs["model"] == "seed",
        rule=RULES[str(master.attrs.get("weights", "clip"))][1],
        by_class=values["read_class_gain"],
    )


def applied_terms(ds: xr.Dataset, master: xr.Dataset) -> Terms:
    """What the master says of a dataset's slits; strangers are as the mean of all."""
    n, spans = ds.sizes["slit"], master.sizes["span"]
    terms = Terms.none(n, spans)
    table = profile_table(master)
    kind = table.index(ds["n_shutters"].values)
    rank = ranks_in(ds, master)
    known = rank >= 0

    def rows(name: str, missing: NDArray) -> NDArray:
        if name not in master:
            return missing
        shape = (n,) + (1,) * (missing.ndim - 1)
        values = master[name].values[rank] if master.sizes["slit"] else missing
        return np.where(known.reshape(shape), values, missing)

    order = master.sizes.get("order", 1)
    drift, times = terms.drift, terms.times
    if "weight_drift" in master:
        drift = master["weight_drift"].values
        middle, half = master.attrs["weight_mjd"]
        clock = Clock(float(middle), float(half), drift.shape[0])
        times = clock.functions(ds["mjd"].values)[:, 1:]
    return Terms(
        scale=rows("scale", np.zeros((n, order))),
        phase=master["phase"].values if "phase" in master else terms.phase,
        pedestal=rows("pedestal", terms.pedestal),
        pedestal_shape=(
            master["pedestal_shape"].values if "pedestal_shape" in master else terms.pedestal_shape
        ),
        profile=table,
        kind=kind,
        level=rows("shutter_level", np.zeros((n, N_SHUTTERS))),
        used=rows("shutter_used", terms.used).astype(np.bool_),
        leak=rows("source_share", terms.leak),
        light=rows("source_light", np.zeros((n, -(-spans // BIN_SPANS)))),
        times=times,
        drift=drift,
    )


def shared(master: xr.Dataset) -> xr.Dataset:
    """Of a master, what was done to all pixels alike."""
    require_applied(master)
    names = [name for name in (*_STATE, *_COMMON) if name in master]
    coords = {name: master[name] for name in _COORDS if name in master.coords}
    out = master[names].drop_vars(
        [c for c in master[names].coords if c not in _COORDS], errors="ignore"
    )
    out = out.assign_coords(coords)
    if "profile" in master:
        out = out.assign_coords(kind=("kind", master["n_shutters"].values))
    attrs = {k: master.attrs[k] for k in (*APPLIED_ATTRS,) if k in master.attrs}
    keep = {k: master.attrs[k] for k in ("mbkg_xr_schema", "configuration", "units")}
    data = "ln flux" if master.attrs["model"] == "seed" else "flux"
    out.attrs = {**keep, **attrs, "weights_model": master.attrs["model"], "data": data}
    return out


def of_slits(ds: xr.Dataset, master: xr.Dataset) -> xr.Dataset:
    """Of a master, what it says of each slit of a dataset; of strangers, what is usual."""
    rank = ranks_in(ds, master)
    usual = _usual(master)
    out = {}
    for name in _SLIT:
        if name in master:
            values = master[name].values
            known = (rank >= 0).reshape((-1,) + (1,) * (values.ndim - 1))
            rows = values[rank] if values.shape[0] else np.zeros((rank.size, *values.shape[1:]))
            found = np.where(known, rows, usual.get(name, 0)).astype(values.dtype)
            out[name] = (master[name].dims, found, master[name].attrs)
    return xr.Dataset(out)


def _usual(master: xr.Dataset) -> dict[str, Any]:
    """Of a slit that nothing is known of: no difference, with the spread of the others."""
    out: dict[str, Any] = {"shutter_used": True, "slit_used": True}
    if "scale_spread" in master:
        spread = np.diag(np.square(master["scale_spread"].values).sum(axis=0))
        out |= {"scale_covariance": spread, "scale_without_covariance": spread}
        out["shutter_level_variance"] = float(master.attrs["shutter_spread"]) ** 2
    return out


def as_master_variables(moments: xr.Dataset) -> xr.Dataset:
    """What `shared` and `of_slits` took from a master, as a master holds it."""
    names = [name for name in (*_STATE, *_COMMON, *_SLIT) if name in moments]
    out = moments[names]
    out = out.drop_vars([c for c in out.coords if c not in ("shutter", "component", "yrel_node")])
    if "kind" in moments.coords:
        out = out.drop_vars("kind", errors="ignore")
        out = out.assign_coords(n_shutters=("kind", moments["kind"].values))
    return out


def require_applied(master: xr.Dataset) -> SpanGrid:
    """Refuse what is no master, or one that does not say how pixels were weighted."""
    require_one_sky(master, "a set of moments")
    missing = [name for name in ("polynomial", *_STATE) if name not in master]
    if missing or "edge" not in master.coords:
        raise DatasetError(
            "the master does not say how its pixels were weighted",
            expected="a dataset from fit_master of this version",
            found=f"no {' '.join(missing) or 'edge'}",
            remedy="fit the master anew",
        )
    return SpanGrid(master["edge"].values)


def digest(values: xr.Dataset, attrs: Mapping[str, Any]) -> str:
    """A digest of numbers and attributes: the same for what was saved and opened again."""
    out = hashlib.sha256()
    for name in sorted(map(str, values.variables)):
        array = np.asarray(values[name].values)
        if array.dtype.kind in "fiub":
            out.update(f"{name} {array.dtype.str} {array.shape}".encode())
            out.update(np.ascontiguousarray(array).tobytes())
    for key in sorted(attrs):
        value = attrs[key]
        out.update(f"{key}={np.asarray(value).tolist()}".encode())
    return out.hexdigest()
