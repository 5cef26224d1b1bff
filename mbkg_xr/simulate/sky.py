"""The sky: zodiacal light, thermal emission and lines, noise-free, in MJy/sr.

``sky = (scattered + thermal) (1 + structure) + lines``, with scattered sunlight (a black body of
5772 K times a power of wavelength), a thermal black body, He I 1.083 um and PAH 3.3 um, and a
spline for what those leave: absorption in the Sun's spectrum and residues of the calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.interpolate import BSpline, PchipInterpolator
from scipy.optimize import least_squares

from ..errors import ParameterError
from .dispersers import Disperser, get_disperser
from .skies import SKIES

__all__ = ["Sky", "SkyTable", "as_sky", "fit_sky", "sky_components", "sky_mean", "sky_spectrum"]

_SUN = 5772.0  # effective temperature of the Sun, K (IAU 2015 nominal value)
_C2 = 14387.769  # second radiation constant, um K (CODATA)
_HELIUM = 1.0833  # He I 2s 3S - 2p 3P, vacuum wavelength, um
_PAH, _PAH_WIDTH = 3.29, 0.042  # band centre and FWHM, um (Tokunaga et al. 1991, class A)
_STRUCTURE_RANGE = (0.6, 5.3)  # um; the range of published PRISM sky spectra
_STRUCTURES = (24, 32, 44, 60, 80, 110, 150, 200, 260)


@dataclass(frozen=True)
class Sky:
    """Parameters of one sky.

    Attributes
    ----------
    scattered
        Zodiacal light at 2 um, in MJy/sr.
    scattered_slope
        Power of wavelength by which it departs from the Sun's black body.
    thermal
        Thermal emission of dust and telescope at 4.5 um, in MJy/sr.
    thermal_temperature
        Its black-body temperature, in K.
    helium, pah
        Strength of He I 1.083 um and PAH 3.3 um, in MJy/sr um.
    structure
        Coefficients of a cubic B-spline, its knots equal steps of PRISM pixels over 0.6 to 5.3 um,
        that is the relative departure from scattered + thermal; constant outside that range.

    Notes
    -----
    With fluxes measured by the PRISM, `structure` is already as smooth as the PRISM sees it; the
    two lines get the resolution of the disperser asked for.
    """

    scattered: float
    scattered_slope: float
    thermal: float
    thermal_temperature: float
    helium: float = 0.0
    pah: float = 0.0
    structure: tuple[float, ...] = ()

    def components(self, wavelength: np.ndarray, disperser: Disperser) -> np.ndarray:
        """Sunlight with He I, and thermal light with PAH: ``(2, ...)`` in MJy/sr."""
        structure = 1 + _structure(self.structure, wavelength)
        out = np.empty((2, *np.shape(wavelength)))
        out[0] = self.scattered * _scattered(wavelength, self.scattered_slope)
        out[1] = self.thermal * _planck_ratio(wavelength, 4.5, self.thermal_temperature)
        out *= structure
        out[0] += self.helium * _line(wavelength, _HELIUM, 0.0, disperser)
        out[1] += self.pah * _line(wavelength, _PAH, _PAH_WIDTH, disperser)
        return out


@dataclass(frozen=True)
class SkyTable:
    """A sky given as a table: ``wavelength`` in um, rising, and ``flux`` in MJy/sr.

    A monotone cubic goes through the table and is constant beyond its ends.
    """

    wavelength: tuple[float, ...]
    flux: tuple[float, ...]

    def components(self, wavelength: np.ndarray, disperser: Disperser) -> np.ndarray:
        """As `Sky.components`; a table counts as sunlight."""
        del disperser
        table = PchipInterpolator(self.wavelength, self.flux)
        inside = np.clip(wavelength, self.wavelength[0], self.wavelength[-1])
        return np.stack([table(inside), np.zeros(np.shape(wavelength))])


def as_sky(sky: object) -> Sky | SkyTable:
    """A sky from parameters, a name of `SKIES`, a table or None (the default sky).

    Raises
    ------
    ParameterError
        On an unknown name or a table that is not rising and finite.
    """
    if isinstance(sky, Sky | SkyTable):
        return sky
    name = "ceers" if sky is None else sky
    if isinstance(name, str):
        if name.lower() not in SKIES:
            raise ParameterError(
                f"unknown sky {sky!r}", where="sky", expected="one of " + " ".join(SKIES), found=sky
            )
        return Sky(**SKIES[name.lower()])
    try:
        wavelength, flux = (np.asarray(a, dtype=float) for a in sky)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise ParameterError(
            "this is not a sky",
            where="sky",
            expected="Sky parameters, a name, or (wavelength in um, flux in MJy/sr)",
            found=type(sky).__name__,
        ) from error
    _check_spectrum(wavelength, flux, "sky", least=4)
    return SkyTable(tuple(wavelength.tolist()), tuple(flux.tolist()))


def sky_spectrum(
    wavelength: np.ndarray | Sequence[float] | float,
    sky: object = None,
    *,
    grating: str = "PRISM",
    filter: str | None = None,
) -> np.ndarray:
    """The noise-free sky: what a perfect master background is.

    Parameters
    ----------
    wavelength
        In um, any shape.
    sky
        `Sky` parameters, a name of `SKIES`, a table ``(wavelength um, flux MJy/sr)`` or None.
    grating, filter
        Disperser whose resolution the lines get.

    Returns
    -------
    numpy.ndarray
        MJy/sr, of the shape of `wavelength`, at that very wavelength. A pixel holds the mean over
        its extent: see `sky_mean`.

    Raises
    ------
    ParameterError
        On an unknown sky or disperser.

    Examples
    --------
    >>> [round(float(s), 3) for s in sky_spectrum([1.5, 3.0, 5.0])]
    [0.142, 0.061, 0.362]
    """
    wavelength = np.asarray(wavelength, dtype=float)
    return as_sky(sky).components(wavelength, get_disperser(grating, filter)).sum(axis=0)


def sky_mean(
    lower: np.ndarray,
    upper: np.ndarray,
    sky: object = None,
    *,
    grating: str = "PRISM",
    filter: str | None = None,
) -> np.ndarray:
    """Mean of the sky over wavelength intervals, such as the extent of pixels.

    Parameters
    ----------
    lower, upper
        Ends of the intervals in um, inside the disperser's band.
    sky, grating, filter
        As for `sky_spectrum`.

    Returns
    -------
    numpy.ndarray
        MJy/sr: the integral over each interval divided by its length, by Gauss-Legendre
        quadrature of eight points, exact to 1e-7 over a pixel.

    Examples
    --------
    >>> round(float(sky_mean(1.49, 1.51) / sky_spectrum(1.5)), 3)
    1.0
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    lower, upper = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    at = (lower + upper)[..., None] / 2 + (upper - lower)[..., None] / 2 * nodes
    return sky_spectrum(at, sky, grating=grating, filter=filter) @ weights / 2


