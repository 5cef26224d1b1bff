"""Moments of new exposures into a store that holds those of former ones."""

from __future__ import annotations

import os

import xarray as xr

from .errors import DatasetError, StoreError
from .io.append import append_slits, end_append
from .io.store import is_store, open_store
from .slit_moments import identities, is_moments, merge_moments, require_moments

__all__ = ["append_moments"]


def append_moments(new: xr.Dataset, path: str | os.PathLike) -> None:
    """Append moments of further slits to saved ones, in place. Computes what is lazy.

    Only what is new is written, with the chunk that the former ones ended in. If the process is
    killed, the store is as it was; or, where all was written already, the next call ends it.

    Parameters
    ----------
    new
        From `moments`, made with the master that the saved ones were made with.
    path
        A store by `save` that holds moments of this configuration, a path or a URL.

    Raises
    ------
    StoreError
        Where there is no such store, or another process writes to it.
    DatasetError
        Where a slit is there already, or configurations, units, spans or weights differ.

    Examples
    --------
    >>> import mbkg_xr as mx, pathlib, tempfile
    >>> ds = mx.select_background(mx.simulate_program(exposures=3, slits=4, background_slits=2))
    >>> old, new = ds.isel(slit=slice(8)), ds.isel(slit=slice(8, None))
    >>> master = mx.fit_master(old)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = pathlib.Path(folder) / "moments.zarr"
    ...     mx.save(mx.moments(old, master), store)
    ...     mx.append_moments(mx.moments(new, master), store)
    ...     mx.open_program(store)["prism-clear"].sizes["slit"]
    12
    """
    require_moments(new)
    ended = is_store(path) and end_append(path)
    tree = open_store(path)
    held = {node.path.strip("/"): node.to_dataset() for node in tree.subtree if node.has_data}
    found = {name: ds for name, ds in held.items() if is_moments(ds)}
    alike = {
        name: ds
        for name, ds in found.items()
        if ds.attrs.get("configuration") == new.attrs.get("configuration")
    }
    if len(alike) != 1:
        raise StoreError(
            "not one set of moments to append to",
            where=str(path),
            expected=f"moments of {new.attrs.get('configuration')}",
            found=" ".join(found) or "none",
            remedy="save moments of other configurations there, or in a store of their own",
        )
    ((group, former),) = alike.items()
    if ended and not set(identities(new)) - set(identities(former)):
        return  # these are the ones
    joined = merge_moments(former, new)
    rows = [{str(n) for n, v in ds.variables.items() if "slit" in v.dims} for ds in (former, new)]
    if rows[0] != rows[1]:
        raise DatasetError(
            "moments that say other things of their slits",
            where=str(path),
            expected=" ".join(sorted(rows[0])),
            found=" ".join(sorted(rows[1] ^ rows[0])) + " in one of them",
        )
    append_slits(path, group, joined, former.sizes["slit"])
