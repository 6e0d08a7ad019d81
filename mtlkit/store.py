"""The result store: one folder a cell, and ``record.json``, written last, marks it as finished."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np

from mtlkit.array_files import read_archive
from mtlkit.errors import MissingError
from mtlkit.files import open_regular, reason_of, replacing
from mtlkit.record_check import UnreadableError, read_record
from mtlkit.records import Cell, RunRecord
from mtlkit.spec import parse_spec

RECORD = "record.json"
ENCODERS = "encoders.json"  # how raw rows become inputs of the model; lies beside weights
CHECKPOINT = "checkpoint.pt"
"""The state of a run in the middle. A run that has one goes on some day: it is never swept."""
UNFINISHED = {"probes.npz", "scores.npz", "weights.npz", ENCODERS, "log.txt"}
"""What may lie in the folder of a run before its record does."""
STALE_SECONDS = 86_400  # what has not changed for a day is no longer being written
RECORD_LIMIT = 64 * 2**20
"""Bytes of the largest record that is read; real ones have some ten thousand."""
RECORD_START = 512  # bytes of a record that hold its key and its status
KEY = re.compile(rb'"key": *"([0-9a-f]+)"')
STATUS = re.compile(rb'"status": *"(ok|failed|timeout)"')


@dataclass(frozen=True, order=True)
class Unreadable:
    """A file of a run that was left out, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}")


@dataclass(frozen=True, order=True)
class Copy:
    """A folder that holds the same run as another one, which counts; a run that was repeated has a
    note on how far the numbers agree.
    """

    path: Path
    original: Path
    agreement: str = ""

    def __str__(self) -> str:
        if self.agreement:
            return printable(f"{self.path} repeats {self.original} ({self.agreement})")
        return printable(f"{self.path} is a copy of {self.original}")


