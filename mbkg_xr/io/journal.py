"""The journal of an ingested store: which exposures are in it, and what each slit is.

It is one file, replaced at once: what it does not name is not in the store, whatever lies in its
arrays. It is a Zarr group without arrays, so that other tools pass over it, and carries a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from .location import is_remote, located, reaching

__all__ = [
    "JOURNAL",
    "Block",
    "Group",
    "Journal",
    "Product",
    "compact",
    "has_journal",
    "read_journal",
    "sync_folder",
    "write_journal",
]

JOURNAL = "journal"
_FORMAT = 1
_HEAD = '{"zarr_format":3,"node_type":"group","attributes":{"checksum":"%s","content":'
_TAIL = "}}"


@dataclass(frozen=True)
class Block:
    """Slits of one exposure on one detector that were written together.

    Attributes
    ----------
    exposure, detector
        Theirs.
    start, count
        The first slot, a multiple of the chunk's length, and the number of slits.
    shape
        ``(ny, nx)`` of the largest.
    units
        Of their flux.
    digests
        Of the pixels as written, by variable.
    coords
        Their coordinates: one value that all have, or a list of a value each.
    attrs
        Attributes that their dataset had.
    version, options
        Of mbkg_xr, and what it was told, when it read them.
    """

    exposure: str
    detector: str
    start: int
    count: int
    shape: tuple[int, int]
    units: str
    digests: dict[str, str]
    coords: dict[str, Any]
    attrs: dict[str, Any]
    version: str
    options: dict[str, str]

    @property
    def stop(self) -> int:
        return self.start + self.count

    def coord(self, name: str, unknown: Any = None) -> list:
        """Values of a coordinate, one a slit; `unknown` for NaN and where there are none."""
        values = self.coords.get(name, unknown)
        values = values if isinstance(values, list) else [values] * self.count
        return [unknown if v is None else v for v in values]


@dataclass(frozen=True)
class Product:
    """A file that is in the store: its size, content and the blocks that its slits are in."""

    size: int
    digest: str
    blocks: list[str]
    options: dict[str, str]


@dataclass
class Group:
    """One configuration: how its arrays are cut, what they hold, and its blocks.

    Attributes
    ----------
    chunk
        Slits, rows and columns of a chunk.
    variables
        dtype, attributes and whether a coordinate, of pixel variables by name.
    coords
        dtype and attributes of slit coordinates by name.
    blocks
        By their first slot.
    """

    chunk: tuple[int, int, int]
    variables: dict[str, dict] = field(default_factory=dict)
    coords: dict[str, dict] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """Slots in use, those that round up to whole chunks with them."""
        length = self.chunk[0]
        return max((-(-b.stop // length) * length for b in self.blocks), default=0)

    @property
    def shape(self) -> tuple[int, int]:
        """``(ny, nx)`` of the largest slit."""
        return (
            max((b.shape[0] for b in self.blocks), default=1),
            max((b.shape[1] for b in self.blocks), default=1),
        )

    def chunk_names(self, variable: str) -> Iterable[str]:
        """Files that the chunks of a variable are kept in."""
        for block in self.blocks:
            if variable in block.digests:
                yield from (".".join(map(str, ("c", *i))) for i in self.chunk_indices(block))

    def chunk_indices(self, block: Block) -> Iterable[tuple[int, int, int]]:
        """Position of each chunk of a block: usually one in y and x, more where the arrays grew."""
        n, ny, nx = self.chunk
        for k in range(block.start // n, -(-block.stop // n)):
            for j in range(-(-block.shape[0] // ny)):
                for i in range(-(-block.shape[1] // nx)):
                    yield k, j, i


@dataclass
class Journal:
    """All that a store holds, by configuration, and the products it was read from, by name."""

    groups: dict[str, Group] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)


def compact(values: NDArray) -> Any:
    """A coordinate of a block for the journal: one value if all are equal, NaN as None."""
    plain = [None if v != v else v for v in _python(values)]
    return plain[0] if all(v == plain[0] for v in plain) else plain


def _python(values: NDArray) -> list:
    # float32 goes through double, which JSON gives back to the last bit.
    return values.astype(np.float64).tolist() if values.dtype.kind == "f" else values.tolist()


def has_journal(store: str | os.PathLike) -> bool:
    """Whether a store was made by `ingest`."""
    return (located(store) / JOURNAL / "zarr.json").exists()


def read_journal(store: str | os.PathLike) -> Journal:
    """Read what is in a store.

    Raises
    ------
    StoreError
        Where the journal cannot be read, is damaged, or was written by a newer version.
    """
    path = located(store) / JOURNAL / "zarr.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StoreError(
            "cannot read the store's journal", where=str(path), found=error, remedy=_REMEDY
        ) from error
    content = text[len(_HEAD % ("0" * 32)) : -len(_TAIL)]
    if text != _HEAD % _checksum(content) + content + _TAIL:
        raise StoreError(
            "the store's journal is damaged",
            where=str(path),
            expected="its own checksum",
            found=f"another one, in {len(text)} characters",
            remedy=_REMEDY,
        )
    data = json.loads(content)
    if data["format"] != _FORMAT:
        raise StoreError(
            "the store was written by a newer version",
            where=str(path),
            expected=f"journal format {_FORMAT}",
            found=data["format"],
            remedy="update mbkg_xr",
        )
    return Journal(
        {name: _group(g) for name, g in data["groups"].items()},
        {name: Product(**p) for name, p in data["products"].items()},
    )


_REMEDY = "ingest the products into a new store"


def _group(data: Mapping[str, Any]) -> Group:
    blocks = [Block(**{**b, "shape": tuple(b["shape"])}) for b in data["blocks"]]
    return Group(tuple(data["chunk"]), data["variables"], data["coords"], blocks)


def write_journal(store: str | os.PathLike, journal: Journal) -> None:
    """Replace a store's journal at once; when this returns it is on the disk.

    The same content is the same bytes, in whatever order it was gathered.
    """
    groups = {
        name: {**vars(g), "blocks": [vars(b) for b in sorted(g.blocks, key=lambda b: b.start)]}
        for name, g in journal.groups.items()
    }
    products = {name: vars(p) for name, p in journal.products.items()}
    data = {"format": _FORMAT, "groups": groups, "products": products}
    content = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    text = _HEAD % _checksum(content) + content + _TAIL
    folder = located(store) / JOURNAL
    if is_remote(folder):
        with reaching(store):
            (folder / "zarr.json").write_bytes(text.encode())  # objects are replaced at once
        return
    folder.mkdir(exist_ok=True)
    draft = folder / f"zarr.json.{uuid.uuid4().hex}.partial"
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, folder / "zarr.json")
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(folder)


def sync_folder(folder: str | os.PathLike) -> None:
    """Put on the disk which files a directory holds."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(content: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
