"""Notes of the files of prepared data, which tell later whether they are still the same.

Contents are hashed only where size or date are not those noted: reading the notes costs nothing,
and a copy of a folder, whose dates are new, is hashed once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FileNote:
    """What a file was when it was noted.

    Args:
        bytes: Its size.
        mtime_ns: When it was last changed.
        sha256: The hash of its contents, in hex.
    """

    bytes: int
    mtime_ns: int
    sha256: str


def note_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """File name to the fields of its :class:`FileNote`."""
    notes: dict[str, dict[str, Any]] = {}
    noted_inodes: dict[tuple[int, int], dict[str, Any]] = {}
    for name in names:
        # Two names of one file need one hash.
        stat = (folder / name).stat()
        inode = stat.st_dev, stat.st_ino
        if inode not in noted_inodes:
            sha256 = hash_file(folder / name, stat.st_size, stat.st_mtime_ns)
            noted_inodes[inode] = asdict(FileNote(stat.st_size, stat.st_mtime_ns, sha256))
        notes[name] = noted_inodes[inode]
    return notes


def changed_file(folder: Path, notes: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first file whose contents are not those noted; None if all are.

    Raises:
        OSError: A file cannot be read.
        KeyError, TypeError: There is no note of a file, or it is none.
    """
    for name in names:
        note = FileNote(**notes[name])
        stat = (folder / name).stat()
        if stat.st_size != note.bytes:
            return name
        if stat.st_mtime_ns == note.mtime_ns:
            continue
        if hash_file(folder / name, stat.st_size, stat.st_mtime_ns) != note.sha256:
            return name
    return None


def are_dates_noted(folder: Path, notes: Mapping[str, Any]) -> bool:
    """Whether each file has the date that was noted."""
    return all((folder / name).stat().st_mtime_ns == notes[name]["mtime_ns"] for name in notes)


@functools.lru_cache(maxsize=1024)
def hash_file(path: Path, size: int, mtime_ns: int) -> str:
    """The sha256 of a file in hex.

    Args:
        path: The file.
        size: Its size; with the date, what tells the cache that the file is another one.
        mtime_ns: Its date.
    """
    del size, mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
