"""Dataclasses as plain values for JSON, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

__all__ = ["plain", "thawed"]


def plain(value: Any) -> Any:
    """What ``json.dumps`` is to make of a dataclass; its fields may be others.

    Raises
    ------
    TypeError
        On anything else.
    """
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    raise TypeError(f"not a plain value: {value!r}")


@cache
def thawed(hint: Any) -> Callable[[Any], Any]:
    """What makes a value of a type from its plain form.

    Examples
    --------
    >>> thawed(dict[str, tuple[int, int]])({"shape": [3, 4]})
    {'shape': (3, 4)}
    """
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        parts = {k: thawed(h) for k, h in get_type_hints(hint).items()}
        changed = {k: part for k, part in parts.items() if part is not _same}

        def make(data: dict[str, Any]) -> Any:
            data.update({k: part(data[k]) for k, part in changed.items() if k in data})
            return hint(**data)

        return make
    if origin is tuple:
        return lambda data: None if data is None else tuple(data)
    if origin is list and thawed(inner[0]) is not _same:
        one = thawed(inner[0])
        return lambda data: [one(v) for v in data]
    if origin in (dict, Mapping) and thawed(inner[1]) is not _same:
        one = thawed(inner[1])
        return lambda data: {k: one(v) for k, v in data.items()}
    options = [h for h in inner if h is not type(None)]
    if type(None) in inner and len(options) == 1 and thawed(options[0]) is not _same:
        one = thawed(options[0])
        return lambda data: None if data is None else one(data)
    return _same


def _same(value: Any) -> Any:
    return value
