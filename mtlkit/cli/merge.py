"""``mtlkit merge``: join results folders of several machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlkit.errors import MissingError, MtlkitError

if TYPE_CHECKING:
    from mtlkit.records import RunRecord
    from mtlkit.store import ResultStore

MEASURED = {"status", "tasks", "metrics", "best", "curve"}
"""What two runs of one key must have in common; times and machines may differ."""

SHOWN = 5  # conflicts that are listed


def merge(
    into: Annotated[Path, typer.Argument(help="The results folder that gets the runs.")],
    sources: Annotated[list[Path], typer.Argument(help="The folders that they come from.")],
) -> None:
    """Copy the runs of some results folders into the first one.

    A run that finished in both must have the same numbers, or nothing is copied at all. A finished
    run takes the place of a failed one. The folders that runs come from stay as they are.
    """
    from mtlkit.store import ResultStore

    for folder in sources:
        if not folder.is_dir():
            raise MissingError(f"There is no results folder {folder}.", "mtlkit merge A B")
    target = ResultStore(into)
    runs = _runs_to_copy(target, [ResultStore(folder) for folder in sources])
    target.make()
    for record, folder in runs.values():
        target.adopt(record, ResultStore.files(folder))
    typer.echo(f"{len(runs)} runs came to {into}.", err=True)


def _runs_to_copy(
    target: ResultStore, sources: list[ResultStore]
) -> dict[str, tuple[RunRecord, Path]]:
    """Key to the record and the folder of each run that the target lacks; a :class:`MtlkitError`
    where runs of one key differ.
    """
    chosen = {record.key: (record, folder) for record, folder in target.scan()}
    there_already = dict(chosen)
    conflicts = []
    for source in sources:
        for record, folder in source.scan():
            earlier = chosen.get(record.key)
            if earlier is None or (record.ok and not earlier[0].ok):
                chosen[record.key] = (record, folder)
            elif record.ok and _numbers(record) != _numbers(earlier[0]):
                conflicts.append(f"{folder} and {earlier[1]}")
        for unreadable in source.unreadable:
            typer.echo(f"warning: left out: {unreadable}", err=True)
    if conflicts:
        more = f", and {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
        raise MtlkitError(
            "Runs of the same settings have other numbers, so nothing was copied: "
            f"{'; '.join(conflicts[:SHOWN])}{more}.",
            "remove one folder of each pair, and run the same command again",
        )
    return {key: run for key, run in chosen.items() if there_already.get(key) != run}


def _numbers(record: RunRecord) -> dict[str, object]:
    return record.model_dump(mode="json", include=MEASURED)
