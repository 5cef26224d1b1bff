"""The WCS of STScI products: where along the slit a pixel lies, and its wavelength.

It is the expensive part of a product, and kept in its ASDF extension. Only the steps from the
detector to the slit frame are built, by asdf's, gwcs's and stdatamodels' own converters; inverses
and the steps to the sky are not.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import asdf
import numpy as np
from numpy.typing import NDArray

from ..errors import InputFileError
from .asdf_text import AsdfText, Compound, Node, Plan, Unsplit
from .fits import read_bytes
from .headers import Hdu
from .kept import keep, kept

__all__ = ["PITCH", "slit_metadata", "wcs_wavelength", "wcs_yrel"]

#: slit_y of the slit frame counts open shutter heights; shutters are this many of them apart.
#: Source: slit_ymin/slit_ymax of MOS slits in assign_wcs (0.55 + 1.15 a shutter).
PITCH = 1.15
_OPENING = threading.Lock()


class WcsSource(Protocol):
    """Where the WCS of one slit lies."""

    @property
    def path(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def asdf_offset(self) -> int: ...
    @property
    def asdf_size(self) -> int: ...
    @property
    def index(self) -> int | None: ...
    @property
    def coords(self) -> dict[str, Any]: ...
    @property
    def kept(self) -> tuple[str, int] | None: ...


# ------------------------------------------------------------------------------------------------
# Metadata, nothing built


def slit_metadata(path: Path, hdu: Hdu | None) -> dict[str, Any]:
    """What the ASDF extension says of each slit in numbers and words.

    Parameters
    ----------
    path
        The product.
    hdu
        Its ASDF extension, None where it has none.

    Returns
    -------
    dict
        Of a multi-slit product ``{"slits": [...]}`` with a dictionary a slit, of a single-slit
        product that one dictionary. Each holds the scalars at the slit's top level (``xcen``,
        ``slit_ymin``, ``shutter_state``, ...) and ``wcs_frames``, the names of its WCS's frames.

    Raises
    ------
    InputFileError
        Where there is no WCS, or no metadata that can be read.
    """
    problem: object = "no ASDF extension"
    if hdu is not None:
        raw = read_bytes(path, hdu.offset, hdu.size)
        try:
            slits, multi = _metadata(raw)
            missing = [i for i, s in enumerate(slits) if s["wcs_frames"] is None]
            if not missing:
                return {"slits": slits} if multi else slits[0]
            problem = f"no meta.wcs in slit {missing[0] + 1} of {len(slits)}"
        except Exception as error:  # a YAML parser's own errors are of many kinds
            problem = error
    raise InputFileError(
        "slit without WCS",
        where=path.name,
        expected="an ASDF extension with meta.wcs",
        found=problem,
        remedy="make the product with assign_wcs and extract_2d of the official pipeline",
    )


def _metadata(raw: bytes) -> tuple[list[dict[str, Any]], bool]:
    """Scalars and frames of each slit, and whether it is a multi-slit product."""
    try:
        text = AsdfText(raw)
        slits = text.scalars()
        for slit, node in zip(slits, text.slits, strict=True):
            steps = text.wcs_steps(node)
            slit["wcs_frames"] = None if steps is None else [frame for frame, _ in steps]
        return slits, text.is_multi
    except Unsplit:
        tree = asdf.util.load_yaml(io.BytesIO(raw), tagged=True)
    multi = "slits" in tree
    slits = []
    for slit in tree["slits"] if multi else [tree]:
        plain = {k: v for k, v in slit.items() if isinstance(v, str | int | float)}
        wcs = slit.get("meta", {}).get("wcs")
        frames = None if wcs is None else [_frame_name(step["frame"]) for step in wcs["steps"]]
        slits.append({**plain, "wcs_frames": frames})
    return slits, multi


def _frame_name(frame: Any) -> str:
    return str(frame if isinstance(frame, str) else frame["name"])


# ------------------------------------------------------------------------------------------------
# Positions and wavelengths


def wcs_yrel(sources: Sequence[WcsSource]) -> Iterator[NDArray[np.float32]]:
    """Shutter pitches from the middle shutter of each slit's pixels, from its WCS's slit frame.

    Parameters
    ----------
    sources
        Slits; the WCS of consecutive ones of a file are read together.

    Yields
    ------
    numpy.ndarray
        ``(ny, nx)``, also outside the slit where the transform reaches there.

    Raises
    ------
    InputFileError
        Where a WCS cannot be read or lacks the frames.
    """
    return (planes[0] for planes in _slit_frame(sources, 1))


def wcs_wavelength(sources: Sequence[WcsSource]) -> Iterator[NDArray[np.float32]]:
    """Wavelength (um) of each slit's pixels as the slit frame has it.

    It is that of a uniformly filled slit: the shift of the step ``wavecorr``, which products
    calibrated as point sources carry in a frame of its own and in their WAVELENGTH extension, is
    not in it.

    Parameters
    ----------
    sources
        Slits; the WCS of consecutive ones of a file are read together.

    Yields
    ------
    numpy.ndarray
        ``(ny, nx)``.

    Raises
    ------
    InputFileError
        Where a WCS cannot be read or lacks the frames.
    """
    return (planes[1] for planes in _slit_frame(sources, 2))


def _slit_frame(sources: Sequence[WcsSource], count: int) -> Iterator[list[NDArray[np.float32]]]:
    """The first `count` of yrel and wavelength of each slit."""
    for _, group in groupby(sources, key=lambda s: s.path):
        slits = list(group)
        found = [kept(s.kept, s.shape, count) for s in slits]
        missing = [s for s, planes in zip(slits, found, strict=True) if planes is None]
        evaluated = _evaluated(missing) if missing else iter(())
        for source, known in zip(slits, found, strict=True):
            if known is not None:
                yield known
                continue
            planes = list(next(evaluated))
            keep(source.kept, planes[:count])
            yield planes


def _evaluated(
    sources: Sequence[WcsSource],
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yrel and wavelength of slits of one file.

    slit_y counts open heights from the source's shutter; the middle of slit_ymin and slit_ymax is
    the middle of the slitlet. In slitlets of an even number of shutters that middle is a bar: half
    a pitch is added, so that shutter centres lie on whole numbers in all slitlets.
    """
    first = sources[0]
    raw = read_bytes(first.path, first.asdf_offset, first.asdf_size)
    try:
        transforms = _transforms(raw, sources)
    except Exception as error:  # of many kinds: a YAML parser's, the converters'
        raise _unusable(first, error) from error
    for source, (transform, low, high) in zip(sources, transforms, strict=True):
        y, x = np.mgrid[: source.shape[0], : source.shape[1]].astype(float)
        try:
            _, slit_y, metres = transform(x, y)
        except (TypeError, ValueError) as error:
            raise _unusable(source, error) from error
        yrel = (slit_y - 0.5 * (low + high)) / PITCH
        if source.coords["n_shutters"] % 2 == 0:
            yrel = yrel + 0.5
        # In metres, whatever unit the frame declares.
        yield yrel.astype(np.float32), (1e6 * metres).astype(np.float32)


