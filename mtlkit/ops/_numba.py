"""How kernels are compiled, and where they are kept for the next process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As ``numba.njit`` with ``nogil`` and ``cache``, where a cache need not be had.

    The cache lies where numba puts it: beside the source, or in the home of the user. Where neither
    can be written to, it lies in a folder for temporary files, or there is none.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        compiled: Any = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # numba found no place
            compiled._cache = _cache(function)
        return compiled

    return decorate


class _Cache(FunctionCache):
    """A cache whose disk may be full and whose files may be damaged: then kernels compile again."""

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)
        except Exception:  # pickled data that are damaged raise anything
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, *arguments: Any) -> None:
        with suppress(OSError):
            super().save_overload(*arguments)


def _cache(function: Callable[..., Any]) -> _Cache:
    """The cache of a function.

    Raises:
        RuntimeError: There is no place for one.
    """
    try:
        return _Cache(function)
    except RuntimeError:
        folder = _own_temporary_folder()
        if folder is None:
            raise
        numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
        return _Cache(function)


def _own_temporary_folder() -> Path | None:
    """A folder that this user alone can write to: what lies there is run. None if there is none."""
    try:
        folder = Path(tempfile.gettempdir()) / f"mtlkit-kernels-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_own = folder.is_dir() and not folder.is_symlink() and status.st_uid == os.getuid()
    return folder if is_own and status.st_mode & 0o077 == 0 else None


# for sums whose order does not matter
kernel = njit(fastmath={"contract", "reassoc", "nsz"})

# for formulas: "reassoc" would strike out a number that is added and subtracted again. Where a
# division by 0 gives inf, as here, it does not keep a loop from becoming vectors
exact_kernel = njit(fastmath={"contract", "nsz"}, error_model="numpy")
