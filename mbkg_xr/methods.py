"""A result beside other methods: nods, and masters fitted without each slit."""

from __future__ import annotations

import os

import xarray as xr

from .errors import DatasetError
from .io.store import open_store
from .nods import subtract_nods
from .residuals import residuals
from .subtract import subtract

__all__ = ["other_methods", "stored_results"]


def other_methods(
    selected: xr.Dataset, master: xr.Dataset, result: xr.Dataset
) -> dict[str, xr.Dataset | None]:
    """Residuals of nods, and of slits held out of the fit. Lazy."""
    # The store already holds the geometry: reading it is cheaper than making it anew.
    selected = selected.assign_coords({k: result[k] for k in ("wavelength", "yrel")})
    held = None
    if "heldout_polynomial" in master:
        held = subtract(selected, master, heldout=True, residual=True)
    return {"nods": residuals(subtract_nods(selected)), "heldout": held}


def stored_results(
    data: str | os.PathLike | xr.DataTree,
) -> dict[str, tuple[xr.Dataset, xr.Dataset]]:
    """Result and master of each configuration of a store that `mbkg-xr run` wrote. Lazy.

    Raises
    ------
    StoreError
        Where the path is no store.
    DatasetError
        Where it holds no result.
    """
    tree = data if isinstance(data, xr.DataTree) else open_store(data)
    found = {
        str(name): (node.to_dataset(), node["master"].to_dataset())
        for name, node in tree.children.items()
        if "background" in node.data_vars and "master" in node.children
    }
    if not found:
        raise DatasetError(
            "no result in this store",
            where=None if isinstance(data, xr.DataTree) else str(data),
            expected="groups of slits with their background and master, as mbkg-xr run writes",
            found=" ".join(map(str, tree.children)) or "nothing",
        )
    return found
