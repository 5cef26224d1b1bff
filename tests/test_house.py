"""docs/house.md lists every room, and no room imports from a floor above its own."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mbkg_xr"
ENTRANCE = "__init__"  # imports what is public, from all floors


def floors():
    """Floor of each module and subpackage, by name."""
    out = {}
    parts = re.split(r"^## (\d+)\. .*$", (ROOT / "docs" / "house.md").read_text(), flags=re.M)
    for number, text in zip(parts[1::2], parts[2::2], strict=True):
        for line in re.findall(r"^- ((?:`[\w/]+`(?:, )?)+):", text.split("\n## ")[0], flags=re.M):
            for name in re.findall(r"`(\w+)/?`", line):
                assert name not in out, f"{name} is listed twice"
                out[name] = int(number)
    return out


def rooms():
    """Names of the modules and subpackages, and their files."""
    out = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem != ENTRANCE}
    for folder in PACKAGE.iterdir():
        if (folder / "__init__.py").exists():
            out[folder.name] = sorted(folder.rglob("*.py"))
    return out


def imports(path):
    """Rooms that a file imports from, with the line; only when types are checked does not count."""
    depth = len(path.relative_to(PACKAGE).parts)  # dots that lead to the package
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing or not isinstance(node, ast.ImportFrom) or node.level != depth:
            continue
        names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
        for name in names:
            yield name, node.lineno


def test_every_room_is_on_the_map():
    assert set(floors()) == set(rooms())


@pytest.mark.parametrize("room", sorted(rooms()))
def test_imports_come_from_below(room):
    floor = floors()
    for path in rooms()[room]:
        for name, line in imports(path):
            if name in floor:
                assert floor[name] <= floor[room], f"{path.name}:{line} imports {name}, from above"


def test_rooms_import_in_no_circle():
    known = rooms()
    graph = {
        room: {name for path in paths for name, _ in imports(path) if name in known} - {room}
        for room, paths in known.items()
    }
    assert sum(map(len, graph.values())) > len(graph)
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)
