"""What the extensions and keywords of NIPS files are called and mean: a small table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ParameterError
from ..quality import NIPS_FLAGS
from ..schema import SLIT_COORDS
from .layout_table import checked_values, read_toml, refuse_unknown
from .units import unit_of
from .wcs import PITCH

__all__ = ["DETECTORS", "POSITION_UNITS", "NipsLayout"]

DETECTORS = ("NRS1", "NRS2")

#: A shutter pitch in the units positions along a slit may have.
POSITION_UNITS = {"pitch": 1.0, "open": PITCH}

# Coordinates by the keywords that may hold them, the first found counts. MSA shutters are
# QUADRANT, SHUTTERI and SHUTTERJ in MOS traces of NIPS 1.x (source: the comparison scripts of
# STScI's nirspec_pipe_testing_tool); the one real file tried, of a fixed slit, has none of them.
_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "grating": ("GWA_POS", "GRATING"),
    "filter": ("FWA_POS", "FILTER"),
    "exposure": (),
    "slitlet": ("SLITLET",),
    "source_id": ("SOURCEID",),
    "source_name": ("SRCNAME",),
    "nod": ("PATT_NUM",),
    "program": ("PROGRAM",),
    "visit": (),
    "quadrant": ("MSAQUAD", "QUADRANT"),
    "shutter_row": ("MSAROW", "SHUTTERI"),
    "shutter_column": ("MSACOL", "SHUTTERJ"),
    "n_shutters": ("NSHUT",),
    "exposure_time": ("EFFEXPTM", "EXPTIME"),
    "mjd": ("EXPMID",),
    "is_background": ("ISBKG",),
    "source_shutter": ("SRCSHUT",),
}

# The first two are STScI's. The others are guesses: steps of NIPS 2 are known by four letters
# (its flag table has PXBG and MBGS, pixel and master background), but no public text or file at
# hand says which keyword tells that they ran.
_SUBTRACTED: Mapping[str, tuple[str, ...]] = {
    "S_BKDSUB": ("COMPLETE",),
    "S_MSBSUB": ("COMPLETE",),
    **dict.fromkeys(("PXBG", "MBGS", "S_PXBG", "S_MBGS"), ()),
}

_PLANES = ("flux", "variance", "error", "wavelength", "position", "read_variance")


@dataclass(frozen=True)
class NipsLayout:
    """What the extensions of NIPS irregular 2-D spectra are called and mean.

    The defaults are those of NIPS 1.x. `from_toml` reads the same from a file.

    Parameters
    ----------
    flux, quality, variance, wavelength, position
        Names of the extensions, before the suffix of the detector.
    error
        Name of an extension of standard deviations, which then counts in place of the variance;
        empty where there is none.
    read_variance
        Of an optional one: the part of the variance that is read noise. NIPS writes none; the
        simulator does.
    detectors
        Detectors by the suffix of their extensions, which may be empty. What is neither NRS1 nor
        NRS2 is a keyword that tells (such as ``SCAID``, 491 or 492).
    turned
        Detectors whose frame is turned by 180 degrees against that of STScI's products, which
        datasets keep.
    outside
        Wavelength, in the file's unit, at and below which a pixel lies outside the slit; NaN
        always does. Positions do not tell: their sentinel, -1, is a legal position too.
    sentinels
        Further values that stand for none, by plane (flux, variance, error, wavelength, position,
        read_variance); they become NaN.
    position_unit
        What positions count, where a file does not say so in ``SLITYUNI``: ``"open"``, heights of
        the open shutter, which lie 1.15 of them apart, or ``"pitch"``. Readers of such files
        disagree. The default is ``"open"``: the fixed slit of a real 1.6 file ends at +-0.5, and
        STScI's scripts compare positions of 1.x MOS traces, as they are, with those of its own
        WCS, which count open heights. Positions in fixed slits and the IFU, which have no
        pitch, stay as they are.
    wavelength_unit, flux_unit
        Units of wavelength and flux; None: as BUNIT of their extensions says.
    flux_units
        Units of flux that are accepted, as astropy spells them, and what converts to them.
    flags
        The quality table: masks by name, one of them DO_NOT_USE.
    keywords
        Keywords by coordinate (and by ``grating`` and ``filter``); the first that the primary
        header or that of the flux has counts.
    subtracted_keywords
        Keywords that say that a background was subtracted, and the values that say so; where no
        value is given, any but a denial (``NONE``, ``SKIPPED``, ``F`` ...). Those of STScI are
        known, those of NIPS (PXBG, MBGS) are guesses after its flag table: give your own.
    subtracted
        Whether a background was subtracted, where no keyword can tell; None: as keywords say.

    Raises
    ------
    ParameterError
        On an unknown `position_unit`, plane or coordinate, on units astropy does not know, on
        detectors that do not exist, and on `flags` without DO_NOT_USE or beyond 64 bits.

    Examples
    --------
    >>> layout = NipsLayout(wavelength="AWCS", wavelength_unit="um", position_unit="pitch")
    >>> layout.flux, layout.wavelength
    ('DATA', 'AWCS')
    """

    flux: str = "DATA"
    quality: str = "QUALITY"
    variance: str = "VAR"
    error: str = ""
    wavelength: str = "LAMBDA"
    position: str = "SLITY"
    read_variance: str = "VARRN"
    detectors: Mapping[str, str] = field(default_factory=lambda: {"1": "NRS1", "2": "NRS2"})
    turned: tuple[str, ...] = ("NRS2",)
    outside: float = 0.0
    sentinels: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    position_unit: str = "open"
    wavelength_unit: str | None = None
    flux_unit: str | None = None
    flux_units: tuple[str, ...] = ("ct/s", "electron/s", "DN/s", "MJy/sr", "W/(m2 um sr)")
    flags: Mapping[str, int] = field(default_factory=lambda: dict(NIPS_FLAGS))
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(_KEYWORDS))
    subtracted_keywords: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: dict(_SUBTRACTED)
    )
    subtracted: bool | None = None

    def __post_init__(self) -> None:
        for where, given, allowed, what in (
            (
                "position_unit",
                [self.position_unit],
                POSITION_UNITS,
                "unit of positions along the slit",
            ),
            ("turned", self.turned, DETECTORS, "detector"),
            ("sentinels", self.sentinels, _PLANES, "plane"),
            ("keywords", self.keywords, {*_KEYWORDS, *SLIT_COORDS}, "coordinate"),
        ):
            refuse_unknown(where, given, allowed, what)
        numbered = [name for name in self.detectors.values() if name.startswith("NRS")]
        refuse_unknown("detectors", numbered, DETECTORS, "detector")
        named = [text for text in (self.flux_unit, self.wavelength_unit) if text]
        unknown = [text for text in (*self.flux_units, *named) if unit_of(text) is None]
        if unknown:
            raise ParameterError(
                "unknown unit",
                where="units",
                expected="units as astropy spells them",
                found=" ".join(unknown),
            )
        if not all(self.needed) or not self.detectors:
            raise ParameterError(
                "extensions without a name",
                where="detectors" if all(self.needed) else "extensions",
                expected="names of flux, quality, variance or error, wavelength and position, and "
                "a detector or more",
            )
        if "DO_NOT_USE" not in self.flags:
            raise ParameterError(
                "quality flags without DO_NOT_USE", where="flags", found=" ".join(self.flags)
            )
        wrong = [name for name, mask in self.flags.items() if not 0 < mask < 1 << 64]
        if wrong:
            raise ParameterError(
                "quality flags beyond 64 bits", where="flags", found=" ".join(wrong)
            )

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the extensions each detector must have."""
        spread = self.error or self.variance
        return (self.flux, self.quality, spread, self.wavelength, self.position)

    @classmethod
    def of(cls, layout: NipsLayout | Mapping[str, Any] | str | os.PathLike | None) -> NipsLayout:
        """A layout from a layout, a mapping, the path of a TOML file, or None: the default.

        Raises
        ------
        ParameterError
            As `from_mapping` and `from_toml`.

        Examples
        --------
        >>> NipsLayout.of({"wavelength": "AWCS"}).needed
        ('DATA', 'QUALITY', 'VAR', 'AWCS', 'SLITY')
        """
        if layout is None:
            return cls()
        if isinstance(layout, NipsLayout):
            return layout
        return cls.from_mapping(layout) if isinstance(layout, Mapping) else cls.from_toml(layout)

    @classmethod
    def from_toml(cls, path: str | os.PathLike) -> NipsLayout:
        r"""Read a layout from a TOML file.

        Parameters
        ----------
        path
            Keys are the names of the attributes, and what is not given stays as in NIPS 1.x.
            ``[keywords]`` and ``[subtracted_keywords]`` add to the default tables; other tables
            replace them. ``flags`` may be ``"nips"`` or ``"stsci"``; a table of one's own is
            ``[flag_bits]``, the numbers of the bits (from 0) by name.

        Raises
        ------
        ParameterError
            Where the file cannot be read, and on keys and values that make no sense; it names
            file and key.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "layout.toml"
        ...     _ = path.write_text('wavelength = "AWCS"\n[flag_bits]\nDO_NOT_USE = 0')
        ...     NipsLayout.from_toml(path).flags
        {'DO_NOT_USE': 1}
        """
        return cls.from_mapping(read_toml(path), where=str(path))

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any], *, where: str = "layout") -> NipsLayout:
        """A layout from a mapping with the keys of `from_toml`.

        Parameters
        ----------
        table
            Values by the names of the attributes.
        where
            What errors call it.

        Raises
        ------
        ParameterError
            On keys and values that make no sense.

        Examples
        --------
        >>> NipsLayout.from_mapping({"keywords": {"slitlet": "SLIT_NO"}}).keywords["slitlet"]
        ('SLIT_NO',)
        """
        values = checked_values(table, where)
        for key, default in (("keywords", _KEYWORDS), ("subtracted_keywords", _SUBTRACTED)):
            if key in values:
                values[key] = {**default, **values[key]}
        try:
            return cls(**values)
        except ParameterError as error:
            raise ParameterError(
                error.cause,
                where=f"{where}, {error.where}",
                expected=error.expected,
                found=error.found,
            ) from error
