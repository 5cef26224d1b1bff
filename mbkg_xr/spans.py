"""The wavelength axis, cut into spans of one detector pixel.

All slits of a configuration share one coordinate u, the integral of dlambda / dispersion: it counts
detector pixels, so knots uniform in u follow the instrument's resolution. PRISM dispersion changes
by a factor 3.7 over 0.65-5.25 um; knots uniform in wavelength would be wasted.

A span is the interval between consecutive integers of u. Within span n the coordinate
``t = (wavelength - edges[n]) / (edges[n+1] - edges[n])`` runs from 0 to 1, and any cubic spline
whose knots are span edges is one cubic polynomial in t.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

from .errors import ParameterError
from .kernels import kernel

__all__ = ["SpanGrid", "dispersion", "span_grid"]

# PRISM dispersion, dlambda/dpixel in 1e-6 um, at wavelengths in um. Source: the dispersion tables
# of the JWST user documentation (NIRSpec dispersers and filters); the cubic spline through these
# points follows the table to 6e-5.
_PRISM_WAVELENGTH = np.array(
    "0.5 0.55 0.6 0.65 0.7 0.75 0.8 0.85 0.9 0.95 1.0 1.05 1.1 1.15 1.2 1.3 1.4 1.5 1.6 1.8 2.0 "
    "2.25 2.5 2.75 3.0 3.25 3.5 3.75 4.0 4.25 4.5 4.75 5.0 5.25 5.5 6.0".split(),
    dtype=float,
)
_PRISM_DISPERSION = np.array(
    "2498 3316 4263 5331 6505 7764 9079 10421 11757 13054 14284 15421 16448 17351 18125 19288 "
    "19979 20278 20275 19680 18679 17260 15873 14604 13472 12471 11586 10802 10104 9480 8919 8412 "
    "7952 7533 7148 6468".split(),
    dtype=float,
)
# Gratings: dlambda/dpixel in 1e-6 um as a quadratic in wavelength (same tables; to 1e-4 for the
# medium and 3e-3 for the high resolution gratings).
_GRATING_DISPERSION = {
    "g140m": (-2.511, 2.734, 637.725),
    "g140h": (-8.832, 10.514, 238.096),
    "g235m": (-1.430, 2.401, 1070.089),
    "g235h": (-5.532, 11.983, 397.684),
    "g395m": (-0.856, 2.391, 1799.380),
    "g395h": (-3.073, 10.453, 671.199),
}
# Wavelengths in um that the spans cover, a little wider than the dispersers' nominal ranges.
_RANGE = {
    "prism": (0.5, 5.7),
    "g140m": (0.65, 2.0),
    "g140h": (0.65, 2.0),
    "g235m": (1.55, 3.4),
    "g235h": (1.55, 3.4),
    "g395m": (2.7, 5.7),
    "g395h": (2.7, 5.7),
}


def dispersion(grating: str, wavelength: ArrayLike) -> NDArray[np.float64]:
    """Dispersion of a NIRSpec disperser.

    Parameters
    ----------
    grating
        ``PRISM``, ``G140M`` ... ``G395H``.
    wavelength
        In um, of any shape.

    Returns
    -------
    numpy.ndarray
        dlambda/dpixel in um, of the shape of `wavelength`.

    Raises
    ------
    ParameterError
        On an unknown disperser.

    Examples
    --------
    >>> dispersion("PRISM", [1.0, 5.0]).round(4).tolist()
    [0.0143, 0.008]
    """
    name = grating.lower()
    wave = np.asarray(wavelength, dtype=float)
    if name == "prism":
        return CubicSpline(_PRISM_WAVELENGTH, _PRISM_DISPERSION * 1e-6)(wave)
    if name in _GRATING_DISPERSION:
        return np.polyval(_GRATING_DISPERSION[name], wave) * 1e-6
    raise ParameterError(
        "unknown disperser",
        expected="one of prism " + " ".join(_GRATING_DISPERSION),
        found=grating,
        remedy="give the spans yourself with SpanGrid(edges)",
    )


@dataclass(frozen=True)
class SpanGrid:
    """Span edges of one configuration and a table that finds a wavelength's span at once.

    Parameters
    ----------
    edges
        Increasing wavelengths in um, shape ``(span + 1,)``.

    Raises
    ------
    ParameterError
        Where edges do not increase.

    Examples
    --------
    >>> grid = SpanGrid(np.array([1.0, 1.5, 2.5]))
    >>> grid.size, grid.locate(2.0)
    (2, (1, 0.5))
    """

    edges: NDArray[np.float64]
    step: float = field(init=False)
    lookup: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        edges = np.ascontiguousarray(self.edges, dtype=np.float64)
        widths = np.diff(edges)
        if edges.ndim != 1 or edges.size < 2 or not np.all(widths > 0):
            raise ParameterError("span edges must increase", found=f"shape {edges.shape}")
        # Cells no wider than the narrowest span hold at most one edge, so that a look-up and one
        # comparison find the span.
        step = float(widths.min())
        cells = edges[0] + step * np.arange(int(np.ceil((edges[-1] - edges[0]) / step)) + 1)
        lookup = np.clip(np.searchsorted(edges, cells, side="right") - 1, 0, edges.size - 2)
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "lookup", lookup)

    @property
    def size(self) -> int:
        """Number of spans."""
        return self.edges.size - 1

    @property
    def widths(self) -> NDArray[np.float64]:
        """Width of each span, um."""
        return np.diff(self.edges)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Wavelength at the middle of each span, um."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def locate(self, wavelength: float) -> tuple[int, float]:
        """Span of a wavelength, -1 where outside, and the position t within it."""
        n, t = find_span(float(wavelength), self.edges, self.lookup, self.step)
        return int(n), float(t)

    def pixel_coordinate(self, wavelength: ArrayLike) -> NDArray[np.float64]:
        """The coordinate u (detector pixels from the first edge), NaN outside the spans."""
        u = np.arange(self.edges.size, dtype=float)
        return np.interp(
            np.asarray(wavelength, dtype=float), self.edges, u, left=np.nan, right=np.nan
        )


@kernel(inline="always")
def find_span(wavelength, edges, lookup, step):  # pragma: no cover - compiled
    """Span index (-1 outside or NaN) and position t in [0, 1)."""
    if not (wavelength >= edges[0] and wavelength < edges[-1]):
        return -1, 0.0
    n = lookup[int((wavelength - edges[0]) / step)]
    while wavelength >= edges[n + 1]:
        n += 1
    while wavelength < edges[n]:
        n -= 1
    return n, (wavelength - edges[n]) / (edges[n + 1] - edges[n])


@kernel(inline="always")
def span_within(wavelength, edges, lookup, per_step):  # pragma: no cover - compiled
    """Span of a wavelength that lies within the spans; without a branch."""
    n = lookup[int((wavelength - edges[0]) * per_step)]
    n += int(wavelength >= edges[n + 1])
    return n - int(wavelength < edges[n])


def span_grid(ds: xr.Dataset) -> SpanGrid:
    """The spans of a slit dataset's disperser.

    They depend on the disperser alone, never on the data, so that masters and moments of different
    programmes fit together.

    Raises
    ------
    ParameterError
        Where the disperser in ``attrs["configuration"]`` is unknown.

    Examples
    --------
    >>> span_grid(xr.Dataset(attrs={"configuration": "prism-clear"})).size
    489
    """
    grating = str(ds.attrs.get("configuration", "")).split("-")[0]
    low, high = _RANGE.get(grating, (1.0, 2.0))
    wave = np.linspace(low, high, 20001)
    step = 1 / dispersion(grating, wave)
    u = np.concatenate([[0], np.cumsum(0.5 * (step[1:] + step[:-1]) * np.diff(wave))])
    return SpanGrid(np.interp(np.arange(int(u[-1]) + 1), u, wave))
