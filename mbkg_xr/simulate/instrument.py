"""What the instrument does to uniform light: bar shadow, path loss and smooth colour terms."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..barshadow import REFERENCE_BARS, bar_transmission, reference_bars, shutter_positions

__all__ = [
    "BarShadow",
    "bar_shadow",
    "colour_term",
    "path_loss",
    "point_path_loss",
    "point_response",
    "spectrograph_flat",
]

# Parameters of `bar_transmission` as it truly is, by wavelength. Source: fits to the empirical
# PRISM bar shadow of background shutters (programme 2750, published with msaexp, MIT licence), rms
# 0.02. They also describe the bars left in the three real CEERS slitlets to 0.03.
_TRUE_WAVELENGTH = np.array([0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.3])
_TRUE_HALF = np.array(
    [0.4319, 0.4286, 0.4251, 0.4212, 0.4169, 0.4133, 0.4124, 0.4073, 0.4004, 0.3988, 0.3984]
)
_TRUE_OFFSET = np.array(
    [0.0120, 0.0114, 0.0117, 0.0122, 0.0119, 0.0105, 0.0100, 0.0100, 0.0087, 0.0072, 0.0064]
)
_TRUE_SIGMA = np.array(
    [0.0945, 0.0951, 0.0969, 0.0989, 0.1019, 0.1073, 0.1105, 0.1166, 0.1214, 0.1252, 0.1276]
)

# Source: uniform path loss of a 1x3 slitlet (simulated PSF), equal to PATHLOSS_UN of the CEERS
# slitlets; every 0.27 um from 0.6 um.
_UNIFORM = np.array(
    [1.64472, 1.54617, 1.52379, 1.50039, 1.52068, 1.58805, 1.64712, 1.67875, 1.71085, 1.74724]
    + [1.79289, 1.85863, 1.94916, 2.05824, 2.17446, 2.29147, 2.40487, 2.51441, 2.62587, 2.7465]
    + [2.88045]
)
# Source: PATHLOSS_PS of the same slitlets, whose source lies a quarter shutter off centre; the
# value below 1.5 um is held.
_POINT = ((1.5, 2.0, 3.0, 4.0, 5.0, 5.3), (0.853, 0.812, 0.677, 0.612, 0.650, 0.653))

# Log of the spectrograph flat: for each MSA quadrant, for Legendre polynomials of degree 0 to 3 of
# the phase of log wavelength over the PRISM band, a quadratic in r = (row - 183) / 182 and
# c = (column - 86) / 85, in the order 1, r, c, r^2, r c, c^2. Source: robust fits, at the shutters
# of the CEERS PRISM traces and 0.62 to 5.3 um, to the spline coefficients published with msaexp
# (MIT licence): what 500 to 740 slits a quadrant show after the pipeline's own flat. These scatter
# about it by 0.012 to 0.026, partly for want of slits; what is common to all slits was removed.
_FLAT = 1e-4 * np.array(
    [
        [
            [83, 25, -12, 41, -5, 25],
            [-34, -100, 143, -295, 55, -102],
            [162, 26, -19, -243, 39, 2],
            [-195, 16, 15, 98, -53, 77],
        ],
        [
            [-13, 22, -191, -191, 12, -41],
            [45, 143, -92, 21, 47, -166],
            [70, 43, -40, -155, 74, 4],
            [-175, 52, 55, 201, -24, 10],
        ],
        [
            [-28, -189, 59, -47, 96, 1],
            [-117, 52, 257, -42, 19, 7],
            [49, 66, -76, -36, -61, 46],
            [23, -10, 50, 27, -34, -14],
        ],
        [
            [5, -205, -158, 70, -141, 8],
            [367, -81, 42, -91, 134, -74],
            [-163, -150, -95, 50, 82, -6],
            [236, 38, 24, -109, 282, 27],
        ],
    ],
    dtype=float,
)
# The standard deviation of its colour (degrees 1 to 3) over the four quadrants and the band.
_FLAT_COLOUR = 0.0153

_YREL_STEP = 1 / 256
_WAVELENGTHS = np.linspace(0.55, 5.45, 33)


class BarShadow:
    """Bar shadow of one kind of slitlet on a grid, for interpolation.

    Attributes
    ----------
    reference
        What the product is divided by.
    residual
        True over reference transmission: what that division leaves, 1 at shutter centres.
    """

    def __init__(self, n_shutters: int, mismatch: float):
        positions = shutter_positions(n_shutters)
        self.first = positions[0] - 1.0
        yrel = np.arange(self.first, positions[-1] + 1 + _YREL_STEP / 2, _YREL_STEP)
        grid, wavelength = yrel[:, None], _WAVELENGTHS[None, :]
        true = tuple(
            np.interp(wavelength, _TRUE_WAVELENGTH, p)
            for p in (_TRUE_HALF, _TRUE_OFFSET, _TRUE_SIGMA)
        )
        half, offset, sigma = (
            r + mismatch * (t - r) for r, t in zip(REFERENCE_BARS, true, strict=True)
        )
        self.reference = reference_bars(grid, positions) * np.ones_like(wavelength)
        self.residual = bar_transmission(grid, positions, half, offset, sigma) / self.reference

    def __call__(self, yrel: np.ndarray, wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(reference, residual)`` at pixels, by bilinear interpolation."""
        i, fy = _cell((yrel - self.first) / _YREL_STEP, self.reference.shape[0])
        j, fw = _cell(
            (wavelength - _WAVELENGTHS[0]) / (_WAVELENGTHS[1] - _WAVELENGTHS[0]), _WAVELENGTHS.size
        )
        flat = i * _WAVELENGTHS.size + j
        return _bilinear(self.reference, flat, fy, fw), _bilinear(self.residual, flat, fy, fw)


