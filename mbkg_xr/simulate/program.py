"""Simulated programmes: lazy slit datasets with known truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import dask.array as da
import numpy as np
import xarray as xr

from ..errors import ParameterError
from ..schema import configuration_name, slit_dataset
from .dispersers import get_disperser
from .noise import EXPOSURE_TIME, noise_levels
from .pixels import DETECTORS, OUTPUT, Settings, make_slits
from .plan import Observing, plan_slits
from .sky import as_sky

__all__ = ["CLEAN", "simulate_program"]

#: Options of a programme of nothing but sky and noise, sources without wings.
CLEAN: dict[str, float] = {
    "throughput_scatter": 0.0,
    "colour_scatter": 0.0,
    "contaminated_fraction": 0.0,
    "leak": 0.0,
    "barshadow_mismatch": 0.0,
    "pedestal": 0.0,
    "sky_drift": 0.0,
}

_SHUTTERS = (1, 2, 3, 5)
_NODS = (1, 2, 3, 5)
_TRUTH = {
    "true_background": "what a perfect subtraction removes from this pixel",
    "true_sky": "sky of this exposure, mean over the pixel, before any instrument",
    "outlier": "an outlier no flag tells of",
    "hot": "a signal of the pixel's own, in every exposure",
}


def simulate_program(
    *,
    exposures: int = 3,
    slits: int = 20,
    background_slits: int = 5,
    detectors: Sequence[str] = ("NRS1",),
    grating: str = "PRISM",
    filter: str | None = None,
    nods: int = 3,
    visits: int = 1,
    n_shutters: int | Mapping[int, float] = 3,
    sky: object = None,
    signal_to_noise: float | None = None,
    exposure_time: float = EXPOSURE_TIME,
    read_noise: float = 1.0,
    throughput_scatter: float = 0.03,
    colour_scatter: float = 0.02,
    flat_share: float = 0.33,
    pixel_flat: float = 0.0,
    pedestal: float = 0.1,
    sky_drift: float = 0.01,
    sky_trend: tuple[float, float] = (0.0, 0.0),
    outlier_fraction: float = 0.006,
    flagged_fraction: float = 0.05,
    error_scale: float = 1.2,
    hot_fraction: float = 0.0,
    contaminated_fraction: float = 0.1,
    contaminant_brightness: float = 0.05,
    contaminant_scatter: float = 0.8,
    leak: float = 0.05,
    barshadow_mismatch: float = 0.5,
    calibration: str = "EXTENDED",
    seed: int = 0,
    chunks: int = 32,
) -> xr.Dataset:
    """A NIRSpec MOS programme with known truth, as a lazy slit dataset.

    Parameters
    ----------
    exposures
        Exposures of each visit. Nods repeat cyclically over them.
    slits, background_slits
        Slitlets on each detector in each exposure, and how many of them hold no source. They are
        the same shutters in all exposures of a visit.
    detectors
        ``"NRS1"``, ``"NRS2"`` or both. A slitlet whose spectrum crosses the gap is on both.
    grating, filter
        A disperser of `mbkg_xr.simulate.DISPERSERS` and its filter (by default its usual one).
    nods
        1, 2, 3 or 5 positions of the source, one shutter apart.
    visits
        Each has its own shutters.
    n_shutters
        Open shutters a slitlet (1, 2, 3 or 5), or a mapping of these to their shares. yrel is 0 at
        the middle shutter; the two shutters of a two-shutter slitlet lie at 0 and +1.
    sky
        As for `sky_spectrum`.
    signal_to_noise
        If given, the noise is scaled such that the median over the band of sky over true noise, a
        pixel at shutter centres, is this.
    exposure_time
        Of an exposure, in s; noise falls with it from that of the CEERS slitlets, 1,021 s.
    read_noise
        Read noise in units of that of the CEERS slitlets.
    throughput_scatter
        Standard deviation of the slitlets' log throughput.
    colour_scatter
        Standard deviation of its smooth change over the band (cubic in log wavelength).
    flat_share
        Share of the variance of `colour_scatter` that is what calibration leaves of the
        spectrograph flat: smooth over each MSA quadrant, with the shape that CEERS and other PRISM
        slits show. The rest is of the slitlet and of the slit in one exposure, half each. By
        default 0.75 of the measured flat is left; its mean over the band goes to ``true_scale``.
    pixel_flat
        Relative standard deviation of what calibration leaves of the detector's flat, pixel by
        pixel and the same in all exposures, and the flat's error that ``error`` counts:
        ``error^2 = var_rnoise + var_poisson + (pixel_flat flux)^2``. It is 0.004 in the CEERS
        slitlets, the median of sqrt(VAR_FLAT) / SCI. NIPS products have no place for that part of
        the variance: their readers take it for photon noise.
    pedestal
        Standard deviation of an additive offset for each exposure and detector, in units of the
        read noise of one pixel (and, like it, larger where the throughput is low).
    sky_drift
        Relative standard deviation, from exposure to exposure, of sunlight and of thermal light.
    sky_trend
        Steady relative change of sunlight and of thermal light, from the first exposure to the
        last.
    outlier_fraction, flagged_fraction
        Of pixels with an outlier no flag tells of, and with DO_NOT_USE and a wild value.
    error_scale
        True scatter over ``error``.
    hot_fraction
        Of detector pixels that hold a signal of their own in every exposure, 6 to 16 times the
        usual noise under sky, which no flag tells of.
    contaminated_fraction
        Of slitlets with a faint second source in a shutter that counts as empty.
    contaminant_brightness, contaminant_scatter
        Median of the light of such sources, a shutter pitch, in units of the sky at 2 um, and the
        standard deviation of its logarithm.
    leak
        Share of a source's light in wide wings, which reach the neighbouring shutters.
    barshadow_mismatch
        Difference between the true bar shadow and the one the product is corrected with: 0 none,
        1 that of real CEERS slitlets.
    calibration
        Of slits with a source: ``"EXTENDED"``, or ``"POINT"`` (bars and uniform path loss left
        in; then ``response`` says how, and the units are still MJy/sr).
    seed
        One seed gives the same pixels for any `chunks`.
    chunks
        Slits a chunk.

    Returns
    -------
    xarray.Dataset
        A slit dataset (``slit, y, x``) in MJy/sr, of dask arrays; nothing is computed. With the
        truth: ``true_background`` (what a perfect subtraction removes: sky times throughput,
        colour, flats and bar shadow left in, plus pedestal; MJy/sr), ``true_sky`` (the sky alone),
        ``outlier`` and, if there are any, ``hot`` (all ``slit, y, x``), ``true_scale``
        (throughput), ``true_x_offset`` (columns by which the grating wheel moved the visit's
        spectra) and ``contaminated`` (``slit``).

    Raises
    ------
    ParameterError
        On parameters that make no sense.

    Examples
    --------
    >>> ds = simulate_program(exposures=3, slits=4, background_slits=1, seed=1)
    >>> dict(ds.sizes)["slit"], ds.flux.attrs["units"], ds.attrs["configuration"]
    (12, 'MJy/sr', 'prism-clear')
    >>> one = ds.isel(slit=0).compute()
    >>> bool(abs((one.flux - one.true_background).median()) < 0.02)
    True
    """
    mapping = _check(
        counts={
            "exposures": exposures,
            "visits": visits,
            "slits": slits,
            "chunks": chunks,
            "background_slits": background_slits,
            "seed": seed,
        },
        positive={"error_scale": error_scale, "exposure_time": exposure_time}
        | ({} if signal_to_noise is None else {"signal_to_noise": signal_to_noise}),
        nonnegative={
            "read_noise": read_noise,
            "throughput_scatter": throughput_scatter,
            "colour_scatter": colour_scatter,
            "pixel_flat": pixel_flat,
            "contaminant_brightness": contaminant_brightness,
            "contaminant_scatter": contaminant_scatter,
            "pedestal": pedestal,
            "sky_drift": sky_drift,
            "barshadow_mismatch": barshadow_mismatch,
        },
        fractions={
            "outlier_fraction": outlier_fraction,
            "flagged_fraction": flagged_fraction,
            "hot_fraction": hot_fraction,
            "contaminated_fraction": contaminated_fraction,
            "leak": leak,
        },
        shares={"flat_share": flat_share},
        nods=nods,
        n_shutters=n_shutters,
        detectors=detectors,
        calibration=calibration,
    )
    if np.shape(sky_trend) != (2,) or not (np.abs(sky_trend) < 2).all():
        raise ParameterError(
            "bad value of sky_trend",
            where="sky_trend",
            expected="two numbers between -2 and 2, of sunlight and of thermal light",
            found=sky_trend,
        )
    if background_slits > slits:
        raise ParameterError(
            "more background slits than slits",
            where="background_slits",
            expected=f"at most slits = {slits}",
            found=background_slits,
        )
    disperser, the_sky = get_disperser(grating, filter), as_sky(sky)
    observing = Observing(
        exposures=exposures,
        visits=visits,
        nods=nods,
        slits=slits,
        background_slits=background_slits,
        detectors=tuple(d for d in DETECTORS if d in detectors),
        n_shutters=mapping,
        disperser=disperser,
        throughput_scatter=throughput_scatter,
        colour_scatter=colour_scatter,
        flat_share=flat_share,
        pedestal=pedestal,
        sky_drift=sky_drift,
        sky_trend=(float(sky_trend[0]), float(sky_trend[1])),
        contaminated_fraction=contaminated_fraction,
        contaminant_brightness=contaminant_brightness,
        contaminant_scatter=contaminant_scatter,
        calibration=calibration,
        seed=seed,
    )
    settings = Settings(
        seed=seed,
        disperser=disperser,
        sky=the_sky,
        exposure_time=exposure_time,
        read_noise=read_noise,
        noise=1.0,
        error_scale=error_scale,
        outlier_fraction=outlier_fraction,
        flagged_fraction=flagged_fraction,
        pixel_flat=pixel_flat,
        hot_fraction=hot_fraction,
        leak=leak,
        barshadow_mismatch=barshadow_mismatch,
    )
    if signal_to_noise is not None:
        settings = replace(settings, noise=_signal_to_noise(settings) / signal_to_noise)
    plan, coords = plan_slits(observing)
    coords["exposure_time"] = [exposure_time] * len(plan)
    pixels = _lazy_pixels(plan, settings, chunks)
    quality = pixels.pop("quality")
    if calibration == "EXTENDED":
        del pixels["response"]  # 1 everywhere
    if not hot_fraction:
        del pixels["hot"]  # none
    if not pixel_flat:
        del pixels["var_flat"]  # 0 everywhere
    ds = slit_dataset(
        pixels,
        quality,
        coords,
        units="MJy/sr",
        configuration=configuration_name(disperser.grating, disperser.filter),
        attrs={"grating": disperser.grating, "filter": disperser.filter, "seed": seed},
    )
    if pixel_flat:
        ds["var_flat"].attrs["long_name"] = "variance of flux by the flat's error"
    for name in _TRUTH.keys() & set(ds.data_vars):
        text = _TRUTH[name]
        ds[name].attrs["long_name"] = text
    ds["true_background"].attrs["units"] = ds["true_sky"].attrs["units"] = "MJy/sr"
    ds["true_scale"] = (
        "slit",
        plan["scale"].astype(np.float64),
        {"long_name": "throughput of the slitlet", "units": "1"},
    )
    ds["contaminated"] = (
        "slit",
        np.isfinite(plan["contaminant"]),
        {"long_name": "a second source lies in a shutter that counts as empty"},
    )
    ds["true_x_offset"] = (
        "slit",
        plan["x_offset"].copy(),
        {"long_name": "columns the spectra are moved by in this visit", "units": "pixel"},
    )
    return ds


def _lazy_pixels(plan: np.ndarray, settings: Settings, chunks: int) -> dict[str, da.Array]:
    """Dask arrays by name; the pixels of a chunk are made once for all of them."""
    shape = (int(plan["y_size"].max()), int(plan["x_size"].max()))
    records = da.from_array(plan, chunks=chunks)
    # Its blocks are dicts of arrays, which dask passes on as they are; only `_field` sees them.
    made = records.map_blocks(
        make_slits,
        settings,
        shape,
        dtype=np.float32,
        new_axis=[1, 2],
        chunks=(records.chunks[0], (shape[0],), (shape[1],)),
        meta=np.empty((0, 0, 0), np.float32),
    )
    return {
        name: made.map_blocks(_field, name, dtype=dtype, meta=np.empty((0, 0, 0), dtype))
        for name, dtype in OUTPUT.items()
    }


def _field(block: dict[str, np.ndarray], name: str) -> np.ndarray:
    return block[name]


def _signal_to_noise(settings: Settings) -> float:
    """Median over the band of sky over true noise, a pixel at shutter centres."""
    disperser = settings.disperser
    # The detector's pixels sample the band evenly in u.
    first, last = disperser.u(np.array(disperser.band))
    u = np.linspace(first, last, 400)
    wavelength = disperser.wavelength(u)
    flux = settings.sky.components(wavelength, disperser).sum(axis=0)
    read, photon = noise_levels(wavelength, disperser, settings.exposure_time)
    sigma = np.sqrt((settings.read_noise * read) ** 2 + photon * np.maximum(flux, 0))
    return float(np.median(flux / sigma) / settings.error_scale)


def _check(
    *,
    counts: Mapping[str, object],
    positive: Mapping[str, float],
    nonnegative: Mapping[str, float],
    fractions: Mapping[str, float],
    shares: Mapping[str, float],
    nods: int,
    n_shutters: int | Mapping[int, float],
    detectors: Sequence[str],
    calibration: str,
) -> dict[int, float]:
    """Refuse what makes no sense; returns `n_shutters` as a mapping."""

    def refuse(name: str, expected: str, found: object) -> None:
        raise ParameterError(f"bad value of {name}", where=name, expected=expected, found=found)

    for name, value in counts.items():
        least = 0 if name in ("background_slits", "seed") else 1
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            refuse(name, f"a whole number of at least {least}", value)
    for name, value in positive.items():
        if not (np.isfinite(value) and value > 0):
            refuse(name, "a number above 0", value)
    for name, value in nonnegative.items():
        if not (np.isfinite(value) and value >= 0):
            refuse(name, "a number of at least 0", value)
    for name, value in fractions.items():
        if not 0 <= value < 1:
            refuse(name, "a fraction: at least 0 and below 1", value)
    for name, value in shares.items():
        if not 0 <= value <= 1:
            refuse(name, "a share: from 0 to 1", value)
    if nods not in _NODS:
        refuse("nods", f"one of {_NODS}", nods)
    mapping = dict(n_shutters) if isinstance(n_shutters, Mapping) else {n_shutters: 1.0}
    if not mapping or any(k not in _SHUTTERS for k in mapping):
        refuse("n_shutters", f"one of {_SHUTTERS}, or a mapping of them to shares", n_shutters)
    if min(mapping.values()) < 0 or not sum(mapping.values()) > 0:
        refuse("n_shutters", "shares of at least 0 and not all 0", n_shutters)
    if isinstance(detectors, str) or not detectors or any(d not in DETECTORS for d in detectors):
        refuse("detectors", f"some of {DETECTORS}", detectors)
    if calibration not in ("EXTENDED", "POINT"):
        refuse("calibration", "EXTENDED or POINT", calibration)
    return mapping
