"""Noise, outliers and flags as in unrectified, calibrated PRISM slitlets."""

from __future__ import annotations

import numpy as np

from ..quality import JWST_FLAGS
from .dispersers import Disperser, get_disperser

__all__ = [
    "DEAF",
    "DEAF_ERROR",
    "EXPOSURE_TIME",
    "bad_pixels",
    "noise_levels",
    "pixel_hash",
    "wild_values",
]

#: Effective exposure time the noise levels hold for, in s.
EXPOSURE_TIME = 1021.222

# Noise of one pixel at a shutter centre [MJy/sr]: standard deviation by read noise, and variance
# by photons per unit of flux. Source: medians over good pixels of the three CEERS slitlets
# (programme 1345, one integration of 14 groups, NRSIRS2) from 1.5 um on. Below, where those have
# no pixels, extrapolated with lambda / (efficiency dispersion path loss) and an efficiency that
# falls to 0.75, 0.5 and 0.35 of its 1.5 um value at 1.0, 0.7 and 0.6 um: an assumption.
_WAVELENGTH = np.array(
    [0.55, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5]
    + [1.6, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.2, 5.4]
)
_READ = 1e-3 * np.array(
    [19.0, 9.5, 5.2, 3.6, 2.8, 2.36, 1.94, 1.91]
    + [2.15, 2.45, 2.96, 3.5, 4.8, 6.5, 8.75, 10.6, 14.8, 17.2, 19.5]
)
_PHOTON = 1e-3 * np.array(
    [5.6, 2.8, 1.53, 1.06, 0.82, 0.69, 0.57, 0.56]
    + [0.62, 0.73, 0.83, 1.03, 1.48, 1.8, 2.4, 2.9, 3.85, 4.5, 5.2]
)

# Kinds of unusable pixel: flags besides DO_NOT_USE and share among them. Source: counts in the
# CEERS slitlets.
_NO_FLAT = JWST_FLAGS["NO_FLAT_FIELD"] | JWST_FLAGS["UNRELIABLE_FLAT"]
_KINDS = (
    (_NO_FLAT, 0.62),
    (_NO_FLAT | JWST_FLAGS["OTHER_BAD_PIXEL"], 0.23),
    (JWST_FLAGS["NO_GAIN_VALUE"], 0.06),
    (JWST_FLAGS["HOT"] | JWST_FLAGS["DEAD"], 0.05),
    (JWST_FLAGS["SATURATED"] | JWST_FLAGS["JUMP_DET"], 0.04),
)
# Flags of usable pixels and how common they are there, from the same slitlets.
_HARMLESS = (
    (JWST_FLAGS["TELEGRAPH"], 0.03),
    (JWST_FLAGS["UNRELIABLE_BIAS"], 0.004),
    (JWST_FLAGS["LOW_QE"] | JWST_FLAGS["NO_SAT_CHECK"], 1.5e-4),
)
#: Flags of usable pixels that hardly see light, with a huge and true error [MJy/sr]: one of the
#: 6,231 usable ones of each CEERS slitlet, with errors of 54 to 58.
DEAF, DEAF_ERROR = _HARMLESS[2][0], 55.0
# Of the unusable pixels 15 % hold a number (none of the CEERS slitlets' do, those of other
# reductions do); where they hold none, six in ten have an error of 0.
_FINITE, _NO_ERROR = 0.15, 0.6
_LASTING = 0.97  # of them are the same in all exposures (323 of 331)


def noise_levels(
    wavelength: np.ndarray, disperser: Disperser, exposure_time: float
) -> tuple[np.ndarray, np.ndarray]:
    """Noise of a pixel at a shutter centre.

    Parameters
    ----------
    wavelength
        In um, any shape.
    disperser
        Light of a grating's pixel comes from fewer um than the PRISM's: both terms are scaled by
        the ratio of dispersions, at equal efficiency.
    exposure_time
        In s; both variances fall with it.

    Returns
    -------
    read
        Standard deviation by read noise, MJy/sr.
    photon
        Variance by photons per unit of flux, MJy/sr.
    """
    ratio = get_disperser("PRISM").dispersion(wavelength) / disperser.dispersion(wavelength)
    time = EXPOSURE_TIME / exposure_time
    read, photon = (np.exp(np.interp(wavelength, _WAVELENGTH, np.log(t))) for t in (_READ, _PHOTON))
    return read * ratio * np.sqrt(time), photon * ratio * time


def pixel_hash(rows: np.ndarray, columns: np.ndarray, key: int) -> np.ndarray:
    """A uniform random number of each detector pixel, the same in every exposure.

    Parameters
    ----------
    rows, columns
        Detector pixels, broadcast against one another.
    key
        Of this detector and purpose.

    Returns
    -------
    numpy.ndarray
        float64 in [0, 1): the splitmix64 mix of Steele, Lea & Flood (2014).
    """
    x = (rows.astype(np.uint64) << np.uint64(11)) | columns.astype(np.uint64)
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def bad_pixels(fixed: np.ndarray, chance: np.ndarray, fraction: float) -> np.ndarray:
    """Quality flags.

    Parameters
    ----------
    fixed
        `pixel_hash` of each pixel: most unusable pixels are so in every exposure.
    chance
        Uniform random numbers of this exposure: the others, mostly cosmic rays, are not.
    fraction
        Of unusable pixels.

    Returns
    -------
    numpy.ndarray
        uint32.
    """
    quality = np.zeros(fixed.shape, np.uint32)
    low = fraction
    for flag, common in _HARMLESS:
        quality[(fixed >= low) & (fixed < low + common)] = flag
        low += common
    share = _LASTING * fraction
    lasting = fixed < share
    bad = lasting | (chance < (fraction - share) / (1 - share))
    kinds, shares = zip(*_KINDS, strict=True)
    pick = np.where(lasting, fixed / max(share, 1e-12), 1.0)[bad]
    index = np.minimum(np.searchsorted(np.cumsum(shares), pick), len(kinds) - 1)
    quality[bad] = np.array(kinds, np.uint32)[index] | JWST_FLAGS["DO_NOT_USE"]
    return quality


def wild_values(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error of unusable pixels: mostly NaN with an error of 0 or far too large.

    Returns
    -------
    flux, error
        ``(n,)``; fluxes reach down to -20 and errors up to 7e27, as in the CEERS slitlets.
    """
    finite = rng.random(n) < _FINITE
    flux = np.where(finite, np.clip(rng.standard_cauchy(n), -20.0, 20.0), np.nan)
    error = 10.0 ** rng.uniform(-1.0, np.log10(7e27), n)
    error[~finite & (rng.random(n) < _NO_ERROR)] = 0.0
    return flux, error
