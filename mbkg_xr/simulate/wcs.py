"""World coordinates of simulated slits: detector -> slit_frame -> world, as of STScI products."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.coordinates import ICRS
from astropy.modeling.models import (
    Const1D,
    Identity,
    Mapping,
    Pix2Sky_TAN,
    Polynomial2D,
    RotateNative2Celestial,
    Scale,
    Shift,
    Tabular1D,
)
from gwcs import WCS
from gwcs import coordinate_frames as cf

from .dispersers import OVERSAMPLING, Disperser
from .geometry import OPEN_PITCH, Trace

__all__ = ["slit_wcs", "wavelength_models"]

# Open size of a shutter on the sky, arcsec (JDox).
_OPEN_X, _OPEN_Y = 0.20, 0.46


def wavelength_models(disperser: Disperser) -> tuple[Tabular1D, Tabular1D]:
    """Models from u to wavelength in metres, and back.

    One pair serves all slits of a file, which then holds the table once. Its steps of 1/16 pixel
    keep linear interpolation within 2e-7 um.
    """
    grid, wavelength = disperser.table
    step = OVERSAMPLING // 16
    grid, metres = grid[::step].copy(), wavelength[::step] * 1e-6
    options = {"bounds_error": False, "fill_value": np.nan}
    return (
        Tabular1D(points=grid, lookup_table=metres, **options),
        Tabular1D(points=metres, lookup_table=grid, **options),
    )


def slit_wcs(
    t: Trace,
    x_start: int,
    y_start: int,
    shape: tuple[int, int],
    origin: float,
    position: tuple[float, float],
    tables: tuple[Tabular1D, Tabular1D],
) -> WCS:
    """The WCS of one slit's cut-out.

    Parameters
    ----------
    t
        The slit's trace.
    x_start, y_start, shape
        0-based detector pixel of the cut-out's first, and its ``(ny, nx)``.
    origin
        yrel where slit_y is 0: the shutter with the source.
    position
        Its right ascension and declination, degrees.
    tables
        From `wavelength_models`.

    Returns
    -------
    gwcs.WCS
        From 0-based pixels of the cut-out to ``slit_frame`` (slit_x, slit_y in open shutter sizes,
        wavelength in metres) to ``world`` (right ascension, declination, wavelength in um). All
        transforms have inverses.
    """
    to_wavelength, to_u = tables
    # With p and q from the trace's reference point, above = q - s p - c p^2 (rows above the trace).
    s, c = t.slope / 200, t.curve / 200**2
    a, b = -OPEN_PITCH / t.pitch, -t.tilt / t.stretch
    slit_y = Polynomial2D(2, c0_0=-OPEN_PITCH * origin, c1_0=-a * s, c2_0=-a * c, c0_1=a)
    along = Polynomial2D(2, c1_0=1 / t.stretch - b * s, c2_0=-b * c, c0_1=b)
    to_slit = (
        Shift(x_start - t.x) & Shift(y_start - t.y)
        | Mapping((0, 0, 1, 0, 1))
        | Const1D(0.0) & slit_y & (along | to_wavelength)
    )
    # The inverse: p is linear in slit_y and u, and q = above + s p + c p^2.
    p0, p1, p2 = -t.tilt * origin * t.pitch, -t.tilt * t.pitch / OPEN_PITCH, t.stretch
    column = Polynomial2D(1, c0_0=p0, c1_0=p1, c0_1=p2)
    row = Polynomial2D(
        2,
        c0_0=-origin * t.pitch + s * p0 + c * p0**2,
        c1_0=-t.pitch / OPEN_PITCH + s * p1 + 2 * c * p0 * p1,
        c0_1=s * p2 + 2 * c * p0 * p2,
        c2_0=c * p1**2,
        c1_1=2 * c * p1 * p2,
        c0_2=c * p2**2,
    )
    to_slit.inverse = (
        Mapping((1, 2), n_inputs=3)
        | Identity(1) & to_u
        | Mapping((0, 1, 0, 1))
        | column & row
        | Shift(t.x - x_start) & Shift(t.y - y_start)
    )
    to_world = (
        Scale(_OPEN_X / 3600) & Scale(_OPEN_Y / 3600)
        | Pix2Sky_TAN()
        | RotateNative2Celestial(*position, 180.0)
    ) & Scale(1e6)

    detector = cf.Frame2D(name="detector", axes_order=(0, 1), unit=(u.pix, u.pix))
    slit = cf.CompositeFrame(
        [
            cf.Frame2D(
                name="slit_spatial",
                axes_order=(0, 1),
                unit=(u.dimensionless_unscaled, u.dimensionless_unscaled),
                axes_names=("x_slit", "y_slit"),
            ),
            cf.SpectralFrame(name="slit_spectral", axes_order=(2,), unit=(u.m,)),
        ],
        name="slit_frame",
    )
    world = cf.CompositeFrame(
        [
            cf.CelestialFrame(name="sky", axes_order=(0, 1), reference_frame=ICRS()),
            cf.SpectralFrame(name="spectral", axes_order=(2,), unit=(u.um,)),
        ],
        name="world",
    )
    wcs = WCS([(detector, to_slit), (slit, to_world), (world, None)])
    wcs.bounding_box = ((-0.5, shape[1] - 0.5), (-0.5, shape[0] - 0.5))
    return wcs