@lru_cache(maxsize=64)
def bar_shadow(n_shutters: int, mismatch: float) -> BarShadow:
    """The bar shadow of slitlets of `n_shutters` open shutters.

    Parameters
    ----------
    n_shutters
        Open shutters.
    mismatch
        How far the truth is from the reference that products are corrected with: 0 the same,
        1 as the three CEERS slitlets show.

    Examples
    --------
    >>> bars = bar_shadow(3, 0.0)
    >>> reference, residual = bars(np.array([0.0, 0.5]), np.array([2.0, 2.0]))
    >>> reference.round(2).tolist(), residual.round(6).tolist()
    ([1.0, 0.43], [1.0, 1.0])
    """
    return BarShadow(n_shutters, mismatch)


def path_loss(wavelength: np.ndarray) -> np.ndarray:
    """PATHLOSS_UN of a 1x3 slitlet, by which uniform sources are divided, at um.

    Examples
    --------
    >>> round(float(path_loss(2.0)), 3)
    1.599
    """
    return np.interp(wavelength, 0.6 + 0.27 * np.arange(_UNIFORM.size), _UNIFORM)


def point_path_loss(wavelength: np.ndarray) -> np.ndarray:
    """PATHLOSS_PS of a source a quarter shutter off centre, by which point sources are divided."""
    return np.interp(wavelength, *_POINT)


def point_response(wavelength: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Signal of uniform sky in a slit calibrated as POINT, per unit of the same as EXTENDED.

    The bars are not divided out and the path loss is the point one: PATHLOSS_UN * BARSHADOW /
    PATHLOSS_PS.
    """
    return path_loss(wavelength) * reference / point_path_loss(wavelength)


def colour_term(phase: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Smooth factor about 1: Legendre polynomials of degree 1 to 3 of a phase in -1 to 1."""
    c1, c2, c3 = coefficients
    square = phase * phase
    return 1 + phase * (c1 + c3 * (2.5 * square - 1.5)) + c2 * (1.5 * square - 0.5)


def spectrograph_flat(quadrant: int, row: float, column: float) -> np.ndarray:
    """Shape of the spectrograph flat at a shutter, relative to the mean over the MSA.

    It was measured with the PRISM. For gratings the same shape is taken over their own band, as
    there are no coefficients for them at hand.

    Parameters
    ----------
    quadrant, row, column
        MSA quadrant (1 to 4), and the shutter's place along and across dispersion.

    Returns
    -------
    numpy.ndarray
        ``(4,)``: coefficients of Legendre polynomials of degree 0 to 3 of the phase of log
        wavelength over the band, in units of the standard deviation of its colour over the MSA.

    Examples
    --------
    >>> spectrograph_flat(4, 183, 86).round(2).tolist()
    [0.03, 2.4, -1.07, 1.54]
    """
    r, c = (row - 183) / 182, (column - 86) / 85
    return _FLAT[quadrant - 1] @ np.array([1.0, r, c, r * r, r * c, c * c]) / _FLAT_COLOUR


def _cell(position: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    position = np.clip(position, 0, size - 1.000001)
    index = position.astype(np.intp)
    return index, position - index


def _bilinear(table: np.ndarray, flat: np.ndarray, fy: np.ndarray, fw: np.ndarray) -> np.ndarray:
    values, width = table.ravel(), table.shape[1]
    low = values[flat] * (1 - fw) + values[flat + 1] * fw
    high = values[flat + width] * (1 - fw) + values[flat + width + 1] * fw
    return low + (high - low) * fy
