"""A known sky times a smooth ratio: for programmes with few sky slits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

from ..errors import FitError, ParameterError
from ..parts import require_one_sky
from ..spans import SpanGrid
from .basis import ERROR_NODES, PIXEL_MEAN, Fitted, Problem, no_solution, too_few_pixels
from .bspline import FINE, BSpline, spline_basis
from .cubics import at_edges, between_edges, product_basis, times_ratio
from .factor import low_rank
from .penalised import Candidate, OnOffer, PenalisedSystem, best_of, check_choice
from .thermal import mixed_ratio

__all__ = ["Template"]

Array = NDArray[np.float64]

# Fewer than for a sky (see `PenalisedSystem`): where two skies differ, they differ in few lines.
_PRIOR = 0.2


@dataclass(frozen=True, eq=False)
class Template(OnOffer):
    """The sky as a template times a smooth ratio.

    Lines, absorption and the shape of the continuum come from the template; the ratio follows what
    differs between two fields or epochs: the level, the mix of zodiacal and thermal light, and a
    line of another strength where the data are clear about it. The ratio is a cubic B-spline whose
    second differences are penalised, so that it is drawn to a constant and a slope, with a common
    or an adapted penalty (see `BSpline`).

    Parameters
    ----------
    spectrum
        A master of `fit_master`, or ``(wavelength in um, flux)``. Its units do not matter. Where it
        ends nothing is fitted: those pixels have no background.
    mean
        Whether the fluxes are means over about one detector pixel of these data, as an extracted
        spectrum's are, rather than the sky itself. Says nothing about a master, which is the sky.
    spacing, penalty, adapted
        Of the ratio's knots, as for `BSpline`; None to choose.
    spacings, penalties, strengths, criterion, one_error
        As for `BSpline`.
    mix
        Let the shares and colours of scattered and thermal light differ from the template's before
        the spline comes to it (see `mbkg_xr.models.thermal`).
    against
        A `BSpline` that competes with the template on the same terms, or None.

    Raises
    ------
    ParameterError
        Where the spectrum is not one: lengths that differ, wavelengths that do not rise, values
        that are not finite or not positive.

    Notes
    -----
    The errors of a master that serves as template, and of the mix, are part of ``sky_error``, as
    far as the ratio does not take them up, but not of ``covariance``.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> there = mx.select_background(mx.simulate_program(slits=8, background_slits=4, seed=1))
    >>> here = mx.select_background(mx.simulate_program(slits=2, background_slits=2, seed=2))
    >>> master = mx.fit_master(here, model=mx.Template(mx.fit_master(there)))
    >>> master.attrs["model"]
    'template'
    """

    spectrum: xr.Dataset | tuple[ArrayLike, ArrayLike]
    mean: bool = False
    spacing: int | None = None
    penalty: float | None = None
    adapted: bool | None = None
    spacings: tuple[int, ...] = (2, 8, 32, 128)
    penalties: tuple[float, ...] = tuple(10.0**k for k in range(-3, 6))
    strengths: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    criterion: str = "heldout"
    one_error: bool = False
    mix: bool = True
    against: BSpline | None = None
    name: str = field(default="template", init=False)
    log_data: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_choice(self._spacings, self._penalties + self._strengths, self.criterion)
        if isinstance(self.spectrum, xr.Dataset):
            require_one_sky(self.spectrum, "a template")
            if "polynomial" not in self.spectrum or "edge" not in self.spectrum.coords:
                raise ParameterError(
                    "the template is not a master",
                    where="spectrum",
                    expected="a dataset from fit_master",
                    found=" ".join(map(str, self.spectrum.data_vars)) or "no variables",
                )
            return
        try:
            wavelength, flux = (np.asarray(a, dtype=np.float64) for a in self.spectrum)
        except (TypeError, ValueError):
            wavelength = flux = np.empty(0)
        good = wavelength.ndim == 1 and wavelength.shape == flux.shape and wavelength.size >= 4
        if not (good and np.isfinite(flux).all() and np.all(np.diff(wavelength) > 0)):
            raise ParameterError(
                "the template cannot be used",
                where="spectrum",
                expected="a master, or at least 4 rising wavelengths and as many finite fluxes",
                found=f"arrays of shape {wavelength.shape} and {flux.shape}"
                if wavelength.size
                else type(self.spectrum).__name__,
            )
        object.__setattr__(self, "spectrum", (wavelength, flux))

    def provisional(self) -> Template:
        """A few candidates only, enough to clip by."""
        middle = len(self.strengths) // 2
        few = self.spacings[:2], self.penalties[1::3] or self.penalties
        return replace(
            self,
            spacings=few[0],
            penalties=few[1],
            strengths=self.strengths[middle : middle + 1],
            against=None,
        )

    def fixed(self, fitted: Fitted) -> Template | BSpline:
        """The same with what was chosen written in."""
        chosen = fitted.description
        if not chosen["templated"] and self.against is not None:
            return self.against.fixed(fitted)
        return replace(
            self,
            spacing=int(chosen["spacing"]),
            penalty=float(chosen["penalty"]),
            adapted=bool(chosen["adapted"]),
            against=None,
        )

    def fit(self, problem: Problem, *, heldout: bool = True) -> Fitted:
        """Choose the ratio's knots and penalty, and solve.

        Without `heldout` the scores are found all the same, but the held-out masters are not made.
        """
        known = self.polynomial(problem.grid)
        inside = np.isfinite(known[:, 0])
        part = problem.within(inside)
        if not part.count.any():
            raise FitError(
                "the template has no wavelength in common with the data",
                expected="a template that covers the selected pixels",
                found=f"{int(inside.sum())} of {inside.size} detector pixels of the disperser",
            )
        _check_positive(known, problem.grid, part)
        doubt = np.zeros((problem.grid.size, 0))
        if self.mix:
            ratio, doubt = mixed_ratio(known, part)
            known = times_ratio(known, ratio)
        out = self.candidates(part, known)
        if self.against is not None:
            if part is not problem:
                raise FitError(
                    "template and spline cannot compete",
                    expected="a template that covers all selected pixels",
                    found=f"{problem.n_pixels - part.n_pixels} pixels where it has no value",
                    remedy="leave out against=, or give a template of a wider range",
                )
            out += [_told_apart(c, templated=False) for c in self.against.candidates(problem)]
        fitted, best = best_of(out, self.criterion, self.one_error, heldout)
        if fitted.description["templated"]:
            self._add_errors(fitted, best, doubt)
        # Beyond the template nothing is known, but for the half pixels that reach there.
        fitted.expected[~inside] = fitted.sky_error[~inside] = np.nan
        fitted.factor[~inside] = 0.0
        fitted.polynomial[np.convolve(inside, np.ones(3), "same") == 0] = np.nan
        return fitted

    def candidates(self, problem: Problem, known: Array) -> list[Candidate]:
        """All candidates with their scores, given the template's span polynomials."""
        first, last = problem.domain
        out: list[Candidate] = []
        sizes = []
        for spacing in self._spacings:
            knots, ratio = spline_basis(problem.grid, first, last, spacing)
            sizes.append(ratio.size)
            if ratio.size > problem.n_pixels:
                continue
            basis = product_basis(known, ratio)
            system = PenalisedSystem.build(problem, basis, knots, spacing=spacing, prior=_PRIOR)
            strengths = self._strengths if spacing <= FINE else ()
            name = f"template, {spacing} px"
            tried = system.candidates(name, self._penalties, strengths)
            out += [_told_apart(c, templated=True) for c in tried]
        if not out:
            if min(sizes) <= problem.n_pixels:
                raise no_solution("template")
            raise too_few_pixels(problem.n_pixels, min(sizes), "template")
        return out

    def polynomial(self, grid: SpanGrid) -> Array:
        """The template on each span, ``(span, 4)``, powers of t; NaN where it has no value."""
        if isinstance(self.spectrum, xr.Dataset):
            edges = self.spectrum["edge"].values
            polynomial = np.array(self.spectrum["polynomial"].values)
            polynomial[~self.spectrum["constrained"].values] = np.nan
            if np.array_equal(edges, grid.edges):
                return polynomial
            value, slope = at_edges(polynomial, SpanGrid(edges), grid)
        else:
            wavelength, flux = self.spectrum
            spline = CubicSpline(wavelength, flux, extrapolate=False)
            value, slope = spline(grid.edges), spline(grid.edges, 1)
        out = between_edges(
            value[:-1], value[1:], slope[:-1] * grid.widths, slope[1:] * grid.widths
        )
        if self.mean and not isinstance(self.spectrum, xr.Dataset):
            out = out @ np.linalg.inv(PIXEL_MEAN).T
        return out

    def _add_errors(self, fitted: Fitted, best: Candidate, doubt: Array) -> None:
        """Add the template's own errors and those of its mix, in place.

        What of them is like a ratio of the kind that was fitted has been taken up by it.
        """
        powers = np.vander(ERROR_NODES, 4, increasing=True).T
        sky = np.nan_to_num(fitted.expected @ powers)[..., None]
        mixed = np.repeat(doubt[:, None, :], ERROR_NODES.size, axis=1)
        own = self._own_factor(best.system.problem.grid)
        # Those are in units of the flux, and errors of a fit for a unit variance of the data.
        own /= np.sqrt(best.row["chi2"] / max(best.system.problem.n_pixels - best.row["dof"], 1))
        more = best.system.left_of(best.weight, sky * np.concatenate([own, mixed], axis=2))
        if fitted.factor.shape[2]:
            both = np.concatenate([fitted.factor, more], axis=2)
            fitted.factor = low_rank(both.reshape(-1, both.shape[2])).reshape(*both.shape[:2], -1)
        size = np.sqrt(np.square(more).sum(axis=2))
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.nan_to_num(size / sky[..., 0], posinf=0.0, neginf=0.0)
        _add_error(fitted.sky_error, fitted.expected, relative)
        for error, polynomial in zip(fitted.heldout_error, fitted.heldout, strict=True):
            _add_error(error, polynomial, relative)

    def _own_factor(self, grid: SpanGrid) -> Array:
        """``(span, node, column)``: a factor of the covariance of the template's own relative
        errors at `ERROR_NODES`; of a spectrum, whose errors are not known, without columns.
        """
        if not isinstance(self.spectrum, xr.Dataset):
            return np.zeros((grid.size, ERROR_NODES.size, 0))
        theirs = SpanGrid(self.spectrum["edge"].values)
        powers = np.vander(ERROR_NODES, 4, increasing=True).T
        sky = self.spectrum["expected"].values @ powers
        with np.errstate(invalid="ignore", divide="ignore"):
            size = np.abs(self.spectrum["sky_error"].values / sky)
        good = np.isfinite(size) & self.spectrum["constrained"].values[:, None]
        size = np.where(good, size, 0.0)
        # How its errors go together.
        shape = np.nan_to_num(self.spectrum["covariance_factor"].values).astype(np.float64)
        length = np.sqrt(np.square(shape).sum(axis=2, keepdims=True))
        relative = shape / np.where(length > 0, length, 1.0) * size[..., None]
        if np.array_equal(theirs.edges, grid.edges):
            return relative
        at = theirs.pixel_coordinate(grid.edges[:-1, None] + grid.widths[:, None] * ERROR_NODES)
        nodes = np.arange(theirs.size)[:, None] + ERROR_NODES
        columns = [
            np.interp(at, nodes[good], c[good], left=0, right=0) for c in relative.T.swapaxes(1, 2)
        ]
        return np.stack(columns, axis=2)


def _add_error(error: Array, polynomial: Array, relative: Array) -> None:
    """Grow errors at `ERROR_NODES` by a fraction of the sky there, in place."""
    sky = polynomial @ np.vander(ERROR_NODES, 4, increasing=True).T
    error[:] = np.hypot(error, sky * relative)


def _told_apart(candidate: Candidate, *, templated: bool) -> Candidate:
    mark = {"templated": float(templated)}
    candidate.description |= mark
    candidate.row |= mark
    return candidate


def _check_positive(known: Array, grid: SpanGrid, problem: Problem) -> None:
    used = problem.count.any(axis=0)
    low = used & ~(known @ (1 / np.arange(1, 5)) > 0)
    if low.any():
        at = grid.centres[np.flatnonzero(low)[0]]
        raise ParameterError(
            "the template is not positive",
            where=f"{at:.3f} um and {int(low.sum()) - 1} other detector pixels",
            expected="a sky above zero wherever there are selected pixels",
            found="zero or less",
            remedy="smooth the template, or cut it to where it is above zero",
        )
