"""Kernels kept on disk, and linear algebra on one thread."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mbkg_xr.blas import serial_blas

PACKAGE = """
from .kernels import kernel
from .constants import GAIN, add

@kernel
def twice(x):
    return add(x, x) * GAIN
"""
CONSTANTS = """
from .kernels import kernel
GAIN = {gain}

@kernel
def add(x, y):
    return x + y + {more}
"""


@pytest.fixture
def package(tmp_path):
    """A package of three files with the real decorator; running it says what `twice(1.0)` is."""
    folder = tmp_path / "small"
    folder.mkdir()
    kernels = Path(sys.modules["mbkg_xr"].__file__).parent / "kernels.py"
    shutil.copy(kernels, folder)
    (folder / "__init__.py").write_text(PACKAGE)

    def run(gain, more, **environment):
        (folder / "constants.py").write_text(CONSTANTS.format(gain=gain, more=more))
        clean = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
        code = "import small; print(small.twice(1.0), sum(small.twice.stats.cache_hits.values()))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=clean | environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        value, hits = done.stdout.split()
        return float(value), int(hits)

    run.folder = folder
    return run


def test_kernels_are_compiled_once(package):
    assert package(1.0, 0.0) == (2.0, 0)
    assert package(1.0, 0.0) == (2.0, 1)


def test_a_change_in_another_file_is_seen(package):
    package(1.0, 0.0)
    # The same length and, as far as can be, the same time: only what it says differs.
    assert package(3.0, 0.0) == (6.0, 0)
    assert package(3.0, 5.0) == (21.0, 0)
    kept = list((package.folder / "__pycache__").glob("kernels-*"))
    assert len(kept) == 1, "what older versions left is taken away"


def test_folders_that_cannot_be_written(package, tmp_path):
    file = tmp_path / "file"
    file.touch()
    shutil.rmtree(package.folder / "__pycache__", ignore_errors=True)
    (package.folder / "__pycache__").touch()  # nothing can be made in a file
    home = tmp_path / "cache"
    both = {"XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    assert package(1.0, 0.0, **both) == (2.0, 0)
    assert package(1.0, 0.0, **both) == (2.0, 1)
    assert list((home / "mbkg_xr").glob("kernels-*"))
    nowhere = both | {"XDG_CACHE_HOME": str(file)}
    assert package(1.0, 0.0, **nowhere) == (2.0, 0)
    assert package(1.0, 0.0, **nowhere) == (2.0, 0)


def test_users_folder_goes_first(package, tmp_path):
    assert package(1.0, 0.0, NUMBA_CACHE_DIR=str(tmp_path / "mine")) == (2.0, 0)
    assert list((tmp_path / "mine").glob("kernels-*"))


def blas_threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_blas_is_left_as_it_was():
    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()

        @serial_blas
        def inside(depth):
            return inside(depth - 1) if depth else blas_threads()

        @serial_blas
        def fails():
            raise KeyError("x")

        assert set(inside(2)) == {1}
        with pytest.raises(KeyError):
            fails()
        assert blas_threads() == before
