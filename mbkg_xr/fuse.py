"""Graphs with one task a chunk: what only one task needs is done within it.

Dask's own fusion joins chains, not the trees that a chunk's columns make; with a few tasks for each
column a pass over 10^5 slits would be 10^5 tasks. A task here holds the little graph that only it
needs and runs it at once, so that pixels are read, worked on and dropped in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any

from dask._task_spec import convert_legacy_graph
from dask.core import get_dependencies

from .alike import follow

__all__ = ["Apart", "Call", "fused"]


class Call:
    """A function that dask takes as it is, whatever it carries."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class Apart(Call):
    """A function whose task stays one of its own, though only one other needs it: tasks that would
    be done one after the other in one, and can be done side by side.
    """


class _Bundle:
    """Calls a graph in its order, its loose ends the arguments; dask does not look inside."""

    def __init__(self, graph: dict, root: Any, loose: tuple[Hashable, ...]):
        self.graph, self.root, self.loose = graph, root, loose

    def __call__(self, *values: Any) -> Any:
        nodes = convert_legacy_graph(self.graph, all_keys={*self.graph, *self.loose})
        known = dict(zip(self.loose, values, strict=True))
        return follow(nodes, known, [self.root])[0]

    def __dask_tokenize__(self) -> str:
        return str(self.root)


def fused(graph: Mapping, keys: Iterable[Hashable]) -> dict:
    """The same graph with everything done within the one task that needs it.

    Parameters
    ----------
    graph
        A dask graph; what `keys` do not need is left out.
    keys
        What is wanted of it.

    Returns
    -------
    dict
        A graph that gives the same for `keys`: a task for each of them, and one for each result
        that several tasks need.

    Examples
    --------
    >>> import dask
    >>> graph = {"a": (int, "1"), "b": (abs, "a"), "c": (sum, ["a", "b"])}
    >>> small = fused(graph, ["c"])
    >>> len(small), dask.get(small, "c")
    (1, 2)
    """
    wanted = dict.fromkeys(keys)
    needs = _needed(graph, wanted)
    rank = {key: i for i, key in enumerate(needs)}
    owner: dict[Hashable, Hashable] = {}
    for key in reversed(needs):  # whoever needs a key comes before it
        if key in wanted or _is_elsewhere(graph[key]) or _is_apart(graph[key]):
            owner[key] = key
        root = owner[key]
        for other in needs[key]:
            owner[other] = root if owner.get(other, root) == root else other
    parts: dict[Hashable, dict] = {}
    for key, root in owner.items():
        parts.setdefault(root, {})[key] = graph[key]
    out = {}
    for root, part in parts.items():
        if len(part) == 1:
            out[root] = graph[root]
            continue
        loose = tuple(dict.fromkeys(k for key in part for k in needs[key] if k not in part))
        ordered = {key: part[key] for key in sorted(part, key=rank.__getitem__)}
        out[root] = (_Bundle(ordered, root, loose), *loose)
    return out


def _needed(graph: Mapping, keys: Iterable[Hashable]) -> dict[Hashable, Collection]:
    """What each key depends on, of those that `keys` need; what is needed comes first."""
    out: dict[Hashable, Collection] = {}
    known: dict[Hashable, Collection] = {}
    stack = list(keys)
    while stack:
        key = stack[-1]
        if key in out:
            stack.pop()
        elif key in known:
            out[key] = known[key]
        else:
            known[key] = _dependencies(graph, key)
            stack.extend(known[key])
    return out


def _dependencies(graph: Mapping, key: Hashable) -> Collection:
    task: Any = graph[key]
    found = getattr(task, "dependencies", None)  # of dask's own tasks
    if not isinstance(found, frozenset):
        found = frozenset(get_dependencies(graph, task=task))
    # A result that a worker holds is there under its own key.
    return found - {key} if key in found else found


def _is_apart(task: Any) -> bool:
    function = task[0] if isinstance(task, tuple) and task else getattr(task, "func", None)
    return isinstance(function, Apart)


def _is_elsewhere(value: Any) -> bool:
    """Whether a value is a result that some worker of a cluster holds."""
    return hasattr(value, "status") and hasattr(value, "key")
