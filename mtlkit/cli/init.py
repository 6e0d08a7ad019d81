"""``mtlkit init``: propose a YAML file for a table."""

from __future__ import annotations

from typing import Annotated

import typer


def init(
    table: Annotated[
        str, typer.Argument(help="A CSV or Parquet file, a folder of such, or a glob.")
    ],
    labels: Annotated[
        str | None, typer.Option(help="The columns to predict. Default: likely ones.")
    ] = None,
) -> None:
    """Print a YAML file that says what a table means, proposed by a look at it.

    Write it to a file, correct it, and give it to [bold]mtlkit bench -d[/bold].
    """
    from mtlkit.data.table.propose import propose

    print(propose(table, labels.split(",") if labels else ()), end="")
