"""Raw files in folders and archives, read as they come.

Only files that are asked for are opened. Nothing is written, and no path of an archive is used.
"""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

from mtlkit.errors import MissingError

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
MOST_FILES = 100_000  # a folder that holds more is hardly one of data
DAMAGED = (
    EOFError,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    RuntimeError,
)
"""What the standard library raises on an archive that is cut off, broken or locked."""

IsWanted = Callable[[PurePosixPath], object]
"""Whether a file is asked for, by its path within a folder or archive."""


def raw_files(
    origin: Path, is_wanted: IsWanted
) -> Iterator[tuple[PurePosixPath, Path, IO[bytes] | None]]:
    """The files that are asked for in a folder, a zip or a tar, also in archives that are named
    after them.

    Yields:
        The path within, the file on disk, and a stream if that is an archive; it can be read until
        the next file is asked for. Links in archives are not followed.

    Raises:
        MissingError: The folder holds more than files of one data set.
    """
    if not origin.is_dir():
        with origin.open("rb") as file:
            yield from ((path, origin, stream) for path, stream in _in_archive(file, is_wanted))
        return
    for place in sorted(files_below(origin)):
        path = PurePosixPath(place.relative_to(origin).as_posix())
        if is_wanted(path):
            yield path, place, None
        elif _is_archive_of(path, is_wanted):
            for member, _, stream in raw_files(place, is_wanted):
                yield member, place, stream


def files_below(folder: Path) -> list[Path]:
    """All files in a folder, however deep.

    Raises:
        MissingError: They are far too many for a folder of data.
    """
    paths = list(islice(folder.rglob("*"), MOST_FILES + 1))
    if len(paths) > MOST_FILES:
        message = f"The folder {folder} holds more than {MOST_FILES:,} files and folders."
        raise MissingError(message, "give the folder of the data alone")
    return [path for path in paths if path.is_file()]


def _is_archive_of(path: PurePosixPath, is_wanted: IsWanted) -> bool:
    """Whether an archive is named after a file that is asked for."""
    suffix = next((suffix for suffix in ARCHIVES if path.name.endswith(suffix)), None)
    return suffix is not None and bool(is_wanted(path.with_name(path.name.removesuffix(suffix))))


def _in_archive(file: IO[bytes], is_wanted: IsWanted) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    if not zipfile.is_zipfile(file):
        file.seek(0)
        yield from _in_tar(file, is_wanted)
        return
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            path = PurePosixPath(entry.filename)
            if not entry.is_dir() and is_wanted(path):
                with archive.open(entry) as member:
                    yield path, member
            elif not entry.is_dir() and _is_archive_of(path, is_wanted):
                with archive.open(entry) as member:
                    yield from _in_tar(member, is_wanted)


def _in_tar(stream: IO[bytes], is_wanted: IsWanted) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for info in archive:
            path = PurePosixPath(info.name)
            member = archive.extractfile(info) if info.isreg() and is_wanted(path) else None
            if member is not None:
                yield path, member
