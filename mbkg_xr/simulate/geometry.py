"""Where slits fall: from a shutter of the MSA to detector pixels, wavelength and yrel.

The focal plane has one frame for both detectors: its columns are those of NRS1, and NRS2 lies
2194.224 columns to the right. All pixel coordinates are 0-based, of pixel centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..barshadow import shutter_positions
from .dispersers import Disperser

__all__ = [
    "DETECTOR_SIZE",
    "EDGE",
    "MSA_SHAPE",
    "OPEN_PITCH",
    "Trace",
    "cutout",
    "msa_position",
    "pixel_coordinates",
    "sky_position",
    "trace",
]

DETECTOR_SIZE = 2048
#: Shutters of one MSA quadrant along dispersion (``shutter_row``) and across (``shutter_column``).
MSA_SHAPE = (365, 171)
#: Pitches that a cut-out reaches beyond the centre of its outermost shutters, as in PRISM
#: reductions whose cut-outs are 21 rows high (yrel to +-1.52).
EDGE = 0.52
#: Pitch of shutters in units of the open height, which slit_y counts. Source: assign_wcs of the
#: JWST pipeline.
OPEN_PITCH = 1.15

# arcsec a metre of the MSA: its pitch of 0.2035 mm is 0.53 arcsec (JDox); and right ascension and
# declination of its centre: the CEERS field.
_PLATE_SCALE = 0.53 / 0.2035e-3
_CENTRE = (214.9, 52.9)

# Origin of each detector in the focal plane. Source: 128 slitlets of the CEERS PRISM traces
# (fitted by rubies-msa-mask) that are traced on both detectors.
_ORIGIN = {"NRS1": (0.0, 0.0), "NRS2": (2194.224, -0.0947)}

# Quadratic polynomials in r = (shutter_row - 183) / 182 and c = (shutter_column - 86) / 85, for
# each MSA quadrant, in the order 1, r, c, r^2, r c, c^2. Source: least squares over the 1,412
# CEERS PRISM traces of 1x3 slitlets fitted by rubies-msa-mask. x and y: focal plane position of
# 3 um, counted from 1 (scatter 1.0 and 0.02 pixel, x mostly from visit to visit); stretch: pixels
# per pixel of the JDox dispersion table (1e-5); slope and curve: y = y3 + slope v + curve v^2 along
# the trace with v = (x - x3) / 200 (0.002 pixel).
_TRACES = {
    1: {
        "x": (2443.172948, -465.502163, 65.182916, -3.916646, -0.438431, -2.590052),
        "y": (1612.439905, 1.342216, -424.46418, -0.093586, -0.352632, -0.689193),
        "stretch": (1.001209, 0.006522, -0.007038, 0.000697, -0.000236, 0.000392),
        "slope": (1.628468, -0.845947, 0.050133, 0.000113, 0.085925, -0.010053),
        "curve": (0.179598, -0.003699, -0.018983, 0.003069, -0.000049, 0.001338),
    },
    2: {
        "x": (2609.796051, -467.020493, 50.111754, -3.722011, -0.512311, -2.835079),
        "y": (403.949729, 0.491473, -428.407548, -0.071268, -0.209863, -0.762368),
        "stretch": (0.984315, 0.00595, -0.004932, 0.000641, -0.000163, 0.000339),
        "slope": (1.700572, -0.642525, 0.003745, -0.000237, 0.058058, -0.004936),
        "curve": (0.135879, -0.002444, -0.01266, 0.001586, 0.000912, 0.001053),
    },
    3: {
        "x": (1269.167952, -483.509401, 64.232713, -3.545225, -0.263649, -2.932118),
        "y": (1614.971946, 1.200106, -425.517168, 0.083626, -0.503695, -0.556976),
        "stretch": (1.021808, 0.010388, -0.00784, 0.000942, -0.00044, 0.000444),
        "slope": (-0.518807, -0.929299, 0.291117, -0.034871, 0.113641, -0.031086),
        "curve": (0.188988, 0.011505, -0.023346, 0.003098, -0.003587, 0.002168),
    },
    4: {
        "x": (1429.110126, -484.59632, 48.793757, -3.684727, -0.524312, -2.664498),
        "y": (404.670734, 0.201267, -428.916974, 0.042252, -0.222758, -0.680424),
        "stretch": (1.003082, 0.009336, -0.005493, 0.000805, -0.000322, 0.000375),
        "slope": (0.08153, -0.681483, 0.1494, -0.016639, 0.06574, -0.020047),
        "curve": (0.138701, 0.004546, -0.013245, 0.001235, -0.001714, 0.001556),
    },
}

# First shutter's centre and pitch of each quadrant, along and across dispersion, in m. Source: the
# ESA instrument model's description of the MSA (its rotations, below 5e-4, are left out).
_METROLOGY = {
    1: ((-0.04269253, -0.04176972), (0.10498755e-3, 0.20353845e-3)),
    2: ((-0.04280757, 0.00725996), (0.10498259e-3, 0.20349942e-3)),
    3: ((0.00459343, -0.04177503), (0.10498188e-3, 0.20355015e-3)),
    4: ((0.00460352, 0.00724746), (0.10497668e-3, 0.20349011e-3)),
}

# Gratings: the same map of the MSA, moved so that the middle of the band of the MSA's centre
# falls in the middle of the focal plane; an approximation, for no grating traces are at hand.
_GRATING_SHIFT = 183.0
# Their traces are up to nine times longer, and a parabola measured on the PRISM's 400 pixels
# would bend them by hundreds of pixels; a tenth keeps the bow of order ten pixels.
_GRATING_CURVE = 0.1


@dataclass(frozen=True)
class Trace:
    """Trace of the middle shutter of one slitlet on one detector.

    Attributes
    ----------
    x, y
        Detector column and row of the reference wavelength.
    stretch
        Pixels per pixel of the dispersion table.
    slope, curve
        ``y = y0 + slope v + curve v^2`` along the trace, ``v = (column - x) / 200``.
    tilt
        Columns a row along which wavelength is constant (negative: it leans left going up).
    pitch
        Rows a shutter pitch. yrel falls with the row.
    """

    x: float
    y: float
    stretch: float
    slope: float
    curve: float
    tilt: float
    pitch: float

    def row(self, column: np.ndarray | float) -> np.ndarray | float:
        """Row of the middle shutter's centre at detector columns."""
        v = (column - self.x) / 200.0
        return self.y + (self.slope + self.curve * v) * v


