"""``mtlkit submit``: pack results for a leaderboard, and check what was sent to one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlkit.errors import MissingError, MtlkitError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from mtlkit.report.submissions import Run
    from mtlkit.store import Unreadable

ORIGIN = ("mtlkit", "python", "torch", "device", "fingerprint")
"""What a record must say of where its numbers come from."""
SHOWN = 5  # reasons that an error names


def submit(
    folder: Annotated[
        Path, typer.Argument(help="A results folder; with --check, the folder of all submissions.")
    ],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to make: board/NAME.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who made the runs.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check, and write nothing.")] = False,
) -> None:
    """Pack the runs of a results folder for a leaderboard: without weights, and with digests.

    A run is packed if its numbers follow from its stored scores. mtlkit report makes a site of the
    folder of all submissions.
    """
    from mtlkit.report.submissions import pack
    from mtlkit.store import ResultStore
    from mtlkit.studies import Studies

    if check:
        _check(folder)
        return
    if to is None or by is None:
        hint = f"mtlkit submit {folder} --to board/ada --by 'Ada Lovelace'"
        raise UsageError("--to or --by is missing: where to, and who made the runs.", hint)

    # runs that would not hold stay here, as do trials of tuning
    store, studies = ResultStore(folder), Studies.read(folder)
    runs = [run for run in store.scan() if not studies.hides(run[0])]
    wrong = list(_wrong_runs(runs))
    left_out = {unreadable.path for unreadable in wrong}
    kept = [run for run in runs if run[1] not in left_out]
    reasons = [f"left out: {unreadable}" for unreadable in (*wrong, *store.unreadable)]
    if not kept:
        message = "\n".join([f"No run in {folder} can be submitted.", *reasons[:SHOWN]])
        raise MissingError(message, "mtlkit bench")
    pack(kept, to, by)
    for reason in reasons:
        typer.echo(f"warning: {reason}", err=True)
    typer.echo(f"{len(kept)} run{'s' * (len(kept) > 1)} of {folder} are in {to}.", err=True)
    typer.echo(f"\nhint: mtlkit submit --check {to.parent}", err=True)


def _check(folder: Path) -> None:
    """Say of each submission what holds; a :class:`MtlkitError` if something does not."""
    from mtlkit.report.submissions import Board
    from mtlkit.store import printable

    board = Board(folder)
    wrong = [*board.unreadable, *_wrong_runs(board.all_runs)]
    bad = {unreadable.path for unreadable in wrong}
    for sender, manifest in board.manifests.items():
        count = sum(board.sender[run] == sender and run not in bad for _, run in board.all_runs)
        holds = "1 run holds" if count == 1 else f"{count} runs hold"
        typer.echo(printable(f"{sender}: {holds}, sent {manifest.sent:%Y-%m-%d} by {manifest.by}"))
    for copy in board.copies:
        typer.echo(str(copy))
    for unreadable in wrong:
        typer.echo(f"does not hold: {unreadable}")
    problems = len(wrong) + len(board.contradictions)
    if problems:
        raise MtlkitError(
            f"Problems in {folder}: {problems}.",
            "mtlkit submit RESULTS --to DIR --by NAME packs what was damaged again",
        )


def _wrong_runs(runs: Iterable[Run]) -> Iterator[Unreadable]:
    """The finished runs whose numbers do not hold, with the reasons."""
    from mtlkit.report.blocks import block_id
    from mtlkit.report.stored_scores import read_scores
    from mtlkit.store import Unreadable, UnreadableError
    from mtlkit.training.recompute import wrong_numbers

    labels: dict[tuple[str, str], tuple[str, Path]] = {}
    for record, folder in runs:
        if not record.ok:
            continue
        said = record.environment | record.cell.resolved["dataset"]
        problems = [f"its record has no {name}" for name in ORIGIN if not said.get(name)]
        try:
            scores = read_scores(folder)
        except UnreadableError as error:
            yield Unreadable(folder, f"scores.npz: {error}")
            continue
        if not scores:
            problems.append("it has no scores that give its numbers again; see save_scores")
        problems += wrong_numbers(record, scores) if scores else []

        # labels are facts: nobody has others on the same data, or counts other rows
        for name, digest in () if problems else _facts(scores):
            first, other = labels.setdefault((block_id(record), name), (digest, folder))
            if digest != first:
                problems.append(f"{name} is not what {other} has on the same data")
        if problems:
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            yield Unreadable(folder, problems[0] + more)


def _facts(scores: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """Name and digest of the stored arrays that all runs on the same data have in common. Every
    score has a mask: without one, all of its rows count.
    """
    masks = {name.replace("score/", "observed/", 1) for name in scores if name[:6] == "score/"}
    for name in sorted(masks | {name for name in scores if name.startswith(("label/", "group/"))}):
        array = scores.get(name)
        content = b"" if array is None else array.dtype.str.encode() + array.tobytes()
        yield name, hashlib.sha256(content).hexdigest()
