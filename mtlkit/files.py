"""Files that are read or written whole, or not at all."""

from __future__ import annotations

import os
import platform
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mtlkit.record_check import UnreadableError


@contextmanager
def open_regular(file: str | Path, limit: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file of at most ``limit`` bytes; never wait for a pipe, never read a device.

    Raises:
        UnreadableError: It cannot be opened or read, is too large or no regular file.
    """
    try:
        with open(file, "rb", opener=_open_at_once) as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("it is no regular file")
            if limit is not None and status.st_size > limit:
                raise UnreadableError(f"it is larger than {limit >> 20} MiB")
            yield handle
    except OSError as error:
        raise UnreadableError(reason_of(error)) from None


def _open_at_once(file: str, flags: int) -> int:
    """Open without waiting for the writer of a pipe."""
    return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))


def reason_of(error: OSError) -> str:
    """Why a file could not be read or written, in the words of the system."""
    return error.strerror or str(error)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary file that takes the place of ``path`` if the block ends well."""
    writer = f"{platform.node()}.{os.getpid()}-{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{writer}")
    try:
        with temporary.open("wb") as handle:
            yield handle
            # on the disk before it gets its name, so that a crash leaves no half of a file
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
