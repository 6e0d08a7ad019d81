"""``mtlkit list`` and ``mtlkit info``: what there is, and all about one entry."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtlkit.errors import UsageError, did_you_mean, nearest_names

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from mtlkit.registry import Registry
    from mtlkit.settings import Settings


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    balancers = "balancers"
    datasets = "datasets"
    losses = "losses"
    baselines = "baselines"


def list_entries(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    pattern: Annotated[str, typer.Argument(help="Only names that match, e.g. 'm*'.")] = "*",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a list of objects with a name.")
    ] = False,
) -> None:
    """List models, balancers, data sets, losses or baselines."""
    from mtlkit.registry import REGISTRIES

    # a module's docstring begins with the title of the method and a colon
    registry = REGISTRIES[kind.value]
    entries = []
    for name in registry.names(pattern):
        _, _, summary = registry.summary(name).partition(": ")
        entries.append({"name": name, "summary": summary})
    if as_json:
        print(json.dumps(entries, indent=1))
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
    name: Annotated[str, typer.Argument(help="A model, balancer, data set, loss or baseline.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the paper, the options with their defaults, the cost, and when to use something."""
    from mtlkit.equivalences import relatives
    from mtlkit.registry import BALANCERS

    registry = _registry_of(name)
    entry = registry.load(name)
    facts: dict[str, Any] = {
        "name": name,
        "kind": registry.kind,
        "description": registry.docstring(name),
        "options": _describe_options(entry.Options),
    }
    for key in ("needs", "scale", "licence", "url", "simulated", "training", "kinds"):
        if hasattr(entry, key):
            facts[key] = getattr(entry, key)
    if registry is BALANCERS:
        facts["same_as"] = relatives(name)
    if hasattr(entry, "search_space"):
        facts["search_space"] = dict(entry.search_space)
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        _print_facts(facts)


def _registry_of(name: str) -> Registry:
    """The registry that has an entry, or to whose kind a plugin file belongs."""
    from mtlkit.registry import MODELS, REGISTRIES

    for registry in REGISTRIES.values():
        if name in registry.names() or registry.holds(name):
            return registry
    if name.endswith(".py"):
        MODELS.check(name)
        raise UsageError(
            f"{name} defines no model, balancer, data set or loss.", "mtlkit info mmoe shows one"
        )

    # none has: the nearest names are a better hint than a list
    every_name = [entry for registry in REGISTRIES.values() for entry in registry.names()]
    close = nearest_names(name, every_name, 3)
    command = f"info {close[0]}" if close else "list models"
    raise UsageError(f"Nothing is called {name!r}.{did_you_mean(close)}", f"mtlkit {command}")


def _describe_options(options_class: type[Settings]) -> list[dict[str, Any]]:
    """Name, default, choices and description of each option, inherited ones last."""
    fields = options_class.model_fields
    inherited = {
        key for base in options_class.__bases__ for key in getattr(base, "model_fields", {})
    }
    schema = options_class.model_json_schema()["properties"] if fields else {}

    described = []
    for key in sorted(fields, key=lambda key: key in inherited):
        default = fields[key].get_default(call_default_factory=True)
        described.append(
            {
                "name": key,
                "default": list(default) if isinstance(default, tuple) else default,
                "choices": schema[key].get("enum", []),
                "description": fields[key].description or "",
            }
        )
    return described


SCALES = {"simplex": "weights sum to T", "native": "weights keep the length the method gives them"}


