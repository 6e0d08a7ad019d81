"""``mtlkit fetch``: bring a data set, prepare it, and show its card."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtlkit.cli import tables
from mtlkit.errors import UsageError

if TYPE_CHECKING:
    from mtlkit.data.datasets._source import DatasetSource

OPTION_FLAGS = ("protocol", "fields", "min_count", "sample", "simulate", "max_bad_rows")


def fetch(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A data set, e.g. census or 'synthetic\\[p=0.9]', see mtlkit list datasets; "
            "or a table of your own, e.g. clicks.parquet."
        ),
    ],
    data_dir: tables.DataDirFlag = None,
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
    labels: tables.LabelsFlag = None,
    funnel: tables.FunnelFlag = None,
    split_by: tables.SplitByFlag = None,
    ids: tables.IdsFlag = None,
    dense: tables.DenseFlag = None,
    bags: tables.BagsFlag = None,
    drop: tables.DropFlag = None,
    strict: tables.StrictFlag = False,
    url_train: Annotated[
        str | None, typer.Option(help="A signed link to the training archive.")
    ] = None,
    url_test: Annotated[str | None, typer.Option(help="A signed link to the test archive.")] = None,
) -> None:
    """Download a data set, prepare it, and print its card; what is there is not fetched again."""
    given = dict(locals())  # the flags by their names, some of which are those of options
    from rich.console import Console

    from mtlkit.cli.card import card
    from mtlkit.cli.downloads import show_downloads
    from mtlkit.data.data_home import data_home, remember
    from mtlkit.data.sources import prepare
    from mtlkit.registry import DATASETS

    # flags are a short way to write options in brackets
    options = {name: given[name] for name in OPTION_FLAGS}
    options["fields"] = fields.split(",") if fields else None
    typed = _with_options(dataset, tables.without_none(options))
    dataset = tables.with_table_flags(typed, given) or ""
    links = tables.without_none({"train": url_train, "test": url_test})

    home = data_home(data_dir)
    started = time.perf_counter()
    with show_downloads() as progress:
        source, data = prepare(
            dataset, home, origin=origin, force=force, progress=progress, links=links, asked=True
        )
        with DATASETS.told_as_error_of(source.entry):
            prepared = _prepare_presets(source, home)
            shown = card(source, data, prepared, source.provenance(home))
    remember(home, source.typed or dataset)
    Console().print(shown)
    if strict:
        tables.check_strictly(data)

    seconds = time.perf_counter() - started
    messages = Console(stderr=True)
    messages.print(f"\nReady in {home} after {seconds:.1f} s. Next:\n", style="dim", markup=False)
    words = ["mtlkit", "bench", "-d", dataset]
    if data_dir:
        words += ["--data-dir", str(data_dir)]
    tables.print_command(words, messages)


def _with_options(text: str, options: dict[str, Any]) -> str:
    """The data set as typed, with the options that were given as flags put into the brackets."""
    from mtlkit.spec import Spec, parse_spec

    if not options:
        return text
    spec = parse_spec(text)
    return str(Spec(spec.name, spec.options | options))


def _prepare_presets(source: DatasetSource, home: Path) -> list[str]:
    """Prepare all that the source offers; return how each is typed."""
    if source.typed is not None:
        return [source.typed]
    typed = []
    for options in source.presets():
        preset = type(source)(source.entry, options)
        preset.load(home)
        typed.append(_typed(preset))
    return typed


def _typed(source: DatasetSource) -> str:
    """The shortest text that gives these options."""
    from mtlkit.spec import Spec

    def resolve(options: dict[str, Any]) -> dict[str, Any]:
        source_class = type(source)
        return source_class(source.entry, source.Options.model_validate(options)).resolved_options()

    # drop one option after another, as long as the rest means the same
    every_option = source.resolved_options()
    kept = every_option
    for key in every_option:
        fewer = {name: value for name, value in kept.items() if name != key}
        # some options go together only
        with suppress(UsageError):
            if resolve(fewer) == every_option:
                kept = fewer
    return str(Spec(source.entry, kept))