@lru_cache(maxsize=16)
def sky_components(sky: Sky | SkyTable, disperser: Disperser) -> np.ndarray:
    """Integrals of the sky's components from the blue end, on the disperser's fine table.

    Returns
    -------
    numpy.ndarray
        ``(component, step)`` in MJy/sr um; differences over a pixel, divided by the pixel's extent
        in wavelength, are pixel means.
    """
    _, wavelength = disperser.table
    middle = (wavelength[1:] + wavelength[:-1]) / 2
    # Simpson's rule in every step.
    ends, mids = (sky.components(w, disperser) for w in (wavelength, middle))
    steps = (ends[:, 1:] + ends[:, :-1] + 4 * mids) / 6 * np.diff(wavelength)
    return np.concatenate([np.zeros((len(steps), 1)), np.cumsum(steps, axis=1)], axis=1)


def fit_sky(
    wavelength: np.ndarray | Sequence[float],
    flux: np.ndarray | Sequence[float],
    *,
    tolerance: float = 0.008,
) -> Sky:
    """Parameters that reproduce a PRISM sky spectrum.

    Parameters
    ----------
    wavelength, flux
        ``(n,)``, in um (rising, within 0.6 to 5.3 where structure is to be followed) and MJy/sr.
    tolerance
        Relative rms at which no more structure is added.

    Returns
    -------
    Sky
        The smooth components are fitted robustly, then the lines and as little structure as
        reaches `tolerance` (24 to 260 spline coefficients), by least squares in relative flux.

    Raises
    ------
    ParameterError
        Where the spectrum is not finite, positive and rising in wavelength.

    Examples
    --------
    >>> w = np.linspace(0.65, 5.25, 400)
    >>> again = fit_sky(w, sky_spectrum(w))
    >>> bool(np.std(sky_spectrum(w, again) / sky_spectrum(w)) < 0.01)
    True
    """
    wavelength, flux = np.asarray(wavelength, dtype=float), np.asarray(flux, dtype=float)
    _check_spectrum(wavelength, flux, "fit_sky", least=30)
    if not np.all(flux > 0):
        raise ParameterError(
            "the spectrum is not positive",
            where="fit_sky",
            expected="flux > 0",
            found=f"{np.sum(flux <= 0)} values that are not",
        )
    prism = get_disperser("PRISM")

    def smooth(p: np.ndarray) -> Sky:
        return Sky(abs(p[0]), p[1], abs(p[2]), p[3])

    def misfit(p: np.ndarray) -> np.ndarray:
        return smooth(p).components(wavelength, prism).sum(axis=0) / flux - 1

    start = [np.interp(2.0, wavelength, flux), 0.0, np.interp(4.5, wavelength, flux), 290.0]
    bounds = ([-np.inf, -3, -np.inf, 100], [np.inf, 3, np.inf, 1000])
    fit = least_squares(
        misfit, start, bounds=bounds, loss="soft_l1", f_scale=0.03, x_scale=[0.1, 1.0, 0.1, 100.0]
    )
    base = smooth(fit.x)
    model = base.components(wavelength, prism).sum(axis=0)
    lines = [
        _line(wavelength, _HELIUM, 0.0, prism),
        _line(wavelength, _PAH, _PAH_WIDTH, prism),
    ]
    best = base
    for n in _STRUCTURES:
        if n > wavelength.size // 2:
            break
        basis = _structure_basis(n, wavelength) * model[:, None]
        columns = np.concatenate([basis, np.transpose(lines)], axis=1) / flux[:, None]
        x = _solve(columns, 1 - model / flux)
        best = replace(
            base, helium=float(x[n]), pah=float(x[n + 1]), structure=tuple(x[:n].tolist())
        )
        if np.std(columns @ x + model / flux) < tolerance:
            break
    return best


