"""Tables to files, block by block: CSV and Parquet, whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..errors import ParameterError, StoreError
from .location import local_path

__all__ = ["kind_of_table", "write_csv", "write_frame", "write_parquet"]


def kind_of_table(path: str | os.PathLike) -> str:
    """``"csv"`` or ``"parquet"``, by a file's name.

    Raises
    ------
    ParameterError
        Where it is neither.
    """
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in ("csv", "parquet"):
        raise ParameterError(
            "unknown kind of table", where=str(path), expected="a name in .csv or .parquet",
            found=kind or "no ending",
        )  # fmt: skip
    return kind


def write_frame(frame: pd.DataFrame, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write a table as CSV or Parquet, by the file's name; as `write_csv`."""
    kind = kind_of_table(path)
    if kind == "parquet":
        _pyarrow()
    with _appearing(path, overwrite) as part:
        if kind == "csv":
            frame.to_csv(part, index=False)
        else:
            frame.to_parquet(part, index=False)


@contextmanager
def _appearing(path: str | os.PathLike, overwrite: bool) -> Iterator[Path]:
    """A file to write, which gets its name only when all went well."""
    path = local_path(path, "tables")
    if path.is_dir() or (path.exists() and not overwrite):
        raise StoreError(
            "this is a directory" if path.is_dir() else "the file exists",
            where=str(path),
            remedy="choose another name" + "" if path.is_dir() else ", or overwrite it",
        )
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
        except OSError as error:
            raise StoreError("cannot write here", where=str(path), found=error.strerror) from error
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_csv(
    blocks: Iterable[xr.Dataset], template: xr.Dataset, path: str | os.PathLike, overwrite: bool
) -> int:
    """Write blocks of points as CSV.

    Parameters
    ----------
    blocks
        Datasets of one dimension.
    template
        Such a dataset without points: the columns.
    path, overwrite
        The file, and whether it may replace another.

    Returns
    -------
    int
        Number of points.

    Raises
    ------
    StoreError
        Where the file exists or cannot be written.
    """
    names = list(map(str, template.variables))
    n = 0
    with _appearing(path, overwrite) as part:
        template.to_dataframe()[names].to_csv(part, index=False)
        for block in blocks:
            n += block.sizes["point"]
            block.to_dataframe()[names].to_csv(part, mode="a", header=False, index=False)
    return n


def write_parquet(
    blocks: Iterable[xr.Dataset], template: xr.Dataset, path: str | os.PathLike, overwrite: bool
) -> int:
    """Write blocks of points as Parquet, a row group each; as `write_csv`."""
    arrow, parquet = _pyarrow()
    schema = arrow.schema(
        [
            arrow.field(str(name), _arrow_type(arrow, variable), metadata=_described(variable))
            for name, variable in template.variables.items()
        ]
    )
    n = 0
    with (
        _appearing(path, overwrite) as part,
        parquet.ParquetWriter(part, schema, compression="zstd") as writer,
    ):
        for block in blocks:
            n += block.sizes["point"]
            columns = [_arrow_column(arrow, block[f.name].values, f.type) for f in schema]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
    return n


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StoreError(
            "Parquet files need pyarrow",
            found="no such package",
            remedy="pip install 'mbkg_xr[parquet]', or write CSV",
        ) from error
    return pyarrow, pyarrow.parquet


def _arrow_type(arrow: Any, variable: xr.Variable) -> Any:
    if variable.dtype.kind in "OUT":
        return arrow.dictionary(arrow.int32(), arrow.string())
    return arrow.from_numpy_dtype(variable.dtype)


def _described(variable: xr.Variable) -> dict[str, str]:
    return {k: str(variable.attrs[k]) for k in ("units", "long_name") if k in variable.attrs}


def _arrow_column(arrow: Any, values: np.ndarray, kind: Any) -> Any:
    if values.dtype.kind not in "OUT":
        return arrow.array(values, kind)
    # Text of points refers to their slits': few objects, told apart by identity alone.
    texts = {id(t): t for t in values}
    order = {key: i for i, key in enumerate(texts)}
    codes = np.fromiter((order[id(t)] for t in values), np.int32, values.size)
    unique, inverse = np.unique(np.array(list(texts.values()), dtype=str), return_inverse=True)
    return arrow.DictionaryArray.from_arrays(
        arrow.array(inverse[codes].astype(np.int32)), arrow.array(unique.tolist(), arrow.string())
    )
