"""Groups of slits, from what the slits are: what is left out of a fit together, and its sums."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import ParameterError
from .schema import SLIT_IDENTITY

__all__ = ["MOST_GROUPS", "add_up", "few_slits", "leave_out_groups", "weighted"]

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


def few_slits(ds: xr.Dataset, few: int) -> NDArray[np.int64] | None:
    """Some slits of a large programme, as many of each exposure and detector as can be; None where
    they would not be less than half of all.

    By a digest of what the slits are, so that they are the same whatever their order.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=3, slits=20, background_slits=8)
    >>> some = ds.isel(slit=few_slits(ds, 9))
    >>> [int((some.exposure == name).sum()) for name in np.unique(ds.exposure)]
    [3, 3, 3]
    """
    if not 0 < 2 * few < ds.sizes["slit"]:
        return None
    keys = list(zip(*(ds[c].values.tolist() for c in SLIT_IDENTITY), strict=True))
    digests = [blake2b("|".join(map(str, key)).encode(), digest_size=8).digest() for key in keys]
    place = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)
    names = np.array([f"{exposure}|{detector}" for exposure, detector, _ in keys])
    group = np.unique(names, return_inverse=True)[1]
    order = np.lexsort((place, group))
    first = np.searchsorted(group[order], np.arange(group.max() + 1))
    rank = np.empty(order.size, dtype=np.int64)
    rank[order] = np.arange(order.size) - first[group[order]]
    return np.sort(np.lexsort((place, rank))[:few])


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
