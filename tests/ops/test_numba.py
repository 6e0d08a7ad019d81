"""Kernels run where no cache of them can be written, in a place of the user's own if there is one."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import mtlkit
from mtlkit.ops import _numba
from mtlkit.ops._numba import njit

PROGRAM = """
import numpy as np
from mtlkit.balancers._solvers import unit_rows

# two gradients of lengths 3 and 4 at a right angle, and one of no length
positions, cosines, norms = unit_rows(np.diag([9.0, 16.0, 0.0]))
print(positions.tolist(), cosines.tolist(), norms.tolist())
"""
ANSWER = "[0, 1] [[1.0, 0.0], [0.0, 1.0]] [3.0, 4.0]\n"


@pytest.fixture
def read_only_package(tmp_path):
    """A copy of the package beside whose files nothing can be written, not even by root."""
    package = tmp_path / "installed" / "mtlkit"
    shutil.copytree(
        Path(mtlkit.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("a file where a folder would have to be")
    return package.parent


def run(package, **environment):
    """Run the program with a home that cannot be made."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONPATH"}
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=package,
        env={**inherited, "HOME": "/dev/null/home", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_read_only_installation_without_a_home(read_only_package, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for _ in range(2):
        result = run(read_only_package, TMPDIR=str(temporary))
        assert (result.stdout, result.stderr) == (ANSWER, "")

    # for this user alone, and used again
    [folder] = temporary.iterdir()
    assert folder.name == f"mtlkit-kernels-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.rglob("*.nbi"))) == 1


def test_no_place_at_all(monkeypatch):
    """As before, but without a cache."""
    monkeypatch.setattr(_numba.FunctionCache, "__init__", refuse)
    monkeypatch.setattr(_numba, "_own_temporary_folder", lambda: None)
    double = njit()(lambda x: 2 * x)
    assert double(3) == 6


def refuse(self, function):
    raise RuntimeError("cannot cache function: no locator available")


def test_a_folder_of_somebody_else_is_not_used(monkeypatch, tmp_path):
    """What lies there would be run."""
    monkeypatch.setattr(_numba.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"mtlkit-kernels-{os.getuid()}"
    assert _numba._own_temporary_folder() == folder
    folder.chmod(0o777)
    assert _numba._own_temporary_folder() is None

    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert _numba._own_temporary_folder() is None

    folder.unlink()
    folder.write_text("a file")
    assert _numba._own_temporary_folder() is None

    monkeypatch.setattr(_numba.os, "getuid", lambda: 12345)
    (tmp_path / "mtlkit-kernels-12345").mkdir(mode=0o700)
    assert _numba._own_temporary_folder() is None


def test_no_folder_for_temporary_files(monkeypatch):
    monkeypatch.setattr(_numba.tempfile, "gettempdir", missing)
    assert _numba._own_temporary_folder() is None


def missing():
    raise FileNotFoundError("No usable temporary directory found")


@pytest.fixture
def kernel_file(tmp_path, monkeypatch):
    """A function in a file of its own, and the folder of its cache."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "squares.py"
    file.write_text("def squares(x):\n    return (x * x).sum()\n")

    def load():
        names = {}
        exec(compile(file.read_text(), file, "exec"), names)
        return njit()(names["squares"])

    return load, tmp_path / "cache"


def test_a_damaged_cache_is_made_again(kernel_file):
    load, cache = kernel_file
    x = np.array([1.0, 2.0, 3.0])
    assert load()(x) == 14
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:20])
    assert load()(x) == 14


def test_a_cache_that_is_taken_away_or_full(kernel_file, monkeypatch):
    load, _ = kernel_file
    kernel = load()

    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    assert kernel(np.array([1.0, 2.0])) == 5