class ResultStore:
    """Finished cells under one folder: ``<dataset>/<model>/<balancer>/seed-<n>-<key8>/``.

    Args:
        root: The results folder; it need not exist yet.

    Attributes:
        unreadable: What the last :meth:`scan`, and every :meth:`get` since, could not read.
        copies: Folders that the last :meth:`scan` left out since another one holds the same run.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.unreadable: list[Unreadable] = []
        self.copies: list[Copy] = []

    def make(self) -> None:
        """Create the results folder, see that there is room in it, and clear away what processes
        that died have left unfinished.

        Raises:
            MissingError: It cannot be created, or not be written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(bytes(2**16))
        except OSError as error:
            raise MissingError(
                f"The results folder {self.root} cannot be written to: {reason_of(error)}.",
                "choose another with --out DIR",
            ) from None
        self._sweep()

    def folder(self, cell: Cell) -> Path:
        """Where a cell's files are."""
        names = [_stem(text) for text in (cell.dataset, cell.model, cell.balancer)]
        return self.root.joinpath(*names, _folder_name(cell))

    def get(self, cell: Cell) -> RunRecord | None:
        """The record of a cell; None when it has not finished, or has no record that holds."""
        folder = self.folder(cell)
        try:
            return _read(folder, cell)
        except UnreadableError as error:
            self._leave_out(folder / RECORD, error)
            return None

    def save(
        self,
        record: RunRecord,
        arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        log: str = "",
        encoders: str = "",
        keep_checkpoint: bool = False,
    ) -> Path:
        """Write a cell's arrays, log and, last, its record; returns the folder. A finished record
        is never overwritten by a failure; a folder whose record does not hold is kept under another
        name.

        Args:
            arrays: File stem (``probes``, ``scores``, ``weights``) to the named arrays of that
                ``.npz`` file.
            log: Text of ``log.txt``.
            encoders: Text of ``encoders.json``.
            keep_checkpoint: Whether the checkpoint of a run that went well stays.
        """
        folder, note = self._folder_to_write(record.cell)
        if folder is None:
            return self.folder(record.cell)
        log = note + log

        # what lies beside the record
        for stem, named_arrays in (arrays or {}).items():
            with replacing(folder / f"{stem}.npz") as handle:
                np.savez_compressed(handle, **dict(named_arrays))  # type: ignore[arg-type]
        for name, text in {"log.txt": log, ENCODERS: encoders}.items():
            if text:
                with replacing(folder / name) as handle:
                    handle.write(text.encode())

        # the record comes last: it is the mark that all of it is there
        plain = record.model_dump(mode="json")
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
        with replacing(folder / RECORD) as handle:
            handle.write(text.encode() + b"\n")
        if record.ok and not keep_checkpoint:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return folder

    def adopt(self, record: RunRecord, files: Mapping[str, bytes]) -> Path:
        """Take in a run that was made elsewhere; returns its folder. As with :meth:`save`, its
        record comes last, and a finished run that is here already stays as it is.

        Args:
            files: Name to content of the files of its folder.
        """
        folder, note = self._folder_to_write(record.cell)
        if folder is None:
            return self.folder(record.cell)
        contents = dict(files)
        if note:
            contents["log.txt"] = note.encode() + contents.get("log.txt", b"")
        for name in sorted(contents, key=lambda name: name == RECORD):
            with replacing(folder / name) as handle:
                handle.write(contents[name])
        if record.ok and CHECKPOINT not in contents:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return folder

    def _folder_to_write(self, cell: Cell) -> tuple[Path | None, str]:
        """The folder of a cell, made if it is missing, and a first line for its log if something
        there was set aside; no folder if a finished run is there.
        """
        folder = self.folder(cell)
        note = ""
        try:
            earlier = _read(folder, cell)
        except UnreadableError as error:
            earlier = None
            kept = _set_aside(folder)
            note = printable(f"an earlier record, now in {kept}, was not read: {error}") + "\n"
        if earlier is not None and earlier.ok:
            return None, note
        folder.mkdir(parents=True, exist_ok=True)
        return folder, note

    def scan(self) -> Iterator[tuple[RunRecord, Path]]:
        """All records that hold, each run once, with their folders, in a stable order; what was
        left out is listed in ``unreadable`` and ``copies``.
        """
        self.unreadable = []
        self.copies = []

        # copies have the key of their original
        by_key: dict[str, list[tuple[RunRecord, Path]]] = {}
        for folder in self._run_folders():
            try:
                record = _read(folder)
            except UnreadableError as error:
                self._leave_out(folder / RECORD, error)
                continue
            if record is not None:
                by_key.setdefault(record.key, []).append((record, folder))

        for same_run in by_key.values():
            chosen = self._choose(same_run)
            if chosen is not None:
                yield chosen

    def statuses(self) -> dict[Path, str]:
        """Folder of each run to its status, from the first lines of its record alone: quick, and
        good enough to count. Only :meth:`scan` says whether a record holds.
        """
        by_key: dict[bytes, tuple[Path, str]] = {}
        for folder in self._run_folders():
            try:
                with open_regular(f"{folder}/{RECORD}") as handle:
                    beginning = handle.read(RECORD_START)
            except UnreadableError:
                continue
            key, status = KEY.search(beginning), STATUS.search(beginning)
            if key and status:
                by_key.setdefault(key[1], (folder, status[1].decode()))
        return dict(by_key.values())

    def _sweep(self) -> None:
        """Remove unfinished files and half-made runs that nobody is writing any more."""
        for folder in self._run_folders():
            with suppress(OSError):  # of somebody else, or just now removed by another grid
                _sweep_run(folder)

    def _run_folders(self) -> Iterator[Path]:
        """The folders of all runs, in the order of their paths."""
        folders = [self.root]
        for _ in ("dataset", "model", "balancer"):
            folders = [inner for folder in folders for inner in self._folders_in(folder)]
        for folder in folders:
            for inner in self._folders_in(folder):
                if inner.name.startswith("seed-"):
                    yield inner

    def _folders_in(self, folder: Path) -> list[Path]:
        """What a folder holds beside files, sorted; nothing where it cannot be opened."""
        try:
            with os.scandir(folder) as entries:
                names = [
                    entry.name for entry in entries if not entry.is_file(follow_symlinks=False)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._leave_out(folder, UnreadableError(reason_of(error)))
            return []
        return [folder / name for name in sorted(names)]

    def _choose(self, same_run: list[tuple[RunRecord, Path]]) -> tuple[RunRecord, Path] | None:
        """Of the folders with one key, the one that counts; None where none has the run's name."""
        named = [run for run in same_run if run[1].name == _folder_name(run[0].cell)]
        if not named:
            for record, folder in same_run:
                error = UnreadableError(f"the folder of this run is {_folder_name(record.cell)}")
                self._leave_out(folder / RECORD, error)
            return None

        # the one that ``bench`` would look up, before any other
        at_home = [run for run in named if run[1] == self.folder(run[0].cell)]
        chosen = (at_home or named)[0]
        self.copies += [Copy(folder, chosen[1]) for _, folder in same_run if folder != chosen[1]]
        return chosen

    def _leave_out(self, path: Path, error: UnreadableError) -> None:
        unreadable = Unreadable(path, str(error))
        if unreadable not in self.unreadable:
            self.unreadable.append(unreadable)

    @classmethod
    def record(cls, folder: Path) -> RunRecord | None:
        """The record of one run's folder, whatever its name; None when none there holds."""
        try:
            return _read(folder)
        except UnreadableError:
            return None

    @staticmethod
    def files(folder: Path) -> dict[str, bytes]:
        """Name to content of the files of a run; what is being written, and links, are left out.

        Raises:
            UnreadableError: One cannot be read.
        """
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.is_file(follow_symlinks=False) and not entry.name.startswith(".")
            )
        contents = {}
        for name in names:
            with open_regular(folder / name) as handle:
                contents[name] = handle.read()
        return contents

    @staticmethod
    def arrays(folder: Path, stem: str, limit: int | None = None) -> dict[str, np.ndarray]:
        """The arrays of ``<folder>/<stem>.npz``; empty when the file is missing.

        Args:
            stem: The file's name without ``.npz``.
            limit: The most bytes that the arrays may have, if there is a limit.

        Raises:
            UnreadableError: The file is damaged, too large or of another kind.
        """
        file = folder / f"{stem}.npz"
        if not os.path.lexists(file):
            return {}
        # Read at once: an archive of many small arrays is read in hundreds of pieces.
        with open_regular(file, limit) as handle:
            return read_archive(handle.read(), limit)


