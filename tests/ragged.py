"""Random ragged products: files of the real layouts whose pixels are arbitrary bits.

Slits of any size, any flags, NaNs of any payload, infinities and denormal numbers. The metadata
(the ASDF extension with its WCS) are those of products that stdatamodels wrote.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

from mbkg_xr.simulate import simulate_program, write_jwst

NAMES = ("SCI", "ERR", "DQ", "WAVELENGTH", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "BARSHADOW")


def templates(folder: Path, most: int) -> dict[int | None, fits.HDUList]:
    """Products by stdatamodels: of 1 ... `most` slits, and (None) of a single slit."""
    from stdatamodels.jwst import datamodels

    made: dict[int | None, fits.HDUList] = {}
    for n in range(1, most + 1):
        ds = simulate_program(exposures=1, slits=n, background_slits=1, seed=n)
        (path, _) = write_jwst(ds, folder / str(n))
        made[n] = _in_memory(path)
    with datamodels.open(path) as model:
        slit = datamodels.SlitModel(model.slits[0].instance)
        slit.update(model, only="PRIMARY")
        slit.save(folder / "slit.fits")
    made[None] = _in_memory(folder / "slit.fits")
    return made


def _in_memory(path: Path) -> fits.HDUList:
    with fits.open(path, memmap=False) as hdus:
        return fits.HDUList([h.copy() for h in hdus])


def any_bits(rng: np.random.Generator, shape: tuple[int, int], dtype: str = "u4") -> np.ndarray:
    """Pixels of any bits; a good part of them special."""
    bits = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    special = [0, 1, np.iinfo(dtype).max, 1 << (8 * bits.dtype.itemsize - 1)]
    if dtype == "u4":
        # Quiet and signalling NaNs with payloads, infinities, a denormal, 7e27.
        special += [0x7FC00001, 0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x6DB4F36B]
    chosen = rng.choice(np.array(special, dtype), shape)
    return np.where(rng.random(shape) < 0.3, chosen, bits)


def floats(
    rng: np.random.Generator, shape: tuple[int, int], *, signalling: bool = True
) -> np.ndarray:
    """Any numbers; arithmetic warns of signalling NaNs, so not for what is computed with."""
    bits = any_bits(rng, shape)
    if not signalling:
        bits |= np.where(np.isnan(bits.view(np.float32)), np.uint32(1 << 22), np.uint32(0))
    return bits.view(np.float32)


def wavelengths(rng: np.random.Generator, shape: tuple[int, int], outside: float) -> np.ndarray:
    values = rng.uniform(0.6, 5.3, shape).astype(np.float32)
    return np.where(rng.random(shape) < 0.3, np.float32(outside), values)


def jwst_product(
    path: Path,
    rng: np.random.Generator,
    shapes: list[tuple[int, int]],
    template: fits.HDUList,
    exposure: int,
) -> Path:
    """A ``_cal`` (or, from that template, a single-slit product) of slits of these shapes."""
    hdus = fits.HDUList([template[0].copy()])
    name = f"jw09999001001_03101_{exposure:05d}_nrs1"
    hdus[0].header["FILENAME"], hdus[0].header["PATT_NUM"] = f"{name}_cal.fits", exposure
    for version, shape in enumerate(shapes, 1):
        for extension in NAMES:
            header = template[extension, version].header.copy()
            if extension == "DQ":
                pixels = any_bits(rng, shape)
            elif extension == "WAVELENGTH":
                pixels = wavelengths(rng, shape, np.nan)
            else:
                pixels = floats(rng, shape)
            hdu = fits.ImageHDU(pixels)
            for key in ("NAXIS1", "NAXIS2"):
                header[key] = hdu.header[key]
            header["BITPIX"] = hdu.header["BITPIX"]
            hdu.header = header
            hdu.data = pixels
            hdus.append(hdu)
    hdus.append(template["ASDF"].copy())
    path.parent.mkdir(parents=True, exist_ok=True)
    hdus.writeto(path)
    return path


def nips_product(
    path: Path, rng: np.random.Generator, shapes: dict[str, tuple[int, int]], slitlet: int
) -> Path:
    """A NIPS spectrum on the detectors (by suffix) of these shapes."""
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "INSTRUME": "NIRSPEC",
            "OBS_ID": "jw09999001001_03101_00001",
            "PROGRAM": "09999",
            "GWA_POS": "PRISM",
            "FWA_POS": "CLEAR",
            "MODE": "MOS",
            "SLITLET": slitlet,
            "SLITYUNI": "PITCH",
            "NPLS_V": "NIPS 2.0.48",
        }
    )
    hdus = fits.HDUList([primary])
    for suffix, shape in shapes.items():
        wavelength = wavelengths(rng, shape, 0.0) * np.float32(1e-6)
        for name, unit, pixels in (
            ("DATA", "MJy/sr", floats(rng, shape)),
            ("QUALITY", "UNITLESS", any_bits(rng, shape, "u8")),
            ("VAR", "(MJy/sr)**2", floats(rng, shape, signalling=False)),
            ("LAMBDA", "METER", wavelength),
            ("SLITY", "UNITLESS", floats(rng, shape, signalling=False)),
            ("MSAX", "METER", floats(rng, shape)),
        ):
            hdu = fits.ImageHDU(pixels, name=f"{name}{suffix}")
            hdu.header["BUNIT"] = unit
            hdus.append(hdu)
    path.parent.mkdir(parents=True, exist_ok=True)
    hdus.writeto(path)
    return path
