"""``mtlkit predict`` and ``mtlkit export``: use the model of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run, with its weights.")
]


def predict(
    run: RunFolder,
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


def export(
    run: RunFolder,
    format: Annotated[
        Literal["onnx", "torch"], typer.Option(help="ONNX, or a program of torch.export.")
    ] = "onnx",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where the files go.")
    ] = Path("exported"),
) -> None:
    """Write the model of a run for other programs: from encoded rows to scores, any number of rows
    at a time. Its encoders stand beside it as JSON. What was written is compared with the model.
    """
    from mtlkit.grid.export import export as write
    from mtlkit.grid.loaded_run import load_run

    for file in write(load_run(run), out, format):
        typer.echo(file)
