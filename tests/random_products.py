"""Random ragged products: minimal ``_cal`` files and NIPS spectra, fast to write, of any bits.

Pixels are given as bits, so that NaN payloads and all flags are what a test makes them. The files
are built with astropy alone; the WCS of each slit is the simulator's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import asdf
import numpy as np
from astropy.io import fits
from hypothesis import strategies as st

from mbkg_xr.simulate.dispersers import get_disperser
from mbkg_xr.simulate.geometry import trace
from mbkg_xr.simulate.wcs import slit_wcs, wavelength_models

CAL = {
    "flux": "SCI",
    "error": "ERR",
    "quality": "DQ",
    "wavelength": "WAVELENGTH",
    "var_rnoise": "VAR_RNOISE",
    "var_poisson": "VAR_POISSON",
}
NIPS = {"flux": "DATA", "quality": "QUALITY", "variance": "VAR", "wavelength": "LAMBDA"}
MOST_SLITS = 4
#: Bits of float32 that a careless copy changes: a quiet and signalling NaNs with payloads, of both
#: signs, infinities, negative zero, denormals.
ODD_BITS = np.array(
    [0x7FC00001, 0x7F800001, 0xFFC12345, 0xFF923456, 0x7F800000, 0xFF800000, 0x80000000, 1, 0],
    np.uint32,
)


@dataclass(frozen=True)
class Slit:
    """A slitlet's number and its pixels, as bits."""

    slitlet: int
    bits: dict[str, np.ndarray] = field(hash=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bits["flux"].shape


@dataclass(frozen=True)
class Exposure:
    """What one ``_cal`` file holds."""

    number: int
    detector: str
    slits: tuple[Slit, ...]

    @property
    def exposure(self) -> str:
        return f"jw09999001001_03101_{self.number:05d}"

    @property
    def filename(self) -> str:
        return f"{self.exposure}_{self.detector.lower()}_cal.fits"


def slit(slitlet: int, shape: tuple[int, int], seed: int, variables: Sequence[str] = ()) -> Slit:
    """A slit of random bits: a tenth of the pixels odd, flags all over."""
    rng = np.random.default_rng([seed, slitlet])
    bits = {}
    for variable in variables or CAL:
        if variable == "quality":
            bits[variable] = rng.integers(0, 2**32, shape, dtype=np.uint32)
            bits[variable].flat[0] = 0xFFFFFFFF
            continue
        if variable == "wavelength":
            values = np.sort(rng.uniform(0.6, 5.3, shape), axis=1)
        else:
            values = rng.lognormal(0, 1, shape)
        bits[variable] = values.astype(np.float32).view(np.uint32).copy()
        odd = rng.random(shape) < 0.1
        bits[variable][odd] = rng.choice(ODD_BITS, int(odd.sum()))
    return Slit(slitlet, bits)


@st.composite
def programmes(draw, exposures: int = 3, detectors: Sequence[str] = ("NRS1", "NRS2")):
    """Strategy: lists of `Exposure`, ragged in slits, rows and columns."""
    out = []
    numbers = draw(st.lists(st.integers(1, 9), min_size=1, max_size=exposures, unique=True))
    for number in numbers:
        for detector in draw(st.sets(st.sampled_from(detectors), min_size=1)):
            slitlets = draw(
                st.lists(st.integers(1, 250), min_size=1, max_size=MOST_SLITS, unique=True)
            )
            seed = draw(st.integers(0, 2**31))
            shapes = [draw(st.tuples(st.integers(1, 9), st.integers(2, 20))) for _ in slitlets]
            slits = [slit(n, s, seed) for n, s in zip(slitlets, shapes, strict=True)]
            out.append(Exposure(number, detector, tuple(slits)))
    return out


def exposure(number: int, detector: str = "NRS1", slits: int = 3, seed: int = 0) -> Exposure:
    """One exposure, ragged, made of a seed."""
    rng = np.random.default_rng([seed, number])
    slitlets = np.sort(rng.choice(np.arange(1, 250), slits, replace=False))
    shapes = [(int(rng.integers(3, 12)), int(rng.integers(5, 40))) for _ in slitlets]
    made = [slit(int(n), s, seed + number) for n, s in zip(slitlets, shapes, strict=True)]
    return Exposure(number, detector, tuple(made))


def write_cal(what: Exposure, directory: Path, name: str | None = None) -> Path:
    """Write an exposure as a ``MultiSlitModel`` file, of at most `MOST_SLITS` slits."""
    primary = fits.PrimaryHDU()
    primary.header.update(_PRIMARY)
    primary.header.update(
        {
            "DETECTOR": what.detector,
            "FILENAME": what.filename,
            "PATT_NUM": what.number,
            "DATAMODL": "MultiSlitModel",
        }
    )
    hdus = [primary]
    for version, one in enumerate(what.slits, start=1):
        for variable, bits in one.bits.items():
            values = bits if variable == "quality" else bits.view(np.float32)
            hdu = fits.ImageHDU(values, name=CAL[variable], ver=version)
            if variable == "flux":
                hdu.header.update(_SLIT | {"SLTNAME": str(one.slitlet), "SLITID": one.slitlet})
                hdu.header.update({"SOURCEID": one.slitlet, "SRCNAME": f"9999_{one.slitlet}"})
            hdus.append(hdu)
    blob = np.frombuffer(_asdf(len(what.slits)), np.uint8)
    column = fits.Column("ASDF_METADATA", format=f"{blob.size}B", array=blob[None, :])
    hdus.append(fits.BinTableHDU.from_columns([column], name="ASDF"))
    path = Path(directory) / (name or what.filename)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


_PRIMARY = {
    "TELESCOP": "JWST",
    "INSTRUME": "NIRSPEC",
    "GRATING": "PRISM",
    "FILTER": "CLEAR",
    "EXP_TYPE": "NRS_MSASPEC",
    "PROGRAM": "09999",
    "OBSERVTN": "001",
    "VISIT": "001",
    "EFFEXPTM": 1021.222,
    "EXPMID": 59934.25,
    "S_WCS": "COMPLETE",
    "S_EXTR2D": "COMPLETE",
    "S_FLAT": "COMPLETE",
    "S_PTHLOS": "COMPLETE",
    "S_BARSHA": "COMPLETE",
    "S_PHOTOM": "COMPLETE",
    "S_WAVCOR": "SKIPPED",
    "S_BKDSUB": "SKIPPED",
}
_SLIT = {
    "BUNIT": "MJy/sr",
    "SRCTYPE": "EXTENDED",
    "SHUTSTA": "1x1",
    "MSAQUAD": 2,
    "SHUTTRID": 295 + 32 * 365,
    "SLTSTRT1": 1,
    "SLTSTRT2": 659,
    "SLTSIZE1": 1,
    "PIXAR_SR": 4.85e-13,
}


@cache
def _asdf(slits: int) -> bytes:
    """The ASDF extension of a product of some slits; which slits does not matter to it."""
    disperser = get_disperser("PRISM", "CLEAR")
    tables = wavelength_models(disperser)
    t = trace(2, 295, 33, "NRS1", disperser, x_offset=0.0)
    made = [
        {
            "meta": {"wcs": slit_wcs(t, 0, 658, (12, 40), 0.0, (150.0 + i, 2.0), tables)},
            "slit_ymin": -1.725,
            "slit_ymax": 1.725,
            "shutter_state": "1x1",
            "xcen": 295,
            "ycen": 33,
            "quadrant": 2,
        }
        for i in range(slits)
    ]
    buffer = io.BytesIO()
    asdf.AsdfFile({"meta": {}, "slits": made}).write_to(buffer)
    return buffer.getvalue()


def write_nips(
    number: int, slitlet: int, directory: Path, *, shape: tuple[int, int] = (7, 30), seed: int = 0
) -> Path:
    """Write a NIPS spectrum on both detectors, with random 64-bit flags."""
    rng = np.random.default_rng([seed, number, slitlet])
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "INSTRUME": "NIRSPEC",
            "NPLS_V": "NIPS 2.0.48",
            "OBS_ID": f"jw09999001001_03101_{number:05d}",
            "GWA_POS": "PRISM",
            "FWA_POS": "CLEAR",
            "MODE": "MOS",
            "PROGRAM": "09999",
            "SLITLET": slitlet,
            "SLITYUNI": "PITCH",
            "NSHUT": 3,
            "NX491": shape[1],
            "NX492": shape[1],
        }
    )
    hdus = [primary]
    for suffix in "12":
        wavelength = np.sort(rng.uniform(0.6e-6, 5.3e-6, shape), axis=1)
        wavelength[rng.random(shape) < 0.1] = 0
        for name, unit, values in (
            ("DATA", "MJy/sr", rng.normal(1, 0.2, shape)),
            ("QUALITY", "UNITLESS", rng.integers(0, 2**64, shape, dtype=np.uint64)),
            ("VAR", "(MJy/sr)**2", rng.uniform(0, 1, shape)),
            ("LAMBDA", "METER", wavelength),
            ("SLITY", "UNITLESS", rng.uniform(-1.5, 1.5, shape)),
        ):
            values = values if name == "QUALITY" else values.astype(np.float32)
            hdu = fits.ImageHDU(values, name=name + suffix)
            hdu.header.update({"BUNIT": unit, "CRVAL1": 5.0, "CRVAL2": 5.0, "CDELT1": 1.0})
            hdu.header.update(
                {"CRPIX1": 5.0, "CRPIX2": 5.0, "CDELT2": 1.0, "SCAID": 490 + int(suffix)}
            )
            hdus.append(hdu)
    path = Path(directory) / f"Trace_SLITLET_{slitlet}_jw09999001001_03101_{number:05d}.fits"
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path