def _unusable(source: WcsSource, found: object) -> InputFileError:
    return InputFileError(
        "slit without a usable WCS",
        where=f"{source.coords['filename']}, slitlet {source.coords['slitlet']}",
        expected="frames detector and slit_frame, slit_ymin and slit_ymax",
        found=found,
    )


def _transforms(raw: bytes, sources: Sequence[WcsSource]) -> list[tuple[Any, float, float]]:
    """The transform from detector to slit frame, slit_ymin and slit_ymax of each slit."""
    try:
        return _cut_transforms(raw, [s.index or 0 for s in sources])
    except Unsplit:
        tree = _opened(raw, excerpt=False)
    out: list[tuple[Any, float, float]] = []
    for source in sources:
        slit = tree if source.index is None else tree["slits"][source.index]
        transform = slit["meta"]["wcs"].get_transform("detector", "slit_frame")
        out.append((transform, float(slit["slit_ymin"]), float(slit["slit_ymax"])))
    return out


def _cut_transforms(raw: bytes, indices: Sequence[int]) -> list[tuple[Any, float, float]]:
    """The same from excerpts of the text, so that nothing else is built.

    Raises
    ------
    Unsplit
        Where the text is not laid out as expected.
    """
    text = AsdfText(raw)
    plans, ends = [], []
    for index in indices:
        slit = text.slits[index]
        steps = text.wcs_steps(slit)
        low, high = (text.child(slit, key) for key in ("slit_ymin", "slit_ymax"))
        if steps is None or low is None or high is None:
            raise Unsplit("no WCS, or no ends of the slit")
        frames = [frame for frame, _ in steps]
        if "detector" not in frames or "slit_frame" not in frames:
            raise ValueError("frames " + ", ".join(frames))
        between = steps[frames.index("detector") : frames.index("slit_frame")]
        plans.append(Compound(True, [text.plan(transform) for _, transform in between]))
        ends.append((float(text.scalar(low)), float(text.scalar(high))))
    wanted = list(dict.fromkeys(node for plan in plans for node in _nodes(plan)))
    built = _opened(text.excerpt(wanted), excerpt=True)["wanted"]
    models = dict(zip(wanted, built, strict=True))  # what slits share is built once
    return [(_Transform(p, models), *end) for p, end in zip(plans, ends, strict=True)]


def _nodes(plan: Plan) -> Iterator[Node]:
    if isinstance(plan, Node):
        yield plan
        return
    for member in plan.members:
        yield from _nodes(member)


class _Transform:
    """What a plan says, by the models that its nodes became."""

    def __init__(self, plan: Plan, models: Mapping[Node, Any]):
        self._model: Any = None
        self._members: list[_Transform] = []
        if isinstance(plan, Node):
            self._model = models[plan]
            self.n_inputs = int(self._model.n_inputs)
            return
        self._in_turn = plan.in_turn
        self._members = [_Transform(member, models) for member in plan.members]
        counts = [member.n_inputs for member in self._members]
        self.n_inputs = counts[0] if plan.in_turn else sum(counts)

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        if self._model is not None:
            out = self._model(*values)
            return out if isinstance(out, tuple) else (out,)
        if self._in_turn:
            for member in self._members:
                values = member(*values)
            return values
        out = ()
        for member in self._members:
            out += member(*values[: member.n_inputs])
            values = values[member.n_inputs :]
        return out


def _opened(raw: bytes, *, excerpt: bool) -> Any:
    """The tree of an ASDF file."""
    # Read once into asdf's own configuration, which those of the contexts are copies of.
    asdf.get_config().extensions  # noqa: B018
    # Warnings are of the process, not of the thread: without the lock another reader's "ignore"
    # would end this one's.
    with _OPENING, warnings.catch_warnings(), asdf.config_context() as config:
        warnings.simplefilter("ignore")
        if excerpt:  # written by asdf itself, and cut
            config.validate_on_read = False
            config.legacy_fill_schema_defaults = False
        return asdf.open(io.BytesIO(raw), lazy_load=False).tree
