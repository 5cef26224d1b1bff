"""The plan of a programme: which shutters are open, what is in them, and how each slit differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..barshadow import shutter_positions
from ..errors import ParameterError
from .dispersers import Disperser
from .geometry import MSA_SHAPE, cutout, trace
from .instrument import spectrograph_flat
from .pixels import DETECTORS, PLAN, slit_rng

__all__ = ["Observing", "Slitlet", "open_slitlets", "plan_slits", "source_position"]

#: Columns a cut-out must have to be listed. Source: the shortest CEERS cut-outs but for a few.
MIN_COLUMNS = 16
MIN_ROWS = 4  # at the edge of a detector
_ATTEMPTS = 200  # places tried for a slitlet before spectra are allowed to overlap


@dataclass(frozen=True)
class Observing:
    """How a programme observes; the keyword arguments of `simulate_program`."""

    exposures: int
    visits: int
    nods: int
    slits: int
    background_slits: int
    detectors: tuple[str, ...]
    n_shutters: Mapping[int, float]
    disperser: Disperser
    throughput_scatter: float
    colour_scatter: float
    flat_share: float
    pedestal: float
    sky_drift: float
    sky_trend: tuple[float, float]
    contaminated_fraction: float
    contaminant_brightness: float
    contaminant_scatter: float
    calibration: str
    seed: int


@dataclass(frozen=True)
class Slitlet:
    """One slitlet of an MSA configuration, on all detectors it falls on."""

    number: int
    quadrant: int
    row: int
    column: int
    n_shutters: int
    is_background: bool
    x_offset: float
    detectors: tuple[str, ...]


def source_position(n_shutters: int, nods: int, nod: int) -> int:
    """Yrel of the shutter that holds the source.

    The sequence is that of three-shutter slitlets, 0, -1, +1, and so on outwards. A slitlet with
    fewer shutters than nods repeats its own sequence, so that its source is always in view.

    Examples
    --------
    >>> [source_position(3, 3, nod) for nod in range(4)]
    [0, -1, 1, 0]
    """
    shutters = shutter_positions(n_shutters)
    outward = sorted(shutters.tolist(), key=lambda s: (abs(s), s))
    return outward[nod % min(nods, n_shutters)]


def open_slitlets(observing: Observing, visit: int) -> list[Slitlet]:
    """The MSA configuration of one visit.

    Places are drawn evenly over the MSA; a slitlet is kept where every detector it falls on still
    lacks one of its kind, and its spectrum does not overlap another. When there is no such place
    left, spectra overlap: the pixels are still those of each slitlet alone.

    Raises
    ------
    ParameterError
        Where the detectors cannot have that many slitlets each.
    """
    rng = slit_rng(observing.seed, 2, visit)
    x_offset = float(rng.normal(0.0, 1.0))  # scatter of the CEERS visits
    lacking = {
        d: [observing.background_slits, observing.slits - observing.background_slits]
        for d in observing.detectors
    }
    taken: dict[str, list[tuple[int, int, int, int]]] = {d: [] for d in observing.detectors}
    kinds, shares = list(observing.n_shutters), np.array(list(observing.n_shutters.values()))
    found: list[Slitlet] = []
    tries, overlap = 0, False
    while any(sum(n) for n in lacking.values()):
        tries += 1
        if tries > _ATTEMPTS:
            if overlap:
                raise ParameterError(
                    "the slitlets cannot be placed",
                    where="slits",
                    expected=f"{observing.slits} slitlets on each of {observing.detectors}",
                    found=f"{lacking} that fit nowhere",
                    remedy="ask for fewer slits or for another disperser",
                )
            overlap, tries = True, 0
        quadrant = int(rng.integers(1, 5))
        row, column = int(rng.integers(1, MSA_SHAPE[0] + 1)), int(rng.integers(1, MSA_SHAPE[1] + 1))
        n = int(rng.choice(kinds, p=shares / shares.sum()))
        shutters = column + shutter_positions(n)
        if shutters[0] < 1 or shutters[-1] > MSA_SHAPE[1]:
            continue
        boxes = _boxes(observing, quadrant, row, column, n, x_offset)
        if not boxes:
            continue
        if not overlap and any(_overlaps(taken[d], box) for d, box in boxes.items()):
            continue
        kind = next((k for k in (0, 1) if all(lacking[d][k] for d in boxes)), None)
        if kind is None:
            continue
        for d, box in boxes.items():
            lacking[d][kind] -= 1
            taken[d].append(box)
        found.append(
            Slitlet(len(found) + 1, quadrant, row, column, n, kind == 0, x_offset, tuple(boxes))
        )
        tries = 0
    return found


def plan_slits(observing: Observing) -> tuple[np.ndarray, dict[str, list]]:
    """Everything that is decided before pixels are made.

    Returns
    -------
    plan
        ``(slit,)`` of dtype `PLAN`, ordered by exposure, detector and slitlet.
    coords
        Slit coordinates of the data contract, by name.
    """
    records: list[np.void] = []
    coords: dict[str, list] = {}
    drift = slit_rng(observing.seed, 3).normal(
        0.0, observing.sky_drift, (observing.visits * observing.exposures, 2)
    )
    drift -= drift.mean(axis=0)  # the sky asked for is the programme's mean
    each = [(v, e) for v in range(observing.visits) for e in range(observing.exposures)]
    times = np.array([_middle(visit, within) for visit, within in each])
    if np.ptp(times) > 0:
        drift += np.outer((times - times.mean()) / np.ptp(times), observing.sky_trend)
    for visit in range(observing.visits):
        slitlets = open_slitlets(observing, visit)
        for within in range(observing.exposures):
            exposure = visit * observing.exposures + within
            for detector in observing.detectors:
                pedestal = slit_rng(observing.seed, 4, exposure, DETECTORS.index(detector)).normal(
                    0.0, observing.pedestal
                )
                for slitlet in slitlets:
                    if detector not in slitlet.detectors:
                        continue
                    record = _slit_record(observing, slitlet, visit, within, detector)
                    record["exposure"] = exposure
                    record["sky"] = 1 + drift[exposure]
                    record["pedestal"] = pedestal
                    records.append(record)
                    for name, value in _slit_coords(
                        observing, slitlet, visit, within, detector, record
                    ).items():
                        coords.setdefault(name, []).append(value)
    return np.array(records, PLAN), coords


def _middle(visit: int, within: int) -> float:
    """Middle of an exposure, mjd."""
    return 60000.0 + visit + 0.0125 * within


def _slit_record(
    observing: Observing, slitlet: Slitlet, visit: int, within: int, detector: str
) -> np.void:
    record = np.zeros(1, PLAN)[0]
    record["visit"], record["detector"] = visit, DETECTORS.index(detector)
    record["slitlet"], record["n_shutters"] = slitlet.number, slitlet.n_shutters
    record["x_offset"] = slitlet.x_offset
    t = trace(
        slitlet.quadrant,
        slitlet.row,
        slitlet.column,
        detector,
        observing.disperser,
        x_offset=slitlet.x_offset,
    )
    rows, columns = cutout(t, observing.disperser, slitlet.n_shutters)
    record["trace"] = (t.x, t.y, t.stretch, t.slope, t.curve, t.tilt, t.pitch)
    record["y_start"], record["y_size"] = rows.start, rows.stop - rows.start
    record["x_start"], record["x_size"] = columns.start, columns.stop - columns.start

    # What belongs to the slitlet, and is the same in all its exposures.
    rng = slit_rng(observing.seed, 5, visit, slitlet.number)
    normal, uniform = rng.standard_normal(16), rng.random(32)
    # A part of its own in each exposure: nods of the CEERS slitlets differ by 2 to 6 %, and by
    # wavelength.
    own = slit_rng(observing.seed, 7, visit, slitlet.number, within, int(record["detector"]))
    own_normal = own.standard_normal(4)
    scatter = np.sqrt(0.8) * normal[0] + np.sqrt(0.2) * own_normal[0]
    flat = observing.colour_scatter * np.sqrt(observing.flat_share)
    flat = flat * spectrograph_flat(slitlet.quadrant, slitlet.row, slitlet.column)
    record["scale"] = np.exp(observing.throughput_scatter * scatter + flat[0])
    record["colour"] = flat[1:] + _colour(observing, normal[1:4], own_normal[1:4])
    here = source_position(slitlet.n_shutters, observing.nods, within)
    nodded = here - source_position(slitlet.n_shutters, observing.nods, 0)
    record["source"] = np.nan
    if not slitlet.is_background:
        record["source"] = here + 0.6 * (uniform[0] - 0.5)
        # Log-normal with a median of half the sky: faint galaxies with a bright tail.
        record["brightness"] = 0.5 * np.exp(1.2 * normal[4])
        record["slope"] = normal[5]
        record["size"] = 0.0 if uniform[1] < 0.6 else 0.1 + 0.3 * uniform[2]
        low, high = observing.disperser.band
        record["line_wavelength"] = low + (high - low) * uniform[3:7]
        lines = uniform[7:11] < 0.5
        record["line_strength"] = lines * 0.02 * np.exp(normal[6:10])
    record["contaminant"] = np.nan
    empty = [s for s in shutter_positions(slitlet.n_shutters) if slitlet.is_background or s != here]
    if uniform[11] < observing.contaminated_fraction and empty:
        # Fixed on the sky: it nods with the source, and may leave the slitlet.
        shutters = shutter_positions(slitlet.n_shutters)
        first = [s for s in shutters if slitlet.is_background or s != here - nodded]
        where = first[int(uniform[12] * len(first))] + nodded
        if shutters[0] <= where <= shutters[-1]:
            record["contaminant"] = where + 0.6 * (uniform[13] - 0.5)
            record["contaminant_brightness"] = observing.contaminant_brightness * np.exp(
                observing.contaminant_scatter * normal[10]
            )
    record["point"] = observing.calibration == "POINT" and not slitlet.is_background
    return record


def _colour(observing: Observing, of_slitlet: np.ndarray, of_slit: np.ndarray) -> np.ndarray:
    """What the spectrograph flat leaves of the variance: half of the slitlet, and half of the slit
    in this exposure.
    """
    # Legendre polynomials of degree 1, 2, 3 have mean squares 1/3, 1/5, 1/7 over the band: the
    # factors give each degree a third of the variance.
    degree = np.sqrt(np.array([3.0, 5.0, 7.0]) / 3)
    own = np.sqrt((1 - observing.flat_share) / 2)
    return observing.colour_scatter * own * degree * (of_slitlet + of_slit)


def _slit_coords(
    observing: Observing,
    slitlet: Slitlet,
    visit: int,
    within: int,
    detector: str,
    record: np.void,
) -> dict[str, object]:
    observation = f"{visit + 1:03d}001"
    background = slitlet.is_background
    return {
        "exposure": f"jw09999{observation}_03101_{within + 1:05d}",
        "detector": detector,
        "slitlet": slitlet.number,
        # As the pipeline numbers and names them; sources of other visits are other sources.
        "source_id": slitlet.number if background else 1000 * (visit + 1) + slitlet.number,
        "source_name": f"9999_BKG{slitlet.number}"
        if background
        else f"9999_{1000 * (visit + 1) + slitlet.number}",
        "nod": within % observing.nods + 1,
        "program": "09999",
        "visit": f"09999{observation}",
        "quadrant": slitlet.quadrant,
        "shutter_row": slitlet.row,
        "shutter_column": slitlet.column,
        "n_shutters": slitlet.n_shutters,
        "mjd": _middle(visit, within),
        "is_background": background,
        "source_shutter": np.nan
        if background
        else source_position(slitlet.n_shutters, observing.nods, within),
        "x_start": int(record["x_start"]),
        "y_start": int(record["y_start"]),
    }


def _boxes(
    observing: Observing, quadrant: int, row: int, column: int, n: int, x_offset: float
) -> dict[str, tuple[int, int, int, int]]:
    boxes = {}
    for detector in observing.detectors:
        t = trace(quadrant, row, column, detector, observing.disperser, x_offset=x_offset)
        rows, columns = cutout(t, observing.disperser, n)
        if columns.stop - columns.start >= MIN_COLUMNS and rows.stop - rows.start >= MIN_ROWS:
            boxes[detector] = (rows.start, rows.stop, columns.start, columns.stop)
    return boxes


def _overlaps(taken: Sequence[tuple[int, int, int, int]], box: tuple[int, int, int, int]) -> bool:
    return any(box[0] < t[1] and t[0] < box[1] and box[2] < t[3] and t[2] < box[3] for t in taken)
