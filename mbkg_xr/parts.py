"""Several masters in one dataset: one for each value of a slit coordinate.

What is of the sky or of its fit gets the dimension ``part``, filled up where parts differ in size;
what is of a slit keeps one row a slit, since a slit belongs to one part. `master_part` gives each
part's master back, as if its slits had been fitted alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .errors import DatasetError, ParameterError
from .schema import slit_label

__all__ = [
    "has_parts",
    "join_parts",
    "lacking",
    "master_part",
    "part_at",
    "part_index",
    "require_one_sky",
    "split_slits",
]

# The same in all masters of a configuration; other coordinates may differ from part to part.
_ALIKE = ("edge", "node", "shutter", "component", "evidence", "yrel_node")
_FILL = {"f": np.nan, "i": -1, "u": 0, "b": False, "U": "", "T": "", "O": ""}
_COMMON_ATTRS = (
    "mbkg_xr_schema", "master_layout", "configuration", "units", "model", "clip", "left_out",
    "rows",
)  # fmt: skip
_NUMBERS = ("scatter", "n_pixels", "dof")


def has_parts(master: xr.Dataset) -> bool:
    """Whether a master is several, made by ``fit_master(by=...)``."""
    return "part" in master.dims


def require_one_sky(master: xr.Dataset, what: str) -> None:
    """Refuse several masters where one is wanted.

    Raises
    ------
    ParameterError
    """
    if has_parts(master):
        raise ParameterError(
            f"{what} is of one sky",
            expected="one part: mx.master_part(master, value)",
            found=f"{master.sizes['part']} parts by {master.attrs['by']}",
        )


def split_slits(ds: xr.Dataset, by: str | Sequence[str]) -> tuple[NDArray, NDArray[np.int64], str]:
    """Values of a slit coordinate, sorted, the rank of each slit's own, and the coordinate's name.

    Of several coordinates the values are joined by slashes, and the names by commas.
    """
    names = [by] if isinstance(by, str) else list(by)
    unknown = [n for n in names if n not in ds.coords or ds[n].dims != ("slit",)]
    if unknown or not names:
        raise ParameterError(
            "cannot fit one master for each of these",
            where="by",
            expected="the name of a slit coordinate, such as visit, or several of them",
            found=" ".join(map(str, unknown)) or "none",
        )
    for name in names:
        if ds[name].dtype.kind == "f" and not np.isfinite(ds[name].values).all():
            first = int(np.flatnonzero(~np.isfinite(ds[name].values))[0])
            raise ParameterError(
                f"cannot fit one master for each {name}",
                where=slit_label(ds, first),
                expected=f"a {name} for every slit",
                found="none",
            )
    if len(names) == 1:
        values = ds[names[0]].values
    else:
        rows = zip(*(ds[n].values.astype(str).tolist() for n in names), strict=True)
        values = np.array(["/".join(row) for row in rows])
    found, rank = np.unique(values, return_inverse=True)
    return found, rank.astype(np.int64), ",".join(names)


def join_parts(
    masters: Sequence[xr.Dataset], values: NDArray, rows: Sequence[NDArray], by: str
) -> xr.Dataset:
    """Put masters together.

    Parameters
    ----------
    masters
        From `fit_master`, one a part.
    values
        ``(part,)``, of the coordinate.
    rows
        For each part, the places of its slits among all slits.
    by
        Name of the coordinate.
    """
    sizes = {d: max(m.sizes.get(d, 0) for m in masters) for m in masters for d in m.dims}
    place = np.argsort(np.concatenate(rows), kind="stable")
    first: dict[str, xr.DataArray] = {}
    for one in masters:
        for name in map(str, one.variables):
            first.setdefault(name, one[name])
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {"part": ("part", values)}
    for name, like in first.items():
        if name in _ALIKE:
            coords[name] = like.variable
            continue
        dims = tuple(map(str, like.dims))
        inner = tuple(d for d in dims if d != "slit")
        shape = tuple(sizes[d] for d in inner)
        pieces = []
        for one in masters:
            n = (one.sizes["slit"],) if "slit" in dims else ()
            pieces.append(_filled(one.get(name), like, dims, (*n, *shape)))
        # One that is its own dimension's coordinate cannot have a second dimension.
        put = coords if name in like.coords else data
        if "slit" in dims:
            put[name] = (dims, np.concatenate(pieces)[place], like.attrs)
        else:
            key = f"part_{name}" if dims == (name,) else name
            put[key] = (("part", *inner), np.stack(pieces), like.attrs)
    number = np.repeat(np.arange(len(masters)), [one.sizes["slit"] for one in masters])
    coords["part_index"] = ("slit", number[place], {"long_name": "place of the slit's part"})
    for name in _NUMBERS:
        data[name] = ("part", np.array([one.attrs[name] for one in masters]))
    data["part_header"] = ("part", np.array([_header(one, first) for one in masters]))
    return xr.Dataset(data, coords, attrs=_joint_attrs(masters, by))


def _filled(
    own: xr.DataArray | None, like: xr.DataArray, dims: tuple[str, ...], shape: tuple[int, ...]
) -> NDArray:
    values = np.empty((0,) * len(shape), like.dtype) if own is None else own.values
    kind = like.dtype.kind
    dtype = np.dtype(object) if kind in "UT" else like.dtype
    out = np.full(shape, _FILL[kind], dtype)
    if own is not None:
        out[tuple(slice(n) for n in values.shape)] = values
    return out.astype(str) if kind in "UT" else out


def _header(one: xr.Dataset, every: dict[str, xr.DataArray]) -> str:
    """What makes a part a master again: attributes, sizes, and variables it does not have."""
    return json.dumps(
        {
            "attrs": one.attrs,
            "sizes": {str(d): n for d, n in one.sizes.items() if d != "slit"},
            "without": [name for name in every if name not in one.variables],
        },
        default=lambda value: value.item() if isinstance(value, np.generic) else list(value),
    )


def _joint_attrs(masters: Sequence[xr.Dataset], by: str) -> dict[str, Any]:
    """What may be said of all parts together."""
    attrs = {k: masters[0].attrs[k] for k in _COMMON_ATTRS if k in masters[0].attrs}
    pixels = np.array([one.attrs["n_pixels"] for one in masters])
    scatter = np.array([one.attrs["scatter"] for one in masters])
    ranges = np.array([one.attrs["wavelength_range"] for one in masters])
    return {
        **attrs,
        "by": by,
        "n_pixels": int(pixels.sum()),
        "scatter": float(np.sqrt(np.average(scatter**2, weights=pixels))),
        "converged": int(all(one.attrs["converged"] for one in masters)),
        "wavelength_range": [float(ranges[:, 0].min()), float(ranges[:, 1].max())],
    }


def master_part(master: xr.Dataset, value: Any) -> xr.Dataset:
    """The master of one part.

    Parameters
    ----------
    master
        From ``fit_master(by=...)``.
    value
        Of the coordinate ``part``.

    Returns
    -------
    xarray.Dataset
        As if the part's slits had been fitted alone.

    Raises
    ------
    DatasetError
        Where the master has no parts.
    ParameterError
        Where it has none of this value.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=1, visits=2, slits=4, background_slits=4)
    >>> ds = mx.select_background(ds)
    >>> both = mx.fit_master(ds, by="visit", model=mx.BSpline(spacing=12))
    >>> both.part.values.tolist(), both.polynomial.dims
    (['09999001001', '09999002001'], ('part', 'span', 'power'))
    >>> mx.master_part(both, "09999002001").polynomial.dims
    ('span', 'power')
    """
    if not has_parts(master):
        raise DatasetError(
            "a master without parts", expected="a dataset from fit_master(by=...)", found="one part"
        )
    found = np.flatnonzero(master["part"].values == value)
    if not found.size:
        raise ParameterError(
            "no such part",
            where=str(master.attrs["by"]),
            expected=" ".join(map(str, master["part"].values[:20])),
            found=value,
        )
    return part_at(master, int(found[0]))


def part_at(master: xr.Dataset, index: int) -> xr.Dataset:
    """The master of the part at one place."""
    header = json.loads(str(master["part_header"].values[index]))
    gone = {"part", "part_index", "part_header", *_NUMBERS, *header["without"]}
    slits = np.flatnonzero(master["part_index"].values == index)
    one = master.drop_vars([n for n in gone if n in master.variables and n != "part_index"])
    one = one.drop_vars("part_index").isel(part=index, slit=slits)
    one = one.isel({d: slice(n) for d, n in header["sizes"].items() if d in one.dims})
    for name in [str(n) for n in one.coords if str(n).startswith("part_")]:
        labels = one[name].variable
        one = one.drop_vars(name).assign_coords({name.removeprefix("part_"): labels})
    one.attrs = header["attrs"]
    return one


def part_index(ds: xr.Dataset, master: xr.Dataset) -> NDArray[np.int64]:
    """Place of each slit's part among those of the master, -1 where it has none."""
    values, rank, _ = split_slits(ds, str(master.attrs["by"]).split(","))
    place = {v: i for i, v in enumerate(master["part"].values.tolist())}
    return np.array([place.get(v, -1) for v in values.tolist()], dtype=np.int64)[rank]


def lacking(master: xr.Dataset, name: str) -> NDArray[np.bool_]:
    """``(part,)``: parts whose master has no such variable."""
    headers = [json.loads(str(header)) for header in master["part_header"].values]
    return np.array([name in header["without"] for header in headers], dtype=np.bool_)
