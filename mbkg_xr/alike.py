"""What is done to every chunk alike, written down once and followed for each.

Dask writes out the tasks of each chunk and each step: for 10^5 slits some 10^5 of them, which takes
longer than all else that it takes to begin. Layers that go chunk by chunk are written out for one
chunk here; a task of another chunk has that list, and what it begins with.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

import dask.array as da
from dask.blockwise import Blockwise

__all__ = ["follow", "gathered"]

#: Of dask: the name of an array, and the place of a block.
_Key = tuple[Any, ...]


def gathered(arrays: Sequence[da.Array]) -> tuple[dict, list[Hashable]]:
    """A graph, and for each chunk the key of the list of its blocks.

    Parameters
    ----------
    arrays
        With the same chunks along the first dimension, and one along the others.

    Examples
    --------
    >>> import dask
    >>> x = da.ones((6, 2), chunks=(2, 2))
    >>> graph, keys = gathered([x + 1, x * 3])
    >>> [int(block.sum()) for block in dask.get(graph, keys[2])]
    [8, 12]
    """
    n = arrays[0].numblocks[0]
    layers: dict[str, Any] = {}
    needs: dict[str, set[str]] = {}
    for array in arrays:
        # They have most of their layers in common.
        layers.update(array.dask.layers)
        needs.update(array.dask.dependencies)
    one = min(1, n - 1)
    outputs = [_place(array, one) for array in arrays]
    found = _of_one_chunk(layers, needs, outputs, one)
    tasks = _ordered({k: task for of in found.values() for k, task in of.items()}, outputs)
    needed = [*outputs, *(key for task in tasks.values() for key in task.dependencies)]
    loose = tuple(dict.fromkeys(key for key in needed if key not in tasks))
    graph: dict = {}
    for name in (name for name in layers if name not in found):
        graph.update(layers[name])
    token = uuid.uuid4().hex
    # A cluster's workers are sent it once, and not with each task.
    graph[f"steps-{token}"] = (_Steps(tasks, outputs, loose),)
    keys: list[Hashable] = [(f"chunk-{token}", i) for i in range(n)]
    for i, key in enumerate(keys):
        graph[key] = (_blocks, f"steps-{token}", *[_moved(name, one, i) for name in loose])
    return graph, keys


class _Steps:
    """The tasks of a chunk, each after those that it needs; to call it gives itself."""

    def __init__(self, tasks: Mapping, outputs: Sequence[_Key], loose: Sequence[Hashable]):
        self.tasks, self.outputs, self.loose = tasks, outputs, loose

    def __call__(self) -> _Steps:
        return self


def _blocks(steps: _Steps, *values: Any) -> list[Any]:
    known = dict(zip(steps.loose, values, strict=True))
    return follow(steps.tasks, known, steps.outputs)


def follow(tasks: Mapping, known: dict, wanted: Sequence[Hashable]) -> list[Any]:
    """Run tasks (of dask's own kind) in their order; what is wanted of them, and of what is known.

    What `dask.get` would do, but for the finding of an order, which takes longer than all else. A
    result of these tasks is let go of after its last use.
    """
    uses = Counter(key for task in tasks.values() for key in task.dependencies)
    uses.update(wanted)
    for key, task in tasks.items():
        known[key] = task(known)
        for needed in task.dependencies:
            uses[needed] -= 1
            if not uses[needed]:
                del known[needed]
    return [known[key] for key in wanted]


# ------------------------------------------------------------------------------------------------


def _of_one_chunk(
    layers: Mapping, needs: Mapping, outputs: Sequence[_Key], one: int
) -> dict[str, dict]:
    """The tasks of one chunk in each layer that goes chunk by chunk, and that no other needs."""
    after: dict[str, set[str]] = {name: set() for name in layers}
    for name, needed in needs.items():
        for other in needed:
            after.setdefault(other, set()).add(name)
    asked: dict[str, set[_Key]] = {}
    for key in outputs:
        asked.setdefault(key[0], set()).add(key)
    found: dict[str, dict] = {}
    for name in TopologicalSorter(after).static_order():
        if not after[name] <= found.keys():
            continue
        tasks = _of_chunk(layers.get(name), asked.get(name, set()), one)
        if tasks is None:
            continue
        found[name] = tasks
        for key in (key for task in tasks.values() for key in task.dependencies):
            if isinstance(key, tuple):
                asked.setdefault(key[0], set()).add(key)
    return found


def _ordered(tasks: Mapping, outputs: Sequence[_Key]) -> dict:
    """Tasks in an order in which each is used as soon as it can be: depth first."""
    out: dict = {}
    stack = [key for key in reversed(outputs) if key in tasks]
    while stack:
        needed = tasks[stack[-1]].dependencies
        left = sorted((key for key in needed if key in tasks and key not in out), key=str)
        if left:
            stack.extend(left)
        else:
            key = stack.pop()
            out[key] = tasks[key]
    return out


def _of_chunk(layer: Any, keys: set[_Key], one: int) -> dict | None:
    """The tasks of a layer that give keys of one chunk; None if it does not go chunk by chunk."""
    if not isinstance(layer, Blockwise) or layer.io_deps or len(keys) != 1:
        return None
    (key,) = keys
    if key[1:] != (one,) + (0,) * (len(key) - 2):
        return None
    mine, first = (_only(layer, _moved(key, one, k)) for k in (one, 0))
    there = {_moved(needed, one, 0) for needed in mine.dependencies}
    return {key: mine} if there == set(first.dependencies) else None


def _only(layer: Blockwise, key: Any) -> Any:
    culled, _ = layer.cull({key}, ())
    return culled[key]


def _moved(key: Any, one: int, i: int) -> Hashable:
    """A key of the chunk `one`, of chunk `i` instead.

    What is the same for all chunks stays: `_of_chunk` compares with chunk 0 which keys those are.
    """
    if not isinstance(key, tuple) or len(key) < 2 or key[1] != one:
        return key
    return (key[0], i, *key[2:])


def _place(array: da.Array, i: int) -> _Key:
    return (array.name, i, *(0,) * (array.ndim - 1))
