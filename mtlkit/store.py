"""The result store: one folder a cell, and ``record.json``, written last, marks it as finished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import ValidationError

from mtlkit.errors import MissingError
from mtlkit.records import Cell, RunRecord
from mtlkit.spec import parse_spec

RECORD = "record.json"


class ResultStore:
    """Finished cells under one folder: ``<dataset>/<model>/<balancer>/seed-<n>-<key8>/``.

    Args:
        root: The results folder; it need not exist yet.

    Attributes:
        unreadable: Record files that the last :meth:`scan` could not read.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.unreadable: list[Path] = []

    def make(self) -> None:
        """Create the results folder.

        Raises:
            MissingError: It cannot be created.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise MissingError(
                f"The results folder {self.root} cannot be made: {reason}.",
                "choose another with --out DIR",
            ) from None

    def folder(self, cell: Cell) -> Path:
        """Where a cell's files are."""
        # a plugin's name is a path: its file's name is enough
        specs = [parse_spec(text) for text in (cell.dataset, cell.model, cell.balancer)]
        names = [Path(spec.name).stem for spec in specs]
        return self.root.joinpath(*names, f"seed-{cell.seed}-{cell.key[:8]}")

    def get(self, cell: Cell) -> RunRecord | None:
        """The record of a cell, or None when it has not finished."""
        return self._read(self.folder(cell) / RECORD)

    def save(
        self,
        record: RunRecord,
        arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        log: str = "",
    ) -> Path:
        """Write a cell's arrays, log and, last, its record. A finished record is never overwritten
        by a failure.

        Args:
            record: The outcome.
            arrays: File stem (``probes``, ``scores``, ``weights``) to the named arrays of that
                ``.npz`` file.
            log: Text of ``log.txt``.

        Returns:
            The cell's folder.
        """
        folder = self.folder(record.cell)
        folder.mkdir(parents=True, exist_ok=True)
        earlier = self._read(folder / RECORD)
        if earlier is not None and earlier.ok:
            return folder

        # what lies beside the record
        for stem, named_arrays in (arrays or {}).items():
            with _replacing(folder / f"{stem}.npz") as handle:
                np.savez_compressed(handle, **dict(named_arrays))  # type: ignore[arg-type]
        if log:
            with _replacing(folder / "log.txt") as handle:
                handle.write(log.encode())

        # the record comes last: it is the mark that all of it is there
        plain = record.model_dump(mode="json")
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
        with _replacing(folder / RECORD) as handle:
            handle.write(text.encode() + b"\n")
        return folder

    def scan(self) -> Iterator[tuple[RunRecord, Path]]:
        """All readable records with their folders, in a stable order; the others are listed in
        ``unreadable``.
        """
        self.unreadable = []
        for file in sorted(self.root.glob(f"*/*/*/seed-*/{RECORD}")):
            record = self._read(file)
            if record is None:
                self.unreadable.append(file)
            else:
                yield record, file.parent

    @classmethod
    def record(cls, folder: Path) -> RunRecord | None:
        """The record of one run's folder, or None when there is none that can be read."""
        return cls._read(folder / RECORD)

    @staticmethod
    def arrays(folder: Path, stem: str) -> dict[str, np.ndarray]:
        """The arrays of ``<folder>/<stem>.npz``; empty when the file is missing."""
        file = folder / f"{stem}.npz"
        if not file.exists():
            return {}
        with np.load(file, allow_pickle=False) as named_arrays:
            return dict(named_arrays)

    @staticmethod
    def _read(file: Path) -> RunRecord | None:
        """The record in a file; None when there is none, or none that is valid."""
        try:
            return RunRecord.model_validate_json(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValidationError, UnicodeDecodeError):
            return None


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary file that takes the place of ``path`` when the block ends without an
    error.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as handle:
            yield handle
            # on the disk before it gets its name, so that a crash leaves no half of a file
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
