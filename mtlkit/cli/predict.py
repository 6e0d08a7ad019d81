"""``mtlkit predict``: score new rows with the model of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, with its weights.")
    ],
    rows: Annotated[str, typer.Argument(help="New rows: CSV or Parquet, a folder or a glob.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where scores go: a .parquet or .csv file.")
    ] = Path("scores.parquet"),
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 8192,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
) -> None:
    """Score new rows with the model of a run: a column a score, in the order of the rows.

    Rows are encoded as those of training were. Their columns are those of the table that the run
    was trained on; labels are not needed, and ids that training never saw are unknown ones.
    """
    from mtlkit.grid.loaded_run import load_run, write_predictions
    from mtlkit.grid.machine import resolve_device
    from mtlkit.settings import ExecutionSettings, validate

    execution = validate(ExecutionSettings, {"device": device}, "run")
    loaded = load_run(run)
    loaded.model.to(resolve_device(execution.device))
    count = write_predictions(loaded, rows, out, batch_size)
    typer.echo(f"{out}  ({count:,} rows)")
