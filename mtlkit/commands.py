"""Commands to type: what was typed of a run beside its methods, and the command that runs it again.

Settings go by the names that ``--set`` takes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from mtlkit.records import NO_BALANCER, Cell
from mtlkit.registry import DATASETS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.spec import flatten, parse_value, show

START = "execution.init_from"
"""The folder of the run to start from."""


def typed_training(
    training: Mapping[str, Any], dataset: str, tuned: Collection[str] = ()
) -> dict[str, Any]:
    """The settings of a training that were typed: those that differ from the defaults.

    Args:
        training: What a cell holds of it.
        dataset: Name of the data set, which may have defaults of its own.
        tuned: Settings that tuning chose.
    """
    suited = DATASETS.facts(dataset).attributes if dataset in DATASETS.names() else {}
    settings = TrainingSettings.model_validate(suited.get("training") or {})
    defaults = dict(flatten(settings.model_dump(mode="json")))
    typed = {}
    for key, value in flatten(training):
        # What is said of a task has no default, nor has a setting of an older version.
        default = defaults.get(key) if "." in key else defaults.get(key, value)
        if key not in tuned and value != default and not key.endswith(".train_mean"):
            typed[key] = value
    return typed


def with_start(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with the folder of the run to start from, where they hold its key."""
    if not typed.get("init_from"):
        return dict(typed)
    others = {name: value for name, value in typed.items() if name != "init_from"}
    return {START: "RUN"} | others  # an earlier version did not keep the folder


def settings_words(texts: Mapping[str, str]) -> list[str]:
    """The words of a command that make settings, of which the texts are given."""
    words = []
    for name, text in texts.items():
        words += ["--init-from", text] if name == START else ["--set", f"{name}={text}"]
    return words


def as_text(typed: Mapping[str, Any]) -> dict[str, str]:
    """Settings as they are typed: without the section where it goes without saying, values as
    ``--set`` reads them.
    """
    return {_shortened(name): _written(name, value) for name, value in typed.items()}


def command_of(cell: Cell) -> str:
    """The command that runs a cell alone."""
    data = cell.resolved["dataset"]
    words = ["mtlkit", "bench", "-d", cell.dataset, "--tasks", ",".join(data["tasks"])]
    words += ["--models", cell.model]
    if cell.balancer != NO_BALANCER:
        words += ["--balancers", cell.balancer]
    words += ["--references", "none", "--seeds", f"{cell.seed},"]

    # Without the references their options are unknown.
    of_model = {f"model.{name}" for name in cell.resolved["model"]["options"]}
    training = typed_training(cell.resolved["training"], data["name"])
    typed = {
        name: value
        for name, value in with_start(training | cell.common).items()
        if not name.startswith("model.") or ".".join(name.split(".")[:2]) in of_model
    }
    words += settings_words(as_text(typed))
    return shlex.join(words + ["--force"] * cell.forced)


def _shortened(key: str) -> str:
    """Without the section where it goes without saying."""
    option = key.removeprefix("model.")
    settings = {*TrainingSettings.model_fields, *ExecutionSettings.model_fields}
    return key if option.partition(".")[0] in settings else option


def _written(key: str, value: Any) -> str:
    """The text of a value as ``--set`` reads it."""
    if not isinstance(value, list):
        return show(value)
    if key.partition(".")[0] in TrainingSettings.model_fields:
        return ",".join(map(str, value))
    return show(value) if parse_value(show(value)) == value else json.dumps(value)
