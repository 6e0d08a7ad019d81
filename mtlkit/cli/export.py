"""``mtlkit export``: finished runs as the logs of other programs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

SHOW = {
    "tensorboard": "tensorboard --logdir {}",
    "mlflow": "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {}",
    "wandb": "wandb sync {}/wandb/offline-run-*",
}
"""Program to the command that shows what was exported."""


def export(
    results: Annotated[Path, typer.Argument(help="The results folder.")] = Path("results"),
    to: Annotated[
        str, typer.Option("--to", metavar="PROGRAM", help="tensorboard, mlflow or wandb.")
    ] = "tensorboard",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to.  [default: PROGRAM/]")
    ] = None,
) -> None:
    """Write finished runs as logs of TensorBoard, MLflow or Weights & Biases: one run a cell.

    Files alone are written, nothing is sent. What was exported before is not written again.
    """
    from mtlkit.report.log_export import export_logs

    folder = out or Path(to)
    written, earlier = export_logs(results, to, folder)
    before = f"; {earlier} exported before" if earlier else ""
    typer.echo(f"{folder}  (runs written: {written}{before})")
    typer.echo(f"\nhint: {SHOW[to].format(shlex.quote(str(folder)))}", err=True)
