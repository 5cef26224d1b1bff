"""What a master says of a dataset's slits: scales, pedestals and profile, with errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .background import apply_pixels
from .schema import SLIT_IDENTITY
from .spans import SpanGrid
from .tables import let_go, lots, zeros
from .terms import ProfileTable

__all__ = ["SlitTerms", "profile_table", "ranks_in", "slit_terms", "used_pixels"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SlitTerms:
    """Terms of each slit of a dataset, as `mbkg_xr.terms.Terms`, with their errors.

    Attributes
    ----------
    scale, covariance
        ``(slit, shutter, order)`` and ``(slit, shutter, order, order)``: what is found for a whole
        slit errs in all its shutters alike.
    whole
        ``(slit, order, order)``: covariance of what is found from all shutters of a slit, which
        is that of each of them but where shutters are held out.
    own
        ``(slit, shutter)``: variance of what is each shutter's own, in the order 0.
    slope
        ``(slit, shutter, order)``: what that changes by with the coefficients.
    basis
        ``(span, order)``.
    pedestal, pedestal_shape
        ``(slit,)`` and ``(span,)``.
    profile, kind
        Bar-shadow profiles, and which of them each slit has.
    first_shutter
        yrel of the first shutter.
    floor
        Systematic error, as a fraction of the background.
    """

    scale: Array
    covariance: Array
    whole: Array
    own: Array
    slope: Array
    basis: Array
    pedestal: Array
    pedestal_shape: Array
    profile: ProfileTable
    kind: NDArray[np.int64]
    first_shutter: int
    floor: float

    @classmethod
    def none(cls, n_slits: int, n_spans: int) -> SlitTerms:
        """All slits alike, and that for certain."""
        zero = np.zeros
        return cls(
            scale=zero((n_slits, 1, 1)),
            covariance=zero((n_slits, 1, 1, 1)),
            whole=zero((n_slits, 1, 1)),
            own=zero((n_slits, 1)),
            slope=zero((n_slits, 1, 1)),
            basis=np.ones((n_spans, 1)),
            pedestal=zero(n_slits),
            pedestal_shape=zero(n_spans),
            profile=ProfileTable(),
            kind=np.full(n_slits, -1, dtype=np.int64),
            first_shutter=0,
            floor=0.0,
        )

    def arrays(self, slits: NDArray) -> tuple:
        """Of some slits, what `mbkg_xr.background` takes."""
        tables = (self.scale, self.covariance, self.slope, self.own)
        own = [np.array(a[slits], dtype=np.float64, order="C") for a in tables]
        let_go()
        return (
            *own,
            np.ascontiguousarray(self.basis.T), self.pedestal[slits], self.pedestal_shape,
            self.profile.stacked(), self.profile.place, self.profile.rows(self.kind[slits]),
            self.first_shutter, self.floor,
        )  # fmt: skip

    def apply(
        self, out: Array, wavelength: NDArray, yrel: NDArray, slits: NDArray, grid: SpanGrid
    ) -> None:
        """Turn the master on pixels, and its error, into the background of the slits, in place."""
        spans = (grid.edges, grid.lookup, grid.step)
        apply_pixels(wavelength, yrel, spans, self.arrays(slits), out[..., 0], out[..., 1])


def slit_terms(ds: xr.Dataset, master: xr.Dataset, *, heldout: bool = False) -> SlitTerms | None:
    """Terms of a dataset's slits, None where the master knows of none.

    Slits that the master was not fitted to get the mean scale, with the spread of the others as its
    error. With `heldout` each shutter's scale is that found without it.
    """
    if "scale" not in master and "profile" not in master:
        return None
    n, spans = ds.sizes["slit"], master.sizes["span"]
    if "scale" in master:
        found = master["scale_without" if heldout else "scale"].values
        errors = master["scale_without_covariance" if heldout else "scale_covariance"].values
        level, of_level, of_scale, together = (
            master[name].values
            for name in (
                "shutter_level", "shutter_level_variance", "shutter_level_slope",
                "scale_covariance",
            )
        )  # fmt: skip
        order, shutters = found.shape[-1], master.sizes["shutter"]
        rank = ranks_in(ds, master)
        known = rank >= 0
        scale, slope = (zeros((n, shutters, order)) for _ in range(2))
        covariance, whole = zeros((n, shutters, order, order)), zeros((n, order, order))
        own = np.full((n, shutters), float(master.attrs["shutter_spread"]) ** 2)
        spread = np.diag(np.square(master["scale_spread"].values).sum(axis=0))
        for lot in lots(n):
            mine, of = np.flatnonzero(known[lot]) + lot.start, rank[lot][known[lot]]
            covariance[lot], whole[lot] = spread, spread
            if not heldout:
                scale[mine], covariance[mine] = found[of][:, None], errors[of][:, None]
                scale[mine, :, 0] += level[of]
                own[mine], slope[mine] = of_level[of], of_scale[of]
            else:
                scale[mine], covariance[mine] = found[of], errors[of]
            whole[mine] = together[of]
        pedestal = np.where(known, master["pedestal"].values[rank], 0.0)
        shape = master["pedestal_shape"].values
        basis = legendre.legvander(master["phase"].values, order - 1)
    else:
        scale, covariance, own = np.zeros((n, 1, 1)), np.zeros((n, 1, 1, 1)), np.zeros((n, 1))
        whole, slope = covariance[:, 0], scale
        pedestal, shape, basis = np.zeros(n), np.zeros(spans), np.ones((spans, 1))
    table = profile_table(master)
    kind = table.index(ds["n_shutters"].values)
    first = int(master["shutter"].values[0]) if "shutter" in master.coords else 0
    floor = float(master.attrs.get("floor", 0.0))
    return SlitTerms(
        scale, covariance, whole, own, slope, basis, pedestal, shape, table, kind, first, floor
    )


def used_pixels(ds: xr.Dataset, master: xr.Dataset) -> NDArray[np.bool_]:
    """``(slit, y, x)``: pixels of shutters that the master takes for sky; all of unknown slits."""
    yrel = ds["yrel"].values
    if "shutter_used" not in master:
        return np.ones(yrel.shape, dtype=np.bool_)
    rank = ranks_in(ds, master)
    used = np.where(rank[:, None] >= 0, master["shutter_used"].values[rank], True)
    first = int(master["shutter"].values[0])
    at = np.clip(np.rint(np.nan_to_num(yrel)).astype(int) - first, 0, used.shape[1] - 1)
    return used[np.arange(yrel.shape[0])[:, None, None], at]


def ranks_in(ds: xr.Dataset, master: xr.Dataset) -> NDArray[np.int64]:
    """Index of each slit among those of the master, -1 for strangers."""
    if _are_alike(ds, master):
        return np.arange(ds.sizes["slit"])
    theirs = zip(*(master[c].values.tolist() for c in SLIT_IDENTITY), strict=True)
    rank = {key: i for i, key in enumerate(theirs)}
    ours = zip(*(ds[c].values.tolist() for c in SLIT_IDENTITY), strict=True)
    return np.array([rank.get(key, -1) for key in ours], dtype=np.int64)


def _are_alike(ds: xr.Dataset, master: xr.Dataset) -> bool:
    return all(np.array_equal(ds[c].values, master[c].values) for c in SLIT_IDENTITY)


def profile_table(master: xr.Dataset) -> ProfileTable:
    """Bar-shadow profiles of a master; empty where it has none."""
    if "profile" not in master:
        return ProfileTable()
    nodes = master["yrel_node"].values
    return ProfileTable(
        float(nodes[0]),
        float(nodes[1] - nodes[0]),
        master["profile"].values,
        master["profile_error"].values,
        tuple(int(k) for k in master["n_shutters"].values),
        master["profile_factor"].values.astype(np.float64),
        master["profile_basis"].values,
        master["pedestal_along"].values if "pedestal_along" in master else np.empty((0, 0, 0)),
    )