def _solve(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares whose last two coefficients, the lines, are not negative."""
    normal, right = columns.T @ columns, columns.T @ target
    # A whisper of a ridge settles coefficients that no pixel constrains.
    normal[np.diag_indices_from(normal)] += 1e-8
    free = np.ones(right.size, bool)
    while True:
        x = np.zeros(right.size)
        x[free] = np.linalg.solve(normal[np.ix_(free, free)], right[free])
        negative = np.flatnonzero(x[-2:] < 0)
        if not negative.size:
            return x
        free[negative - 2] = False


def _check_spectrum(wavelength: np.ndarray, flux: np.ndarray, where: str, *, least: int) -> None:
    good = wavelength.ndim == 1 and wavelength.shape == flux.shape and wavelength.size >= least
    if not (good and np.isfinite(flux).all() and np.all(np.diff(wavelength) > 0)):
        raise ParameterError(
            "the sky spectrum cannot be used",
            where=where,
            expected=f"at least {least} wavelengths in rising order and as many finite fluxes",
            found=f"arrays of shape {wavelength.shape} and {flux.shape}",
        )


def _planck_ratio(wavelength: np.ndarray, reference: float, temperature: float) -> np.ndarray:
    """Black body per unit frequency, 1 at the reference wavelength."""

    def planck(w: np.ndarray | float) -> np.ndarray:
        return 1 / (np.asarray(w) ** 3 * np.expm1(_C2 / (np.asarray(w) * temperature)))

    return planck(wavelength) / planck(reference)


def _scattered(wavelength: np.ndarray, slope: float) -> np.ndarray:
    return _planck_ratio(wavelength, 2.0, _SUN) * (np.asarray(wavelength) / 2.0) ** slope


def _line(wavelength: np.ndarray, centre: float, width: float, disperser: Disperser) -> np.ndarray:
    """A Gaussian of unit integral, its own FWHM and the disperser's in quadrature."""
    fwhm = np.hypot(centre / disperser.resolution(centre), width)
    sigma = fwhm / np.sqrt(8 * np.log(2))
    z = (np.asarray(wavelength) - centre) / sigma
    return np.exp(-0.5 * z * z) / (sigma * np.sqrt(2 * np.pi))


def _structure_knots(n: int) -> np.ndarray:
    u = get_disperser("PRISM").u(np.array(_STRUCTURE_RANGE))
    return np.r_[[u[0]] * 3, np.linspace(u[0], u[1], n - 2), [u[1]] * 3]


def _structure_basis(n: int, wavelength: np.ndarray) -> np.ndarray:
    u = get_disperser("PRISM").u(np.clip(wavelength, *_STRUCTURE_RANGE))
    return BSpline.design_matrix(u, _structure_knots(n), 3).toarray()


def _structure(coefficients: tuple[float, ...], wavelength: np.ndarray) -> np.ndarray | float:
    n = len(coefficients)
    if not n:
        return 0.0
    u = get_disperser("PRISM").u(np.clip(wavelength, *_STRUCTURE_RANGE))
    return BSpline(_structure_knots(n), np.array(coefficients), 3)(u)
