"""What a user may decide about products when they are opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ParameterError
from ..schema import SLIT_COORDS
from .sky import Verdict, overrule
from .user_sky import UserSky, user_sky

__all__ = ["Choices", "check_sky", "choices", "choose_in_tree", "choose_sky"]

_ACCEPTABLE = ("S_FLAT", "S_PHOTOM")
Paths = str | os.PathLike | Sequence[str | os.PathLike]


@dataclass(frozen=True)
class Choices:
    """Checked; made by `choices`.

    Attributes
    ----------
    user
        The user's own list or table of sky slits.
    metafiles
        MSA metafiles the user names.
    virtual_sky
        Whether slits with virtual sources are sky.
    accept
        Status keywords that are not held against a product.
    """

    user: UserSky | None = None
    metafiles: tuple[str, ...] = ()
    virtual_sky: bool = False
    accept: tuple[str, ...] = ()


def choices(
    *,
    sky: Any = None,
    metafile: Paths | None = None,
    virtual_sky: bool = False,
    accept: Sequence[str] = (),
) -> Choices:
    """Check what a user decided; parameters as of `mbkg_xr.open_program`.

    Raises
    ------
    ParameterError, InputFileError

    Examples
    --------
    >>> choices(virtual_sky=True).virtual_sky
    True
    """
    names = (accept,) if isinstance(accept, str) else tuple(accept)
    unknown = [name for name in names if name not in _ACCEPTABLE]
    if unknown:
        raise ParameterError(
            "a step that cannot be done without",
            where="accept",
            expected=" or ".join(_ACCEPTABLE),
            found=" ".join(map(str, unknown)),
        )
    given = () if metafile is None else metafile
    given = (given,) if isinstance(given, str | os.PathLike) else tuple(given)
    return Choices(
        user_sky(sky), tuple(os.fspath(path) for path in given), bool(virtual_sky), names
    )


def check_sky(slits: Sequence[Mapping[str, Any]], choice: Choices) -> None:
    """Raise where the user's table has rows for no slit.

    Raises
    ------
    ParameterError
    """
    if choice.user is not None:
        choice.user.check(slits)


def choose_in_tree(tree: xr.DataTree, choice: Choices) -> xr.DataTree:
    """A tree from a store, with the user's choice of sky slits.

    Raises
    ------
    ParameterError
        Where that does not fit, or the user gave what only products can be decided by.
    """
    if choice.metafiles or choice.accept:
        raise ParameterError(
            "a store was decided on when it was made",
            where="metafile" if choice.metafiles else "accept",
            expected="FITS products",
            found="a Zarr store",
            remedy="give it with the products, or say which slits are sky (sky, --sky)",
        )
    if choice.user is None and not choice.virtual_sky:
        return tree
    nodes = [node for node in tree.subtree if _is_slits(node)]
    check_sky([c for node in nodes for c in _coords(node.to_dataset())], choice)
    return tree.map_over_datasets(lambda ds: choose_sky(ds, choice) if _is_slits(ds) else ds)


def _is_slits(ds: xr.Dataset | xr.DataTree) -> bool:
    return "flux" in ds and "slitlet" in ds.coords


def choose_sky(ds: xr.Dataset, choice: Choices) -> xr.Dataset:
    """A slit dataset with the user's choice of sky slits; as it is where there is none.

    Parameters
    ----------
    ds
        A slit dataset of whatever origin.
    choice
        Its list or table, and whether virtual sources are sky; metafiles say nothing here.

    Raises
    ------
    ParameterError
        Where rows of the table contradict each other.
    """
    if choice.user is None and not choice.virtual_sky:
        return ds
    before = zip(
        *(_column(ds, n) for n in ("is_background", "source_shutter", "sky_reason")), strict=True
    )
    after = [
        overrule(Verdict(*verdict), coords, user=choice.user, virtual_sky=choice.virtual_sky)
        for verdict, coords in zip(before, _coords(ds), strict=True)
    ]
    found = {
        "is_background": np.array([v.is_background for v in after]),
        "source_shutter": np.array([v.source_shutter for v in after], np.float32),
        "sky_reason": np.array([v.reason for v in after], dtype=str),
    }
    return ds.assign_coords({n: ("slit", v, SLIT_COORDS[n][2]) for n, v in found.items()})


def _column(ds: xr.Dataset, name: str) -> list:
    """A slit coordinate, with its unknown value where an older store lacks it."""
    if name in ds.coords:
        return ds[name].values.tolist()
    return [SLIT_COORDS[name][1]] * ds.sizes["slit"]


def _coords(ds: xr.Dataset) -> list[dict[str, Any]]:
    names = ("slitlet", "exposure", "detector", "visit", "nod", "source_id", "source_name")
    columns = (_column(ds, name) for name in names)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
