"""``mtlkit plan``: the cells of a grid, or a script that runs them as an array of jobs."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mtlkit.errors import UsageError

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=mtlkit
#SBATCH --array=1-{parts}
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --requeue
# Each job runs one part of the grid; all write to the same results folder. A job that is stopped
# goes on where it was when it is started again. Change the lines above to what your cluster has.
set -euo pipefail
cd {here}
{variables}exec {command} --shard "$SLURM_ARRAY_TASK_ID/{parts}"
"""


def plan(
    context: typer.Context,
    slurm: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=10_000, help="Print a SLURM array script of N jobs."),
    ] = None,
) -> None:
    """Show the cells of a grid and stop. Takes what [bold]mtlkit bench[/bold] takes.

    With --slurm, prints a script for sbatch instead. The data are prepared now, once.
    """
    bench = context.find_root().command.commands["bench"]  # type: ignore[attr-defined]
    arguments = list(context.args)
    if slurm is None:
        bench.main([*arguments, "--dry-run"], prog_name="mtlkit bench", standalone_mode=False)
        return
    if any(word == "--shard" or word.startswith("--shard=") for word in arguments):
        raise UsageError("--slurm gives each job its own --shard.", "mtlkit plan --slurm 16")
    with contextlib.redirect_stdout(io.StringIO()):
        bench.main([*arguments, "--dry-run"], prog_name="mtlkit bench", standalone_mode=False)
    print(_script(arguments, slurm), end="")


def _script(arguments: list[str], parts: int) -> str:
    """The array script for the arguments of a grid; it uses this Python, folder and data home."""
    home = os.environ.get("MTLKIT_DATA")
    variables = f"export MTLKIT_DATA={shlex.quote(str(Path(home).absolute()))}\n" if home else ""
    return SCRIPT.format(
        parts=parts,
        here=shlex.quote(str(Path.cwd())),
        variables=variables,
        command=shlex.join([sys.executable, "-m", "mtlkit", "bench", *arguments]),
    )
