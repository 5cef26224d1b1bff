"""Quality flags: which bit means what, and which bits make a pixel unusable.

Two tables: the 32-bit flags of STScI products and the 64-bit flags of ESA NIPS products. A dataset
carries its own table as the CF attributes ``flag_masks`` and ``flag_meanings`` of ``quality``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import xarray as xr

from .errors import DatasetError, ParameterError

__all__ = [
    "DEFAULT_EXCLUDE",
    "JWST_FLAGS",
    "NIPS_FLAGS",
    "do_not_use",
    "excluded_bits",
    "flag_attrs",
    "flag_mask",
    "flag_table",
]

# Source: the data quality definitions of the JWST pipeline (stdatamodels.jwst.datamodels.dqflags).
JWST_FLAGS: Mapping[str, int] = {
    name: 1 << bit
    for bit, name in enumerate(
        "DO_NOT_USE SATURATED JUMP_DET DROPOUT OUTLIER PERSISTENCE AD_FLOOR CHARGELOSS "
        "UNRELIABLE_ERROR NON_SCIENCE DEAD HOT WARM LOW_QE RC TELEGRAPH NONLINEAR BAD_REF_PIXEL "
        "NO_FLAT_FIELD NO_GAIN_VALUE NO_LIN_CORR NO_SAT_CHECK UNRELIABLE_BIAS UNRELIABLE_DARK "
        "UNRELIABLE_SLOPE UNRELIABLE_FLAT OPEN ADJ_OPEN FLUX_ESTIMATED MSA_FAILED_OPEN "
        "OTHER_BAD_PIXEL REFERENCE_PIXEL".split()
    )
}

# Source: the quality extension of an ESA NIPS 2.0.48 product; bits 16-18 and 52-62 are unassigned
# there. OUTLIER, bit 62, is this package's own: what `flag_outliers` finds must not pass for what
# NIPS found unusable, and counts in the scores as it does with STScI's flags.
NIPS_FLAGS: Mapping[str, int] = {
    name: 1 << bit
    for bit, name in enumerate(
        "OPEN ADJACENT_OPEN HOT WARM SHORTED TELEGRAPH LOW_QE BAD_REFERENCE "
        "UNRELIABLE_LINEARITY UNRELIABLE_FLAT HIGH_NOISE UNRELIABLE_BIAS GHOST_CROSSTALK "
        "COSMIC_RAY SATURATED_EARLY NO_LINEARITY_OR_SATURATION_CHECK - - - "
        "PXBG_NONE PXBG_LOW AUTC_NONE AUTC_LOW LEAK_NONE LEAK_LOW "
        "MSFL_FAILED_OPEN MSFL_ZERO_ORDER MSFL_BRIGHT_SOURCE "
        "AWCS_NO_WAVELENGTH AWCS_WAVELENGTH_OUTSIDE AWCS_Y_OUTSIDE "
        "PAMP_NONE PAMP_LOW WLZP_NONE WLZP_LOW DFLT_NONE DFLT_LOW SFLT_NONE SFLT_LOW "
        "FFLT_NONE FFLT_LOW PTHL_NONE PTHL_LOW BARS_NONE BARS_LOW RADM_NONE RADM_LOW "
        "MBGS_NONE MBGS_LOW RECT_NO_COVERAGE RECT_LOW_COVERAGE RECT_PARTIAL_COVERAGE "
        "- - - - - - - - - - OUTLIER DO_NOT_USE".split()
    )
    if name != "-"
}

#: Flags that keep a pixel out of the sky fit. OUTLIER is what `flag_outliers` sets;
#: FLUX_ESTIMATED marks pixels whose value was made up from their neighbours.
DEFAULT_EXCLUDE = ("DO_NOT_USE", "OUTLIER", "FLUX_ESTIMATED", "MSA_FAILED_OPEN")


def flag_attrs(flags: Mapping[str, int], dtype: np.dtype | type) -> dict:
    """CF attributes ``flag_masks`` and ``flag_meanings`` of a quality variable.

    Examples
    --------
    >>> flag_attrs({"DO_NOT_USE": 1, "HOT": 2}, np.uint32)["flag_meanings"]
    'DO_NOT_USE HOT'
    """
    return {
        "long_name": "quality flags",
        "flag_masks": np.array(list(flags.values()), dtype=dtype),
        "flag_meanings": " ".join(flags),
    }


def flag_table(quality: xr.DataArray) -> dict[str, int]:
    """The name-to-bit table a quality variable carries.

    Raises
    ------
    DatasetError
        Where ``flag_masks`` or ``flag_meanings`` is missing or they differ in length.
    """
    names = str(quality.attrs.get("flag_meanings", "")).split()
    masks = [int(m) for m in np.atleast_1d(quality.attrs.get("flag_masks", []))]
    if not names or len(names) != len(masks):
        raise DatasetError(
            "quality flags without their names",
            where="quality",
            expected="attributes flag_masks and flag_meanings of equal length",
            found=f"{len(masks)} masks and {len(names)} names",
            remedy="set quality.attrs from mbkg_xr.quality.flag_attrs",
        )
    return dict(zip(names, masks, strict=True))


def flag_mask(quality: xr.DataArray, names: Iterable[str], *, missing: str = "raise") -> int:
    """The bits of several flags together.

    Parameters
    ----------
    quality
        A quality variable with CF flag attributes.
    names
        Flag names, of any case.
    missing
        ``"raise"`` on a name this product does not define, or ``"ignore"``.

    Raises
    ------
    ParameterError
        On an unknown name, with the nearest known ones.

    Examples
    --------
    >>> q = xr.DataArray([0], attrs=flag_attrs(JWST_FLAGS, np.uint32))
    >>> flag_mask(q, ["DO_NOT_USE", "OUTLIER"])
    17
    """
    table = flag_table(quality)
    mask = 0
    for name in names:
        bit = table.get(str(name).upper())
        if bit is not None:
            mask |= bit
        elif missing == "raise":
            raise ParameterError(
                f"unknown quality flag {name!r}",
                where="quality",
                expected="one of " + " ".join(table),
                found=name,
                remedy="use a name of the product's own flag table",
            )
    return mask


def do_not_use(quality: xr.DataArray) -> int:
    """The bit that makes a pixel unusable: 1 in STScI products, 2**63 in NIPS ones."""
    return flag_mask(quality, ["DO_NOT_USE"])


def excluded_bits(ds: xr.Dataset) -> int:
    """The bits that keep a pixel of a selected dataset out: those it was selected without, and that
    which makes it unusable.
    """
    return int(ds["selected"].attrs.get("excluded_flags", 0)) | do_not_use(ds["quality"])
