"""The files of a table: which there are, and the digest of what they hold."""

from __future__ import annotations

import glob
import hashlib
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from mtlkit.data.data_home import expand
from mtlkit.data.raw_files import files_below
from mtlkit.errors import MissingError
from mtlkit.files import reason_of, replacing
from mtlkit.spec import digest

PARQUET = (".parquet", ".pq", ".parq")
TEXT = (".csv", ".tsv", ".txt")
COMPRESSION = (".gz", ".zst", ".bz2")
SETTLED_SECONDS = 2  # a file that changed just now may change again within one tick of its clock


def kind_of(file: Path) -> str | None:
    """``parquet`` or ``text``; None for any other file."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSION:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in PARQUET:
        return "parquet"
    return "text" if last in TEXT else None


def is_table_name(name: str) -> bool:
    """Whether what was typed is a file of a table, a glob, a folder or a YAML file."""
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml") or kind_of(path) is not None:
        return True
    return glob.has_magic(name) or _stands_for(path) == "folder"


def _stands_for(path: Path) -> Literal["file", "folder"] | None:
    """What a path leads to; nothing where no file system allows the name."""
    try:
        if path.is_dir():
            return "folder"
        return "file" if path.is_file() else None
    except (OSError, ValueError):
        return None


def find_files(pattern: str) -> list[Path]:
    """The files of a path, a folder or a glob, shards in the order of their numbers.

    Args:
        pattern: As typed; a folder stands for the tables in it.

    Raises:
        MissingError: There is no such file, or they are of two kinds.
    """
    path = expand(Path(pattern))
    hint = "give a .csv (also .gz, .zst) or .parquet file, a folder of such, or a glob"
    if _stands_for(path) == "file":
        if kind_of(path) is None:
            raise MissingError(f"{path} is neither a CSV nor a Parquet file by its name.", hint)
        return [path]
    is_folder = _stands_for(path) == "folder"
    if is_folder:
        candidates = files_below(path)
    else:
        candidates = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207

    # Hidden files, notes and folders are no shards.
    files = [
        file
        for file in candidates
        if file.is_file() and kind_of(file) is not None and not file.name.startswith((".", "_"))
    ]
    if not files:
        what = "no table in the folder" if is_folder else "no file"
        raise MissingError(f"There is {what} {pattern}.", hint)
    if len({kind_of(file) for file in files}) > 1:
        raise MissingError(f"{pattern} holds both CSV and Parquet files.", "name one kind: a glob")
    return sorted(files, key=_natural)


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    pieces = re.split(r"(\d+)", str(file))
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def content_digest(files: Sequence[Path], notes: Path) -> str:
    """The digest of what the files hold, in their order; their names and places do not count.

    Raises:
        MissingError: A file cannot be read.
    """
    return digest([_file_digest(file, notes) for file in files])[:32]


def _file_digest(file: Path, notes: Path) -> str:
    """The sha256 of a file: the one noted, if its size and date are those of the note."""
    note = notes / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}.json"
    try:
        stat = file.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        noted = _read_note(note)
        if noted.get("state") == state:
            return str(noted["sha256"])
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        message = f"{file} cannot be read: {reason_of(error)}."
        raise MissingError(message, "check its permissions") from None
    if time.time() - stat.st_mtime > SETTLED_SECONDS:
        _write_note(note, {"state": state, "sha256": sha256})
    return sha256


def _read_note(note: Path) -> dict[str, object]:
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) and "sha256" in noted else {}


def _write_note(note: Path, values: dict[str, object]) -> None:
    """Write a note in one step; a data home that cannot be written to has none."""
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as file:
            file.write(json.dumps(values).encode())
