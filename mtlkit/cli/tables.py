"""What commands share: flags, those of a table among them, and lines about data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtlkit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from mtlkit.data.splits import Dataset

DataDirFlag = Annotated[
    Path | None, typer.Option(help="Where data live. Default: $MTLKIT_DATA, else ./datasets.")
]
LabelsFlag = Annotated[
    str | None, typer.Option(help="Of a table of your own: the columns to predict, e.g. click,buy.")
]
FunnelFlag = Annotated[
    str | None, typer.Option(help="Labels in the order in which a user comes to them.")
]
SplitByFlag = Annotated[
    str | None,
    typer.Option(help="ratio, time, group or column; the last ones with a name: group:user_id."),
]
IdsFlag = Annotated[str | None, typer.Option(help="Columns that hold ids or levels.")]
DenseFlag = Annotated[str | None, typer.Option(help="Columns that hold numbers.")]
BagsFlag = Annotated[str | None, typer.Option(help="Columns that hold lists of ids.")]
DropFlag = Annotated[str | None, typer.Option(help="Columns that are no inputs.")]
TABLE_FLAGS = ("labels", "funnel", "split_by", "ids", "dense", "bags", "drop")

StrictFlag = Annotated[
    bool, typer.Option("--strict", help="Stop if anything about the data is likely a mistake.")
]

MetricFlag = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="What to compare by where it was measured: gauc, logloss, ndcg@5. Default: AUC, R², "
        "accuracy.",
    ),
]
MarginFlag = Annotated[
    float,
    typer.Option(
        "--margin",
        metavar="%",
        help="Differences that do not matter, in percent of the reference's distance from a "
        "useless model.",
    ),
]


def as_share(margin: float) -> float:
    """A margin in percent as a share; a :class:`UsageError` if it is none."""
    if not 0 < margin < 100:
        raise UsageError(f"--margin is {margin:g}, not between 0 and 100.", "--margin 0.25")
    return margin / 100


def with_table_flags(dataset: str | None, given: dict[str, Any]) -> str | None:
    """The data set as typed, None for the default, with the flags of a table put into its brackets.

    Args:
        dataset: As typed.
        given: The flags of a command by their names; columns with commas, None for no flag.

    Raises:
        UsageError: There is no table that they are about, or a name cannot stand in brackets.
    """
    from mtlkit.spec import Spec, parse_spec

    flags = without_none({name: given.get(name) for name in TABLE_FLAGS})
    if not flags:
        return dataset
    if dataset is None:
        flag = next(iter(flags)).replace("_", "-")
        raise UsageError(f"--{flag} is about a table, and none is named.", "-d clicks.parquet")
    options: dict[str, Any] = {}
    for flag, value in flags.items():
        key = flag.removesuffix("_by")
        names = value.split(":") if key == "split" else value.split(",")
        names = [name.strip() for name in names]
        for name in names:
            _check_name(name)
        options[key] = names
    spec = parse_spec(dataset)
    return str(Spec(spec.name, spec.options | options))


def _check_name(name: str) -> None:
    """Raise a :class:`UsageError` for a name of a column that would be read back as another one."""
    from mtlkit.spec import parse_value

    has_marks = bool(set(name) & set("[]=:"))
    value = None if has_marks else parse_value(name)
    if value is None or isinstance(value, bool) or str(value).lower() != name.lower():
        raise UsageError(
            f"{name!r} cannot stand in a flag as the name of a column.",
            "write it into a YAML file: mtlkit init TABLE > table.yaml",
        )


def without_none(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given; a section without any is left out."""
    given_flags = {}
    for key, value in flags.items():
        if isinstance(value, dict):
            value = without_none(value) or None
        if value is not None:
            given_flags[key] = value
    return given_flags


def say(console: Console, kind: str, sentence: str) -> None:
    """A line that begins with its kind, such as a warning or a note, in yellow."""
    from rich.text import Text

    console.print(Text.assemble((kind, "yellow"), f" {sentence}"), soft_wrap=True)


def print_command(words: Sequence[str], console: Console) -> None:
    """A command to type next, on a line as long as it must be."""
    line = f"  {shlex.join(words)}\n"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_lints(dataset: Dataset, console: Console) -> None:
    """A line for each lint that was found when the data were prepared."""
    for lint in dataset.details.get("lints", []):
        say(console, "lint", f"{lint['name']}: {lint['message']} ({lint['mend']})")


def check_strictly(dataset: Dataset) -> None:
    """Raise a :class:`UsageError` if there is a lint."""
    lints = dataset.details.get("lints", [])
    if lints:
        more = f", and {len(lints) - 1} more" if len(lints) > 1 else ""
        message = f"{lints[0]['name']}: {lints[0]['message']}{more}."
        raise UsageError(f"{dataset.name} is not clean: {message}", lints[0]["mend"])
