"""From a look into all shutters to the terms that the next pass of the fit applies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .mixed import solve_scales
from .moments import PassState
from .profile import STRENGTHS, solve_profile
from .profile_sums import ProfileSums
from .quality import excluded_bits
from .scales import Scales, SlitScales
from .shutters import ShutterSight, look, sky_shutters
from .sources import Source
from .terms import BIN_SPANS, Terms, bin_phase

__all__ = ["Differences", "find_differences", "shutter_sight"]

Array = NDArray[np.float64]


@dataclass
class Differences:
    """How the slits differ from the master, and with which pixels that was found.

    Attributes
    ----------
    terms
        As the fit applies them.
    scales
        With their errors, or None where slits were taken to be alike.
    told
        What `solve_profile` found the profile from.
    along
        ``(kind, node, bin)``, what a pedestal is along the slits of the kinds looked at (`bars`);
        empty where that is not known.
    """

    terms: Terms
    scales: SlitScales | None = None
    told: tuple[ProfileSums, Array, tuple[int, ...]] | None = None
    along: Array = field(default_factory=lambda: np.empty((0, 0, 0)))

    def with_errors(self) -> Differences:
        """The same, with the errors of the profile, which no pass asks for."""
        if self.told is None:
            return self
        table = replace(solve_profile(*self.told), pedestal=self.terms.profile.pedestal)
        return replace(self, terms=replace(self.terms, profile=table))


def shutter_sight(ds: xr.Dataset, *, profile: bool) -> ShutterSight:
    """What looks at a selected slit dataset see."""
    kinds = tuple(sorted({int(n) for n in ds["n_shutters"].values if n > 0})) if profile else ()
    bits = excluded_bits(ds)
    sky = sky_shutters(ds) & _tells_profile(ds)[:, None]
    return ShutterSight.of(ds, bits=bits, sky=sky, kinds=kinds)


def find_differences(
    pixels: Source,
    sight: ShutterSight,
    state: PassState,
    present: Differences,
    constrained: NDArray[np.bool_],
    *,
    scales: Scales | None,
    profile: bool,
    provisional: bool = False,
) -> Differences:
    """One pass over all usable pixels, and what it says of scales, pedestals and the profile.

    Parameters
    ----------
    pixels, sight
        The pixels that looks see, and which they are (`shutter_sight`).
    state
        The present master and noise.
    present
        What was found so far.
    constrained
        ``(span,)``, the fitted range.
    scales, profile
        Which of them to find.
    provisional
        Try few strengths of the profile's prior, enough to choose a model with.
    """
    ds, grid = pixels.slits, pixels.grid
    sky = sight.sky if profile else np.zeros_like(sight.sky)
    if present.scales is not None:
        sky = sky & present.scales.used
    span_phase, phase = bin_phase(grid.edges, constrained)
    sums = look(pixels, state, present.terms, sight=sight, sky=sky, phase=phase)
    seen = sums.information() > 0
    if not seen.any():
        return present  # a sky that is nowhere positive has no fractions
    terms = replace(present.terms, phase=span_phase)
    found: SlitScales | None = None
    if scales is not None:
        shape = _pedestal_shape(state, constrained)
        bins = (np.arange(phase.size) + 0.5) * BIN_SPANS
        spans = np.arange(grid.size) + 0.5
        sky_level = np.interp(bins, spans, state.model[:, 0])
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.interp(bins, spans, shape) / sky_level
        shape_of_sky = np.where(seen & (sky_level > 0), share, 0.0)
        found = solve_scales(sums, ds, phase, shape_of_sky, scales, present.scales)
        terms = replace(
            terms,
            scale=found.scale,
            pedestal=found.pedestal,
            pedestal_shape=shape,
            level=found.level,
            used=found.used,
            leak=found.stray,
            light=found.light,
        )
    if profile:
        told = (sums.profile, phase, sight.kinds)
        strengths = STRENGTHS[::2] if provisional else STRENGTHS
        table = solve_profile(*told, errors=False, strengths=strengths)
        if present.along.size:
            known = [sight.kinds.index(kind) for kind in table.kinds]
            table = replace(table, pedestal=present.along[known])
        terms = replace(terms, profile=table, kind=table.index(ds["n_shutters"].values))
        return Differences(terms, found, told, present.along)
    return Differences(terms, found, along=present.along)


def _tells_profile(ds: xr.Dataset) -> NDArray[np.bool_]:
    """``(slit,)``: sky slits; where there is none of as many shutters, those with a source, too."""
    background, count = ds["is_background"].values, ds["n_shutters"].values
    return background | ~np.isin(count, np.unique(count[background]))


def _pedestal_shape(state: PassState, constrained: NDArray[np.bool_]) -> Array:
    """``(span,)``: what a constant count rate is in units of flux, of the size of the sky.

    The photon noise of a product is its flux times the inverse sensitivity over time, so that the
    gain found from it has the shape wanted. Zero where it is not known.
    """
    gain = np.where(constrained, np.nan_to_num(state.gain), 0.0)
    if not (gain > 0).any():
        return np.zeros(gain.size)
    usual = np.median(gain[gain > 0])
    level = np.median(np.abs(state.model[constrained, 0]))
    return gain / usual * level
