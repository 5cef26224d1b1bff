"""Conditions and bins as they are written on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import xarray as xr

__all__ = ["Pair", "numbers", "selected"]


class Pair(click.ParamType):
    """``NAME=VALUES``."""

    name = "name=values"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        name, equals, text = str(value).partition("=")
        if not (name and equals and text):
            self.fail(f"{value!r} is not NAME=VALUES, such as nod=1,2 or residual=5..")
        return name, text


def selected(ds: xr.Dataset, select: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Conditions on any coordinates, by the kind of each: what is unknown is the query's to say."""
    out: dict[str, list] = {}
    for name, text in select:
        kind = ds[name].dtype.kind if name in ds.variables else "U"
        for part in text.split(","):
            out.setdefault(name, []).append(_value(part.strip(), kind, name))
    return out


def _value(text: str, kind: str, name: str) -> Any:
    if kind in "OUT" or name == "quality":
        return int(text) if name == "quality" and text.isdecimal() else text
    if kind == "b":
        if text.lower() not in ("true", "false"):
            raise click.BadParameter(f"{name}={text}: true or false", param_hint="--select")
        return text.lower() == "true"
    try:
        if ".." in text:
            low, _, high = text.partition("..")
            return (float(low) if low else None, float(high) if high else None)
        return float(text)
    except ValueError:
        raise click.BadParameter(
            f"{name}={text}: a number, or LOW..HIGH", param_hint="--select"
        ) from None


def numbers(text: str, hint: str) -> int | list[float]:
    """A number of bins, or edges."""
    try:
        return int(text) if "," not in text else [float(t) for t in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no number of bins, and no edges", param_hint=hint
        ) from None
