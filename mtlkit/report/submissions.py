"""A leaderboard: results that people send in, a folder each, with the digests of their files.

Whoever sends one may be a stranger: it is read as data, and a run counts only if its record agrees
with itself and its files are those that were sent.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mtlkit.agreement import NO_BOUND, compare_runs
from mtlkit.errors import MissingError, UsageError, first_problem
from mtlkit.files import open_regular, replacing
from mtlkit.record_check import UnreadableError
from mtlkit.records import RunRecord
from mtlkit.store import RECORD, Copy, ResultStore, Unreadable

MANIFEST = "submission.json"
MANIFEST_LIMIT = 16 * 2**20
SENT = (RECORD, "scores.npz", "probes.npz")
"""What is sent of a run: its numbers, and what they and the figures follow from."""
FILE_LIMIT = 95 * 2**20
"""Bytes of the largest of these files; hosts of repositories take no larger ones."""

Run = tuple[RunRecord, Path]  # a record, and the folder that it is in


class Manifest(BaseModel):
    """What a submission says of itself: who made its runs, when it was packed, and the sha256 of
    each file, by its name below the folder of the submission.
    """

    model_config = ConfigDict(frozen=True)

    layout: Literal[1] = 1
    by: Annotated[str, Field(min_length=1, max_length=200)]
    sent: AwareDatetime
    files: dict[str, str]


class Board(ResultStore):
    """The submissions below a folder, read as one results folder. A cell that was sent twice counts
    once: a finished run before any other, and then the one that was sent first.

    Args:
        root: The folder with the submissions.

    Attributes:
        manifests: Folder of each submission to what it says of itself, the oldest first.
        sender: Folder of each run to that of its submission.
        all_runs: Those that hold.
        runs: Those of them that count; one that is contradicted has a warning.
        contradictions: Those of the others whose numbers cannot be those of the same cell.

    Raises:
        MissingError: There is no submission.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        if not self.is_at(root):
            raise MissingError(
                f"There is no submission in {root}.",
                f"mtlkit submit results --to {shlex.quote(str(root / 'NAME'))} --by NAME",
            )
        self.manifests = dict(sorted(self._manifests(), key=lambda one: (one[1].sent, one[0])))
        self.sender: dict[Path, Path] = {}
        self.all_runs: list[Run] = []
        for folder, manifest in self.manifests.items():
            runs = list(self._runs_that_hold(folder, manifest))
            self.sender |= {run: folder for _, run in runs}
            self.all_runs += runs
        self.contradictions: list[Copy] = []
        self.runs = list(self._runs_that_count())

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether there are submissions in a folder."""
        return any(os.path.lexists(inner / MANIFEST) for inner in _folders_in(folder))

    def scan(self) -> Iterator[Run]:
        """The runs that count, with their folders."""
        yield from self.runs

    def _manifests(self) -> Iterator[tuple[Path, Manifest]]:
        """Each submission with its manifest; one that does not hold is listed as unreadable."""
        for folder in _folders_in(self.root):
            try:
                if os.path.lexists(folder / MANIFEST):
                    text = _read(folder, MANIFEST, MANIFEST_LIMIT)
                    yield folder, Manifest.model_validate_json(text or "")
                elif any(folder.glob(f"*/*/*/seed-*/{RECORD}")):
                    raise UnreadableError("it is missing, though there are runs")
            except UnreadableError as error:
                self._leave_out(folder / MANIFEST, error)
            except ValidationError as error:
                self._leave_out(folder / MANIFEST, UnreadableError(first_problem(error)))

    def _runs_that_hold(self, folder: Path, manifest: Manifest) -> Iterator[Run]:
        """The runs of a submission that hold; others are listed as unreadable."""
        store = ResultStore(folder)
        seen = set()
        for record, run in store.scan():
            seen.add(run)
            try:
                for name in (f"{run.relative_to(folder).as_posix()}/{name}" for name in SENT):
                    content = _read(folder, name, FILE_LIMIT)
                    digest = None if content is None else hashlib.sha256(content).hexdigest()
                    if digest != manifest.files.get(name):
                        problem = "missing" if content is None else "not what was sent"
                        raise UnreadableError(f"it is {problem}")
                yield record, run
            except UnreadableError as error:
                self._leave_out(folder / name, error)

        # what is no run, a run twice, or no longer there
        self.unreadable += store.unreadable
        self.unreadable += [Unreadable(copy.path, str(copy)) for copy in store.copies]
        seen |= {left_out.path.parent for left_out in store.unreadable}
        for name in sorted(manifest.files):
            if Path(name).name == RECORD and (folder / name).parent not in seen:
                self._leave_out(folder / name, UnreadableError("it is missing"))

    def _runs_that_count(self) -> Iterator[Run]:
        """A run of each cell; the others are listed as copies that repeat it."""
        by_key: dict[str, list[Run]] = defaultdict(list)
        seeds: dict[str, list[RunRecord]] = defaultdict(list)
        for record, run in sorted(self.all_runs, key=lambda run: not run[0].ok):
            if record.ok and record.key not in by_key:
                seeds[record.group].append(record)
            by_key[record.key].append((record, run))

        for (first, original), *others in by_key.values():
            warnings = list(first.warnings)
            for again, run in others:
                verdict, reason, *_ = compare_runs(first, again, seeds[first.group])
                repeat = Copy(run, original, f"{verdict}: {reason}")
                self.copies.append(repeat)
                # without a bound nobody can tell, and a failure has no numbers
                if again.ok and verdict == "differs" and reason != NO_BOUND:
                    self.contradictions.append(repeat)
                    warnings.append(f"another submission contradicts it: {repeat}")
            yield first.model_copy(update={"warnings": warnings}), original


def pack(runs: Sequence[Run], to: Path, by: str) -> None:
    """Pack runs into a submission: a whole one or, if that fails, none.

    Args:
        runs: One or more, with their folders.
        to: The folder of the submission, which must not exist yet.
        by: Who made the runs.

    Raises:
        UsageError: There is something of that name, ``by`` is no name, or a file is too large.
    """
    if os.path.lexists(to):
        raise UsageError(f"{to} is there already.", "give --to a new folder beside it")
    files: dict[str, str] = {}
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=to.parent) as scratch:
        packed = ResultStore(Path(scratch) / "packed")
        for record, run in runs:
            contents = {}
            for name in SENT:
                try:
                    content = _read(run, name, FILE_LIMIT)
                except UnreadableError as error:
                    message = f"{run / name} cannot be sent: {error}."
                    hint = shlex.join(["mv", f"{run / name}", f"{run / name}.not-sent"])
                    raise UsageError(message, hint) from None
                if content is not None:
                    contents[name] = content
            folder = packed.adopt(record, contents).relative_to(packed.root)
            for name, content in contents.items():
                files[(folder / name).as_posix()] = hashlib.sha256(content).hexdigest()

        # the manifest comes last, and then the name
        try:
            manifest = Manifest(by=by, sent=datetime.now(UTC), files=files)
        except ValidationError as error:
            raise UsageError(f"{first_problem(error)}.", "mtlkit submit --help") from None
        with replacing(packed.root / MANIFEST) as handle:
            handle.write(manifest.model_dump_json(indent=1).encode() + b"\n")
        packed.root.rename(to)


def _read(root: Path, name: str, limit: int) -> bytes | None:
    """The content of a file below a folder, None if there is none; an :class:`UnreadableError` if
    it is large, or a link leads there.
    """
    path = root / name
    if not os.path.lexists(path):
        return None
    # links in a circle are no error here, as they are to Path.resolve, but cannot be opened
    if Path(os.path.realpath(path)) != Path(os.path.realpath(root.parent), root.name, name):
        raise UnreadableError("it is a link, or in a folder that is one")
    with open_regular(path, limit) as handle:
        return handle.read()


def _folders_in(root: Path) -> list[Path]:
    """The folders in a folder, but for hidden ones."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