def printable(text: str) -> str:
    """A text on one line that any encoding and terminal takes: what is odd in it is escaped."""
    if text.isprintable():
        return text
    escaped = [letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text]
    return "".join(escaped)


@lru_cache(maxsize=4096)
def _stem(text: str) -> str:
    """The name of what was typed; a plugin's is a path, of which the file's name is enough.

    Whatever a record says, it leads into no other folder.
    """
    stem = Path(parse_spec(text).name).stem
    return stem if stem.strip(".") else "_"


def _folder_name(cell: Cell) -> str:
    return f"seed-{cell.seed}-{cell.key[:8]}"


def _read(folder: Path, cell: Cell | None = None) -> RunRecord | None:
    """The record in a folder, which is that of a cell if one is named; None when there is none, an
    :class:`UnreadableError` when it does not hold.
    """
    file = f"{folder}/{RECORD}"
    try:
        os.lstat(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableError(reason_of(error)) from None

    with open_regular(file, RECORD_LIMIT) as handle:
        record = read_record(handle.read(os.fstat(handle.fileno()).st_size))
    if cell is not None and record.key != cell.key:
        raise UnreadableError(f"it is the record of another run, {record.key[:8]}")
    return record


def _set_aside(folder: Path) -> Path:
    """Give a folder a name under which it is no run; return that."""
    candidates = (folder.with_name(f"unreadable-{folder.name}-{n}") for n in count(1))
    target = next(candidate for candidate in candidates if not os.path.lexists(candidate))
    folder.rename(target)
    return target


def _sweep_run(folder: Path) -> None:
    """Remove from a run what nobody is writing any more; all of it if its record will not come."""
    files = list(folder.iterdir())
    left_behind = [file for file in files if _is_abandoned(file)]
    names = {file.name for file in files} - {file.name for file in left_behind}
    is_half_made = names <= UNFINISHED and _is_old(folder)
    for file in files if is_half_made else left_behind:
        file.unlink()
    if is_half_made:
        folder.rmdir()


def _is_abandoned(path: Path) -> bool:
    """Whether a file is one that is being replaced, and the process that wrote it is dead.

    Other machines may write to the same folder. Of their processes, only time tells. If a live one
    should lose a file, as in a container that has the name of its host, it writes that again.
    """
    writer = re.fullmatch(r"\.(?:\w+\.(?:json|txt|npz|pt))(?:\.(.*))?\.(\d+)(?:-\d+)?", path.name)
    if writer is None:
        return False
    host, pid = writer.groups()
    if host == platform.node() and not is_running(int(pid)):
        return True
    return _is_old(path)


def is_running(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of somebody else
        return True
    return True


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > STALE_SECONDS
