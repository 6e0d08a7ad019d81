"""``mtlkit fetch``: bring a data set, prepare it, and show its card."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mtlkit.data.datasets._source import DatasetSource, Progress
    from mtlkit.data.splits import Dataset


def fetch(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A data set, e.g. census or 'synthetic[p=0.9]'; see mtlkit list datasets."
        ),
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where data live. Default: $MTLKIT_DATA, else ./datasets.", show_default=False
        ),
    ] = None,
    origin: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Take the raw files from this file or folder, not from the network."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Download and prepare again.")] = False,
    protocol: Annotated[
        str | None, typer.Option(help="The option protocol=, e.g. aitm, rechub or full.")
    ] = None,
    fields: Annotated[
        str | None, typer.Option(help="The option fields=: only these, e.g. 101,205,206.")
    ] = None,
    min_count: Annotated[
        int | None, typer.Option(help="The option min_count=: keep ids seen so often.")
    ] = None,
    sample: Annotated[
        float | None, typer.Option(help="The option sample=: keep this share of users.")
    ] = None,
    simulate: Annotated[
        int | None, typer.Option(help="The option simulate=: so many rows of simulated data.")
    ] = None,
    max_bad_rows: Annotated[
        int | None, typer.Option(help="Leave out up to so many malformed rows.")
    ] = None,
    url_train: Annotated[
        str | None, typer.Option(help="A signed link to the training archive.")
    ] = None,
    url_test: Annotated[str | None, typer.Option(help="A signed link to the test archive.")] = None,
) -> None:
    """Download a data set, prepare it, and print its card. What is there already is not fetched
    again.
    """
    from rich.console import Console

    from mtlkit.data.data_home import data_home, remember
    from mtlkit.data.sources import prepare

    options = {
        "protocol": protocol,
        "fields": fields.split(",") if fields else None,
        "min_count": min_count,
        "sample": sample,
        "simulate": simulate,
        "max_bad_rows": max_bad_rows,
    }
    dataset = _with_options(
        dataset, {key: value for key, value in options.items() if value is not None}
    )
    links = {
        part: link for part, link in (("train", url_train), ("test", url_test)) if link is not None
    }
    home, talk = data_home(data_dir), Console(stderr=True)
    started = time.perf_counter()
    with show_downloads() as progress:
        source, data = prepare(
            dataset, home, origin=origin, force=force, progress=progress, links=links, asked=True
        )
        prepared = _prepare_presets(source, home)
    remember(home, dataset)
    Console().print(card(source, data, prepared, source.provenance(home)))
    talk.print(
        f"\nReady in {home} after {time.perf_counter() - started:.1f} s. Next:\n",
        style="dim",
        markup=False,
    )
    more = f" --data-dir {data_dir}" if data_dir else ""
    talk.print(
        f"  mtlkit bench -d {_quoted(dataset)}{more}\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _with_options(text: str, options: dict[str, Any]) -> str:
    """The data set as typed, with the options that were given as flags written into the brackets."""
    from mtlkit.spec import Spec, parse_spec

    if not options:
        return text
    spec = parse_spec(text)
    return str(Spec(spec.name, spec.options | options))


def _prepare_presets(source: DatasetSource, home: Path) -> list[str]:
    """Prepare all that the source offers; return how each is typed."""
    typed = []
    for options in source.presets():
        preset = type(source)(source.name, options)
        preset.load(home)
        typed.append(_typed(preset))
    return typed


def _typed(source: DatasetSource) -> str:
    """The shortest text that gives these options."""
    from mtlkit.errors import UsageError
    from mtlkit.spec import Spec

    def resolved(options: dict[str, Any]) -> dict[str, Any]:
        return type(source)(source.name, source.Options.model_validate(options)).resolved_options()

    wanted = kept = source.resolved_options()
    for key in wanted:
        fewer = {name: value for name, value in kept.items() if name != key}
        with suppress(UsageError):  # some options go together only
            kept = fewer if resolved(fewer) == wanted else kept
    return str(Spec(source.name, kept))


def _quoted(text: str) -> str:
    return f"'{text}'" if "[" in text else text


@contextmanager
def show_downloads() -> Iterator[Progress]:
    """A progress callback: bars on a terminal, else one line a download. All of it on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def line(what: str, done: int, total: int | None) -> None:
            if what not in seen:
                seen.add(what)
                size = (
                    f" ({total / 1e6:.1f} MB)"
                    if total and not what.startswith(("writing", "simulating"))
                    else ""
                )
                print(f"{_said(what)}{size}", file=sys.stderr, flush=True)

        yield line
        return

    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(_said(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bar


def _said(what: str) -> str:
    """What is going on; a name alone is one of a file that is fetched."""
    return (
        what if what.startswith(("preparing ", "writing ", "simulating ")) else f"fetching {what}"
    )


def card(
    source: DatasetSource, data: Dataset, prepared: list[str], provenance: str | None
) -> RenderableType:
    """What a data set is, on one screen.

    Args:
        source: Where it comes from.
        data: The prepared data.
        prepared: Every ``name[options]`` that is ready, the shown one first.
        provenance: Where the raw files were taken from, if known.
    """
    from rich.console import Group
    from rich.padding import Padding

    return Group(Padding(_facts(source, data, prepared, provenance), (1, 0, 0, 1)), _tasks(data))


def _facts(
    source: DatasetSource, data: Dataset, prepared: list[str], provenance: str | None
) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from mtlkit.data.planted import ceilings, ceilings_of_all_rows

    counts = {kind: len(data.schema.of_kind(kind)) for kind in ("id", "bag", "dense")}
    names = {"id": "ids", "bag": "bags of ids", "dense": "numbers"}
    title = Text(source.title, style="bold")
    if data.simulated:
        title.append("  SIMULATED", style="bold yellow")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("data set", title)
    facts.add_row("source", Text(source.url))
    if provenance:
        facts.add_row("taken from", Text(provenance))
    facts.add_row("licence", Text(source.licence))
    facts.add_row(
        "inputs", ", ".join(f"{count} {names[kind]}" for kind, count in counts.items() if count)
    )
    facts.add_row("prepared", Text("\n".join(prepared)))
    planted, whole = ceilings(data), ceilings_of_all_rows(data)
    if planted:
        said = (
            f"{_reached(data, planted)}: the planted model on test, which none passes but by luck"
        )
        facts.add_row("ceiling", Text(said))
    elif whole:
        said = f"{_reached(data, whole)}: the planted model on all simulated test rows, of which test holds some"
        facts.add_row("near the ceiling", Text(said))
    return facts


def _reached(data: Dataset, planted: dict[str, float]) -> str:
    return ", ".join(
        f"{of.label} {planted[of.name]:.4f}" for of in data.schema.scores() if of.name in planted
    )


def _tasks(data: Dataset) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title_justify="left")
    table.add_column("task")
    table.add_column("label", overflow="fold")
    for name, split in data.splits.items():
        table.add_column(f"{name}\n{len(split):,} rows", justify="right", no_wrap=True)
    for t, task in enumerate(data.schema.tasks):
        cells = []
        for split in data.splits.values():
            observed = split.observed[:, t]
            if task.kind != "binary":
                cells.append(f"{int(observed.sum()):,}")
                continue
            positives = split.positives()[t]
            cells.append(f"{positives:,} ({positives / max(int(observed.sum()), 1):.2%})")
        label = task.description if task.kind == "binary" else f"{task.kind}: {task.description}"
        table.add_row(Text(task.name, style="bold"), Text(label), *cells)
    return table