def msa_position(quadrant: int, row: float, column: float) -> tuple[float, float]:
    """Place of a shutter's centre on the MSA, along and across dispersion, in m.

    Examples
    --------
    >>> [round(float(v), 5) for v in msa_position(2, 295, 33)]
    [-0.01194, 0.01377]
    """
    (x, y), (along, across) = _METROLOGY[quadrant]
    return x + (row - 1) * along, y + (column - 1) * across


def sky_position(quadrant: int, row: int, column: float) -> tuple[float, float]:
    """Right ascension and declination of a shutter in degrees, north along its columns."""
    along, across = msa_position(quadrant, row, column)
    ra, dec = _CENTRE
    dec += across * _PLATE_SCALE / 3600
    return ra + along * _PLATE_SCALE / 3600 / float(np.cos(np.radians(dec))), dec


def trace(
    quadrant: int,
    row: float,
    column: float,
    detector: str,
    disperser: Disperser,
    *,
    x_offset: float = 0.0,
) -> Trace:
    """The trace of one shutter.

    Parameters
    ----------
    quadrant, row, column
        MSA quadrant (1 to 4), and the shutter's place along (1 to 365) and across (1 to 171)
        dispersion.
    detector
        ``"NRS1"`` or ``"NRS2"``.
    disperser
        From `get_disperser`.
    x_offset
        Columns by which the grating wheel moved the spectra in this visit.

    Examples
    --------
    >>> from mbkg_xr.simulate.dispersers import get_disperser
    >>> t = trace(2, 295, 33, "NRS2", get_disperser("PRISM"))
    >>> round(t.tilt, 3), round(-1 / t.pitch, 4)
    (-0.125, -0.1988)
    """
    r, c = (row - 183) / 182, (column - 86) / 85
    basis = np.array([1.0, r, c, r * r, r * c, c * c])
    by_column = np.array([0.0, 0.0, 1.0, 0.0, r, 2 * c]) / 85
    table = _TRACES[quadrant]
    x, y, stretch, slope, curve = (
        float(basis @ table[k]) for k in ("x", "y", "stretch", "slope", "curve")
    )
    dx, dy = float(by_column @ table["x"]), float(by_column @ table["y"])
    x0, y0 = _ORIGIN[detector]
    if disperser.grating != "PRISM":
        x += _GRATING_SHIFT
        curve *= _GRATING_CURVE
    return Trace(x - 1 - x0 + x_offset, y - 1 - y0, stretch, slope, curve, dx / dy, -dy)


def cutout(t: Trace, disperser: Disperser, n_shutters: int) -> tuple[slice, slice]:
    """Detector rows and columns of a slit's cut-out, cut at the detector's edges.

    Returns
    -------
    rows, columns
        Slices in 0-based detector pixels; of no length where nothing falls on the detector.
    """
    ends = t.x + t.stretch * disperser.u(np.array(disperser.band))
    x0, x1 = np.clip([np.ceil(ends[0]), np.floor(ends[1]) + 1], 0, DETECTOR_SIZE).astype(int)
    if x1 <= x0:
        return slice(0, 0), slice(0, 0)
    at = np.linspace(x0, x1 - 1, 33)
    shutters = shutter_positions(n_shutters)
    low = np.min(t.row(at)) - (shutters[-1] + EDGE) * t.pitch
    high = np.max(t.row(at)) - (shutters[0] - EDGE) * t.pitch
    # Blank rows as in the CEERS slitlets: three before the slit and one after it.
    y0, y1 = np.clip([np.ceil(low) - 3, np.floor(high) + 2], 0, DETECTOR_SIZE).astype(int)
    return slice(int(y0), int(max(y1, y0))), slice(int(x0), int(x1))


def pixel_coordinates(
    t: Trace, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Position along the dispersion table and along the slit.

    Parameters
    ----------
    t
        The slit's trace.
    rows, columns
        Detector coordinates, broadcast against one another.

    Returns
    -------
    u
        Pixels of the dispersion table from the reference wavelength.
    yrel
        Shutter pitches from the slitlet's middle shutter.
    """
    above = rows - t.row(columns)
    return (columns - t.x - t.tilt * above) / t.stretch, -above / t.pitch
