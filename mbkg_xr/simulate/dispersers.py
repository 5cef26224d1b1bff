"""Dispersers: which wavelength falls how many pixels along a trace, and how sharp it is.

The coordinate along a trace is ``u``, the number of detector pixels from a reference wavelength:
``u = integral of dlambda / dispersion``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.interpolate import CubicSpline

from ..errors import ParameterError

__all__ = ["DISPERSERS", "Disperser", "get_disperser"]

# Source of all dispersion and resolving-power values: the NIRSpec dispersion tables published on
# JDox, at the nodes given here. A cubic spline through the PRISM nodes follows the table to 6e-5.
_PRISM_WAVELENGTH = (
    *(0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95, 1.00, 1.05, 1.10, 1.15, 1.20),
    *(1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5),
    *(2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 4.75, 5.0, 5.25, 5.5, 5.75, 6.0),
)
_PRISM_DISPERSION = (
    *(2.49827, 3.31608, 4.26328, 5.33141, 6.50538, 7.76366, 9.07924, 10.42121, 11.75691),
    *(13.05422, 14.28391, 15.42142, 16.44793, 17.35128, 18.1254, 19.28816, 19.97901, 20.27811),
    *(20.27523, 20.05292, 19.67973, 19.20859, 18.67862, 18.11784, 17.54575, 16.97561, 16.41615),
    *(15.87291, 14.6039, 13.47185, 12.47052, 11.58564, 10.80157, 10.10385, 9.47987, 8.91898),
    *(8.41223, 7.95217, 7.53256, 7.14817, 6.79464, 6.46822),
)
_PRISM_RESOLUTION = (
    *(91.0, 75.4, 64.0, 55.4, 48.9, 43.9, 40.1, 37.1, 34.8, 33.1, 31.8, 30.9, 30.4, 30.1, 30.1),
    *(30.6, 31.9, 33.6, 35.9, 38.5, 41.6, 45.0, 48.7, 52.7, 57.0, 61.6, 66.5, 71.6, 85.6, 101.2),
    *(118.5, 137.3, 157.8, 179.9, 203.8, 229.3, 256.7, 285.8, 316.8, 349.7, 384.7, 421.6),
)

# name: (wavelengths [um], dispersions [nm a pixel], resolving powers, {filter: band [um]}). The
# bands are the nominal ones of JDox; the PRISM one is what the 1,417 cut-outs of the CEERS PRISM
# traces (fitted by rubies-msa-mask) cover: 11.8 pixels before 0.6 um to 10.5 beyond 5.3 um.
_TABLES = {
    "PRISM": (
        _PRISM_WAVELENGTH,
        _PRISM_DISPERSION,
        _PRISM_RESOLUTION,
        {"CLEAR": (0.553, 5.378)},
    ),
    "G140M": (
        (0.5, 0.8, 1.1, 1.4, 1.7, 2.0),
        (0.63841, 0.63833, 0.6377, 0.63662, 0.63511, 0.63316),
        (356.0, 569.7, 784.1, 999.6, 1216.7, 1435.8),
        {"F100LP": (0.97, 1.84), "F070LP": (0.70, 1.27)},
    ),
    "G235M": (
        (1.5, 1.9, 2.3, 2.7, 3.1, 3.5),
        (1.07047, 1.06949, 1.06804, 1.06615, 1.0638, 1.06096),
        (636.9, 807.5, 978.9, 1151.1, 1324.6, 1499.5),
        {"F170LP": (1.66, 3.07)},
    ),
    "G395M": (
        (2.5, 3.2, 3.9, 4.6, 5.3, 6.0),
        (1.80001, 1.79826, 1.79566, 1.79226, 1.78801, 1.78284),
        (631.3, 808.9, 987.2, 1166.6, 1347.4, 1529.7),
        {"F290LP": (2.87, 5.10)},
    ),
    "G140H": (
        (0.5, 0.78, 1.06, 1.34, 1.62, 1.9),
        (0.24101, 0.24098, 0.23919, 0.2363, 0.23216, 0.22564),
        (943.0, 1471.2, 2014.4, 2577.6, 3171.8, 3827.4),
        {"F100LP": (0.97, 1.82), "F070LP": (0.81, 1.27)},
    ),
    "G235H": (
        (1.5, 1.822, 2.144, 2.466, 2.788, 3.11),
        (0.40349, 0.40106, 0.39781, 0.39368, 0.38829, 0.38234),
        (1689.8, 2065.0, 2449.8, 2847.3, 3263.8, 3697.3),
        {"F170LP": (1.66, 3.05)},
    ),
    "G395H": (
        (2.5, 3.2, 3.9, 4.6, 5.3, 6.0),
        (0.67845, 0.67299, 0.66523, 0.6545, 0.63967, 0.62523),
        (1675.0, 2161.3, 2664.8, 3194.7, 3770.0, 4362.1),
        {"F290LP": (2.87, 5.14)},
    ),
}

#: The dispersers the simulator knows, each with its filters (the usual one first).
DISPERSERS = {name: tuple(table[3]) for name, table in _TABLES.items()}

#: Fine steps of the wavelength table in one pixel. Interpolating linearly in it errs by less than
#: 1e-7 um in wavelength and, for sky averages, by about 3e-5 of the sky's change from one pixel
#: to the next.
OVERSAMPLING = 64
_MARGIN = 24.0  # pixels the table goes beyond the band: tilted rows reach a little past its ends


@dataclass(frozen=True)
class Disperser:
    """One disperser with its filter.

    Attributes
    ----------
    grating, filter
        As in STScI headers, such as ``"PRISM"`` and ``"CLEAR"``.
    band
        First and last wavelength that reaches the detector, in um.
    """

    grating: str
    filter: str
    band: tuple[float, float]

    def __reduce__(self) -> tuple:
        # Tables that were made stay behind: a worker makes its own, once.
        return get_disperser, (self.grating, self.filter)

    @cached_property
    def _dispersion_spline(self) -> CubicSpline:
        return CubicSpline(_TABLES[self.grating][0], np.array(_TABLES[self.grating][1]) * 1e-3)

    @cached_property
    def reference_wavelength(self) -> float:
        """Wavelength of ``u = 0``: 3 um for the PRISM, else the middle of the band, in um."""
        return 3.0 if self.grating == "PRISM" else sum(self.band) / 2

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """``(u, wavelength)`` in fine equal steps of u, a little beyond the band."""
        ends = np.array(_TABLES[self.grating][0])[[0, -1]]
        fine = np.linspace(ends[0], ends[1], 40001)
        u = CubicSpline(fine, 1 / self._dispersion_spline(fine)).antiderivative()(fine)
        u -= np.interp(self.reference_wavelength, fine, u)
        first, last = np.interp(self.band, fine, u)
        first, last = np.floor(first - _MARGIN), np.ceil(last + _MARGIN)
        grid = np.linspace(first, last, int(last - first) * OVERSAMPLING + 1)
        # A cubic extrapolates u(wavelength) the few pixels some tables lack at their ends.
        return grid, CubicSpline(u, fine)(grid)

    def dispersion(self, wavelength: np.ndarray | float) -> np.ndarray:
        """Um a pixel at wavelengths in um."""
        return self._dispersion_spline(wavelength)

    def resolution(self, wavelength: np.ndarray | float) -> np.ndarray:
        """Resolving power lambda / FWHM at wavelengths in um."""
        return np.asarray(np.interp(wavelength, _TABLES[self.grating][0], _TABLES[self.grating][2]))

    def u(self, wavelength: np.ndarray | float) -> np.ndarray:
        """Pixels from the reference wavelength at wavelengths in um."""
        grid, table = self.table
        return np.interp(wavelength, table, grid)

    def wavelength(self, u: np.ndarray) -> np.ndarray:
        """Wavelength in um at pixels from the reference wavelength."""
        grid, table = self.table
        return np.interp(u, grid, table)


@lru_cache(maxsize=32)
def get_disperser(grating: str, filter: str | None = None) -> Disperser:
    """The disperser of a name.

    Parameters
    ----------
    grating
        One of `DISPERSERS`, of any case.
    filter
        One of the grating's filters; by default its usual one.

    Raises
    ------
    ParameterError
        On an unknown grating or a filter it is not used with.

    Examples
    --------
    >>> prism = get_disperser("PRISM")
    >>> round(float(prism.u(4.0) - prism.u(3.0)), 1)
    86.4
    """
    name = str(grating).upper()
    if name not in _TABLES:
        raise ParameterError(
            f"unknown disperser {grating!r}",
            where="grating",
            expected="one of " + " ".join(_TABLES),
            found=grating,
        )
    bands = _TABLES[name][3]
    chosen = next(iter(bands)) if filter is None else str(filter).upper()
    if chosen not in bands:
        raise ParameterError(
            f"{name} is not used with filter {filter!r}",
            where="filter",
            expected="one of " + " ".join(bands),
            found=filter,
        )
    return Disperser(name, chosen, bands[chosen])
