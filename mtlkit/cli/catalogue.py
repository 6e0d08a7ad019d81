"""``mtlkit list`` and ``mtlkit info``: what there is, and all about one of it."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mtlkit.settings import Settings


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    balancers = "balancers"
    datasets = "datasets"


def list_entries(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    pattern: Annotated[str, typer.Argument(help="Only names that match, e.g. 'm*'.")] = "*",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a list of objects with a name.")
    ] = False,
) -> None:
    """List models, balancers or data sets."""
    from mtlkit.errors import UsageError
    from mtlkit.registry import REGISTRIES

    registry = REGISTRIES[kind.value]
    names = registry.names(pattern)
    entries = [
        {"name": name, "summary": registry.summary(name).partition(": ")[2]} for name in names
    ]
    if as_json:
        print(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    if not entries:
        raise UsageError(f"No {registry.kind} matches {pattern!r}.", f"mtlkit list {kind.value}")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for entry in entries:
        table.add_row(Text(entry["name"], style="bold cyan"), Text(entry["summary"]))
    Console().print(table)


def info(
    name: Annotated[str, typer.Argument(help="A model, balancer or data set.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the paper, the options with their defaults, the cost, and when to use something."""
    import difflib

    from mtlkit.equivalences import relatives
    from mtlkit.errors import UsageError
    from mtlkit.registry import BALANCERS, REGISTRIES

    homes = [
        r
        for r in REGISTRIES.values()
        if name in r.names() or (name.endswith(".py") and r.holds(name))
    ]
    if not homes:
        everything = [entry for registry in REGISTRIES.values() for entry in registry.names()]
        close = difflib.get_close_matches(name, everything, n=3, cutoff=0.5)
        guess = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(
            f"Nothing is called {name!r}.{guess}",
            f"mtlkit {f'info {close[0]}' if close else 'list models'}",
        )
    registry = homes[0]
    entry = registry.load(name)
    options = _options(entry.Options)
    facts = {
        "name": name,
        "kind": registry.kind,
        "description": registry.docstring(name),
        "options": options,
    }
    further = ("needs", "scale", "licence", "url", "simulated", "training")
    facts |= {key: getattr(entry, key) for key in further if hasattr(entry, key)}
    if registry is BALANCERS:
        facts["same_as"] = relatives(name)
    if as_json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        _show(facts, registry.kind)


def _options(kind: type[Settings]) -> list[dict[str, Any]]:
    inherited = {key for base in kind.__bases__ for key in getattr(base, "model_fields", {})}
    own_first = sorted(kind.model_fields, key=lambda key: key in inherited)
    defaults = {
        key: kind.model_fields[key].get_default(call_default_factory=True) for key in own_first
    }
    schema = kind.model_json_schema()["properties"] if kind.model_fields else {}
    return [
        {
            "name": key,
            "default": list(value) if isinstance(value, tuple) else value,
            "choices": schema[key].get("enum", []),
            "description": kind.model_fields[key].description or "",
        }
        for key, value in defaults.items()
    ]


def _paragraphs(description: str) -> tuple[str, str]:
    """The first line and the rest of a docstring, its lines joined so that any width can wrap them."""
    import re

    title, _, rest = description.replace("``", "").partition("\n")
    joined = re.sub(r"(?<!\n)\n(?!\n|[A-Z][A-Za-z ]{2,16}: )", " ", rest.strip())
    return title, joined


def _show(facts: dict[str, Any], kind: str) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from mtlkit.spec import Spec

    title, rest = _paragraphs(facts["description"])
    console = Console()
    console.print()
    console.print(Text.assemble((facts["name"], "bold cyan"), f"  {kind}"))
    console.print(Padding(Text(title, style="bold"), (0, 0, 0, 2)))
    console.print(Padding(Text(rest), (1, 2)))
    if "needs" in facts:
        scale = {
            "simplex": "weights sum to T",
            "native": "weights keep the length the method gives them",
        }
        console.print(
            Padding(Text(f"Needs: {facts['needs']}. Scale: {scale[facts['scale']]}."), (0, 2, 1, 2))
        )
    if facts.get("simulated"):
        console.print(
            Padding(
                Text("Simulated: generated on this machine, and every table and figure says so."),
                (0, 2, 1, 2),
            )
        )
    if facts.get("training"):
        said = ", ".join(f"{key}={value}" for key, value in facts["training"].items())
        console.print(Padding(Text(f"Trains with {said} unless told otherwise."), (0, 2, 1, 2)))
    for text in facts.get("same_as", []):
        console.print(Padding(Text(f"Note: {text}"), (0, 2, 1, 2)))
    table = Table.grid(padding=(0, 2))
    for option in facts["options"]:
        shown = str(Spec("", {"": option["default"]}))[2:-1] if option["default"] != {} else "-"
        text = option["description"]
        if option["choices"]:
            text += f"{': ' if text else ''}{', '.join(map(str, option['choices']))}"
        table.add_row(
            Text(option["name"], style="bold"), Text(shown, style="green"), Text(text, style="dim")
        )
    if facts["options"]:
        console.print(Padding(Text("Options", style="bold underline"), (0, 2)))
        console.print(Padding(table, (0, 2)))
        example = next((o for o in facts["options"] if o["default"] not in ({}, None, [])), None)
        if example:
            value = str(Spec(facts["name"], {example["name"]: example["default"]}))
            console.print(Padding(Text(f"in brackets: '{value}'", style="dim"), (1, 2)))
    console.print()
