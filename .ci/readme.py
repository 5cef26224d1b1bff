"""Run every command and code block of README.md and of docs/*.md, in order; stop at the first that
fails.

    python .ci/readme.py commands   the README's two commands, from the project's root
    python .ci/readme.py rest       all other blocks, each page's in a scratch directory of its own

Python blocks of a page share one interpreter, as they would for a reader. The scratch directory
holds `examples` and, where the real slitlets are at hand, `slitlets`; without them the blocks that
need them are counted as skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DATA = ROOT.parent / "shared" / "data" / "real_slitlets"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def bash(text: str, folder: Path) -> None:
    print(f"\n$ {text.rstrip()}", flush=True)
    subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=folder, check=True)


def commands() -> None:
    for _, text in blocks(README)[:2]:
        bash(text, ROOT)


def rest() -> None:
    run(README, blocks(README)[2:])
    for page in sorted((ROOT / "docs").glob("*.md")):
        run(page, blocks(page))


def run(page: Path, texts: list[tuple[str, str]]) -> None:
    passed = skipped = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "examples").symlink_to(ROOT / "examples")
        if DATA.is_dir():
            (folder / "slitlets").symlink_to(DATA)
        os.chdir(folder)
        namespace: dict = {"__name__": "__main__"}
        for language, text in texts:
            if not DATA.is_dir() and "simulated" not in text:
                skipped += 1
                print(f"\nskipped, the real slitlets are not at ../shared/data:\n{text}")
            elif language == "bash":
                bash(text, folder)
                passed += 1
            else:
                print(f"\n>>> {text.rstrip()}", flush=True)
                exec(compile(text, page.name, "exec"), namespace)
                passed += 1
        os.chdir(ROOT)
    print(f"\n{page.name}: {passed} passed, 0 failed, {skipped} skipped")


if __name__ == "__main__":
    {"commands": commands, "rest": rest}[sys.argv[1]]()