def _print_facts(facts: dict[str, Any]) -> None:
    """All about one entry, on the terminal."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    # name, title and the rest of the docstring
    title, body = _paragraphs(facts["description"])
    console = Console()
    console.print()
    console.print(Text.assemble((facts["name"], "bold cyan"), f"  {facts['kind']}"))
    console.print(Padding(Text(title, style="bold"), (0, 0, 0, 2)))
    console.print(Padding(Text(body), (1, 2)))

    # what the class says of itself, a paragraph each
    for paragraph in _further_facts(facts):
        console.print(Padding(Text(paragraph), (0, 2, 1, 2)))

    if facts["options"]:
        console.print(Padding(Text("Options", style="bold underline"), (0, 2)))
        console.print(Padding(_options_table(facts["options"]), (0, 2)))
        if facts["kind"] == "model" or facts.get("search_space"):
            console.print(Padding(_search_space(facts), (1, 2, 0, 2)))
        example = _example(facts["name"], facts["options"])
        if example:
            console.print(Padding(Text(f"in brackets: '{example}'", style="dim"), (1, 2)))
    console.print()


def _paragraphs(description: str) -> tuple[str, str]:
    """The first line and the rest of a docstring, its lines joined so that any width can wrap."""
    import re

    title, _, rest = description.replace("``", "").partition("\n")
    paragraphs = []
    for paragraph in re.split(r"\n{2,}", rest.strip("\n").rstrip()):
        # lines of tables and formulas stay, and those that begin with `Paper: ` and the like
        if not re.search(r"^(==|\s)", paragraph, re.MULTILINE):
            paragraph = re.sub(r"\n(?![A-Z][A-Za-z ]{2,16}: )", " ", paragraph)
        paragraphs.append(paragraph)
    return title, "\n\n".join(paragraphs)


def _further_facts(facts: dict[str, Any]) -> list[str]:
    """Sentences about what an entry needs, how it trains, and with which others it is one."""
    sentences = []
    if "needs" in facts:
        sentences.append(f"Needs: {facts['needs']}. Scale: {SCALES[facts['scale']]}.")
    if facts.get("simulated"):
        sentences.append(
            "Simulated: generated on this machine, and every table and figure says so."
        )
    if "kinds" in facts:
        sentences.append(f"For {' and '.join(facts['kinds'])} tasks.")
    if facts.get("training"):
        settings = ", ".join(f"{key}={value}" for key, value in facts["training"].items())
        sentences.append(f"Trains with {settings} unless told otherwise.")
    sentences += [f"Note: {text}" for text in facts.get("same_as", [])]
    return sentences


def _options_table(options: list[dict[str, Any]]) -> Table:
    """A row an option: name, default, description with choices."""
    from rich.table import Table
    from rich.text import Text

    from mtlkit.spec import Spec

    table = Table.grid(padding=(0, 2))
    for option in options:
        # as it would be typed in brackets: `[=64:32]` without its ends
        default = "-"
        if option["default"] != {}:
            default = str(Spec("", {"": option["default"]}))[2:-1]

        description = option["description"]
        if option["choices"]:
            choices = ", ".join(map(str, option["choices"]))
            description = f"{description}: {choices}" if description else choices
        table.add_row(
            Text(option["name"], style="bold"),
            Text(default, style="green"),
            Text(description, style="dim"),
        )
    return table


def _search_space(facts: dict[str, Any]) -> RenderableType:
    """A row a setting that ``mtlkit bench --tune`` changes, those of all methods last."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from mtlkit.grid.spaces import MODEL, TRAINING, Dimension

    table = Table.grid(padding=(0, 2))
    own = facts["search_space"]
    shared = TRAINING | MODEL if facts["kind"] == "model" else {}
    for name, written in (own | shared).items():
        owner = "" if name in own else "shared by all"
        label, values = Text(name, style="bold"), str(Dimension.read(name, written))
        table.add_row(label, Text(values, style="green"), Text(owner, style="dim"))
    return Group(Text("Search space of bench --tune", style="bold underline"), table)


def _example(name: str, options: list[dict[str, Any]]) -> str | None:
    """The entry with the first option that has a default to show, as it would be typed."""
    from mtlkit.spec import Spec

    for option in options:
        if option["default"] not in ({}, None, []):
            return str(Spec(name, {option["name"]: option["default"]}))
    return None
