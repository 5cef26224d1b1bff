"""``xr.open_dataset(path, engine="mbkg")``: the readers as a backend of xarray."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from ..errors import InputFileError
from . import open_program
from .nips import NipsLayout

__all__ = ["MbkgBackend"]


class MbkgBackend(BackendEntrypoint):
    """Slit products of STScI and NIPS, and stores of mbkg_xr, as datasets of xarray.

    Pixels are read when they are indexed, whole slits at a time; ``chunks={}`` makes dask arrays
    of 32 slits a chunk (of a store's own chunks).

    Examples
    --------
    >>> import tempfile
    >>> from mbkg_xr.simulate import simulate_program, write_nips
    >>> ds = simulate_program(exposures=1, slits=3, background_slits=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = write_nips(ds, folder)
    ...     xr.open_dataset(folder, engine=MbkgBackend, cache=False).sizes["slit"]
    3
    """

    description = "NIRSpec slit products of STScI (_cal) and NIPS (I2D), and mbkg_xr stores"
    supports_groups = True

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        on_error: str = "raise",
        nips_layout: NipsLayout | Mapping[str, Any] | str | os.PathLike | None = None,
        sky: Any = None,
        metafile: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        virtual_sky: bool = False,
        accept: Sequence[str] = (),
        index: bool | str | os.PathLike = True,
    ) -> xr.Dataset:
        """Open one configuration of a programme.

        Parameters
        ----------
        filename_or_obj
            The `paths` of `mbkg_xr.open_program`: a file, directory, glob pattern, list or store.
        drop_variables
            Names of variables to leave out.
        group
            The configuration, such as ``"prism-clear"``; may be left out where there is only one.
        on_error, nips_layout, sky, metafile, virtual_sky, accept
            As in `mbkg_xr.open_program`.
        index
            Its `cache`; xarray's own `cache` is about pixels in memory.

        Returns
        -------
        xarray.Dataset

        Raises
        ------
        InputFileError
            Where there are several configurations and none is chosen, or no such group.
        """
        tree = open_program(
            filename_or_obj,
            chunks=None,
            on_error=on_error,
            nips_layout=nips_layout,
            sky=sky,
            metafile=metafile,
            virtual_sky=virtual_sky,
            accept=accept,
            cache=index,
        )
        return _without(_chosen(tree, group, filename_or_obj), drop_variables)

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        **options: Any,
    ) -> xr.DataTree:
        """Open a programme, one node a configuration; parameters as of `open_dataset`."""
        return xr.DataTree.from_dict(
            self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, **options)
        )

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        index: bool | str | os.PathLike = True,
        **options: Any,
    ) -> dict[str, xr.Dataset]:
        """The datasets of a programme by the paths of their nodes; parameters as above."""
        tree = open_program(filename_or_obj, chunks=None, cache=index, **options)
        return {
            node.path: _without(node.to_dataset(inherit=False), drop_variables)
            for node in tree.subtree
        }

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is named as a FITS file; nothing is read."""
        return isinstance(filename_or_obj, str | os.PathLike) and os.fspath(
            filename_or_obj
        ).lower().endswith(".fits")


def _chosen(tree: xr.DataTree, group: str | None, given: Any) -> xr.Dataset:
    """The node that is asked for, or the only configuration."""
    nodes = {node.path.strip("/"): node for node in tree.subtree if node.has_data}
    names = list(nodes)
    configurations = [name for name in names if "/" not in name]
    if group is None and len(configurations) == 1:
        group = configurations[0]
    if group is not None and group.strip("/") in names:
        return nodes[group.strip("/")].to_dataset(inherit=False)
    raise InputFileError(
        "several configurations" if group is None else "no such group",
        where=_named(given),
        expected="group= one of " + ", ".join(sorted(configurations if group is None else names)),
        found="no group" if group is None else group,
        remedy="choose one, or open all with xr.open_datatree or mbkg_xr.open_program",
    )


def _named(given: Any) -> str:
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return ", ".join(os.fspath(path) for path in several[:3]) + (
        ", ..." if len(several) > 3 else ""
    )


def _without(ds: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    given = [names] if isinstance(names, str) else list(names or ())
    return ds.drop_vars([name for name in given if name in ds.variables])
