"""Groups of slits, from what the slits are: what is left out of a fit together, and its sums."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import ParameterError
from .schema import SLIT_IDENTITY

__all__ = ["MOST_GROUPS", "add_up", "leave_out_groups", "weighted"]

MOST_GROUPS = 64


def leave_out_groups(
    ds: xr.Dataset, leave_out: str, most: int = MOST_GROUPS
) -> tuple[NDArray[np.int64], list[str]]:
    """Group of each slit, from what the slits are and never from their order."""
    if leave_out == "slit":
        keys = [
            "|".join(map(str, k)) for k in zip(*(ds[c].values for c in SLIT_IDENTITY), strict=True)
        ]
    elif leave_out in ds.coords and ds[leave_out].dims == ("slit",):
        keys = ds[leave_out].values.astype(str).tolist()
    else:
        raise ParameterError(
            "cannot leave out by this",
            expected="'slit' or the name of a slit coordinate",
            found=leave_out,
        )
    names = sorted(set(keys))
    rank = {name: i % most for i, name in enumerate(names)}
    return np.array([rank[k] for k in keys], dtype=np.int64), names[:most]


def add_up(values: NDArray, groups: NDArray[np.int64], n_groups: int) -> NDArray:
    """``(group, ...)`` from ``(slit, ...)``."""
    out = np.zeros((n_groups, *values.shape[1:]), dtype=values.dtype)
    np.add.at(out, groups, values)
    return out


def weighted(
    values: NDArray, groups: NDArray[np.int64], n_groups: int, products: NDArray[np.float64]
) -> NDArray:
    """``(product, group, ...)`` from ``(slit, ...)``, each slit times its products."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    out = np.zeros((products.shape[1], n_groups, *values.shape[1:]))
    for index, product in enumerate(products.T):
        out[index] = add_up(values * product.reshape(shape), groups, n_groups)
    return out
