"""``mtlkit export``: the model of a run, or finished runs as logs, for other programs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from mtlkit.errors import UsageError

SHOW = {
    "tensorboard": "tensorboard --logdir {}",
    "mlflow": "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {}",
    "wandb": "wandb sync {}/wandb/offline-run-*",
}
"""Program to the command that shows what was exported."""


def export(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The folder of a run; of results, with --to.")
    ],
    format: Annotated[
        Literal["onnx", "torch"] | None,
        typer.Option(help="The run's model as ONNX (default), or a program of torch.export."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="PROGRAM", help="Runs as logs of tensorboard, mlflow or wandb."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Default: exported/, with --to PROGRAM/."),
    ] = None,
) -> None:
    """Write the model of a run, or the logs of finished runs, for other programs.

    A model goes from encoded rows to scores, any number of rows at a time; its encoders stand
    beside it as JSON, and what was written is compared with the model. Logs are files, one run a
    cell: nothing is sent, and what was exported before is not written again.
    """
    if to is None:
        _export_model(source, out or Path("exported"), format or "onnx")
    elif format is None:
        _export_logs(source, to, out or Path(to))
    else:
        raise UsageError("--format is about a model, and --to about logs.", "give one of them")


def _export_model(run: Path, out: Path, format: Literal["onnx", "torch"]) -> None:
    from mtlkit.grid.export import export
    from mtlkit.grid.loaded_run import load_run

    for file in export(load_run(run), out, format):
        typer.echo(file)


def _export_logs(results: Path, program: str, out: Path) -> None:
    from mtlkit.report.log_export import export_logs

    written, earlier = export_logs(results, program, out)
    before = f"; {earlier} exported before" if earlier else ""
    typer.echo(f"{out}  (runs written: {written}{before})")
    typer.echo(f"\nhint: {SHOW[program].format(shlex.quote(str(out)))}", err=True)
