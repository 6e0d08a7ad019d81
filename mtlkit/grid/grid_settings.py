"""What a grid is: settings from a YAML file and from flags, flags first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field

from mtlkit.data.sources import open_source
from mtlkit.errors import UsageError
from mtlkit.settings import ExecutionSettings, Settings, TrainingSettings, read_yaml, validate
from mtlkit.spec import assign, split_list


def _specs(value: Any) -> Any:
    """``a,b[c=1]`` or a list of such."""
    return split_list(value) if isinstance(value, str) else value


def _specs_or_none(value: Any) -> Any:
    """As specs; ``none`` is an empty list."""
    return [] if value is None or value == "none" else _specs(value)


def _seeds(value: Any) -> Any:
    """A count, or the seeds themselves (``0,3,5``; ``7,`` for one)."""
    if isinstance(value, str):
        parts = split_list(value)
        if not parts or not all(part.isdigit() for part in parts):
            raise ValueError("write how many (3), or which (0,5,7)")
        value = [int(part) for part in parts] if "," in value else int(value)
    if isinstance(value, int):
        if value < 1:
            raise ValueError("there must be at least one seed")
        return list(range(value))
    if isinstance(value, list) and len(set(map(str, value))) != len(value):
        raise ValueError("a seed is named twice")
    return value


Specs = Annotated[tuple[str, ...], BeforeValidator(_specs)]
SpecsOrNone = Annotated[tuple[str, ...], BeforeValidator(_specs_or_none)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds), Field(min_length=1)
]


class GridSettings(Settings):
    """A grid, as a YAML file holds it."""

    dataset: str | None = Field(
        None, description="a data set; default: the one fetched last, else census"
    )
    models: Specs = Field(("shared-bottom", "mmoe", "ple"), description="architectures")
    balancers: Specs = Field(("uniform", "uwl"), description="balancers")
    references: SpecsOrNone = Field(("single-task",), description="models to compare with, or none")
    seeds: Seeds = Field((0, 1, 2), description="how many, or which")
    tasks: Specs | None = Field(None, description="a subset of the data set's tasks")
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    model: dict[str, Any] = Field(
        default_factory=dict, description="options for every model that has them"
    )
    balancer: dict[str, Any] = Field(
        default_factory=dict, description="options for every balancer that has them"
    )
    execution: ExecutionSettings = Field(default_factory=ExecutionSettings)
    out: Path = Field(Path("results"), description="where results go")


def read_grid(file: Path | None, flags: dict[str, Any], assignments: list[str]) -> GridSettings:
    """Merge a YAML file, flags and ``--set`` assignments, the later ones winning.

    Args:
        file: A YAML file, or None.
        flags: Values given on the command line; nested mappings are merged into those of the file.
        assignments: ``key=value`` texts. A key without a section is looked up in the training
            settings, then in the execution settings, and else belongs to the models.

    Raises:
        UsageError: The file or a setting cannot be read.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = read_yaml(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(
                f"Cannot read {file}: {reason}.",
                "mtlkit bench --print-config > grid.yaml makes such a file",
            ) from None
    for key, value in flags.items():
        if isinstance(value, dict):
            section = values.setdefault(key, {})
            if not isinstance(section, dict):
                raise UsageError(
                    f"{key!r} in {file} must hold key: value pairs.", "mtlkit bench --print-config"
                )
            section.update(value)
        else:
            values[key] = value
    for item in assignments:
        assign(values, _with_section(item), "given to --set")
    return validate(GridSettings, values, "grid", "mtlkit bench --print-config shows every setting")


def with_dataset(settings: GridSettings, dataset: str) -> GridSettings:
    """The same grid on a data set, with the training settings that suit it where the user gave
    none.

    Raises:
        UsageError: The data set or an option of it is unknown.
    """
    given = settings.training.model_dump(exclude_unset=True)
    training = TrainingSettings.model_validate(open_source(dataset).training | given)
    return settings.model_copy(update={"dataset": dataset, "training": training})


def write_grid(settings: GridSettings) -> str:
    """The YAML text of a grid."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _with_section(item: str) -> str:
    key = item.partition("=")[0].strip()
    if key.partition(".")[0] in GridSettings.model_fields:
        return item
    head = key.partition(".")[0]
    if head in TrainingSettings.model_fields:
        return f"training.{item}"
    if head in ExecutionSettings.model_fields:
        return f"execution.{item}"
    return f"model.{item}"
