"""What a grid is: settings from a YAML file and from flags, flags first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mtlkit.data.sources import open_source
from mtlkit.data.table.spec import TaskSpec
from mtlkit.errors import UsageError
from mtlkit.grid.spaces import Dimension, is_dimension
from mtlkit.settings import ExecutionSettings, FolderPath, Settings, TrainingSettings, validate
from mtlkit.spec import assign, split_list
from mtlkit.yaml_files import read_yaml

MAX_SEEDS = 10_000
SEED_LIMIT = 10**18
MAX_BYTES = 10_000_000
"""Of a YAML file; a grid has thousands."""
SEED = re.compile(r"[0-9]{1,18}")
BUDGET = re.compile(r"([0-9]{1,12}(?:\.[0-9]*)?(?:e[0-9])?)([a-zA-Z]*)")
UNITS = {
    "": ("trials", 1),
    "s": ("seconds", 1),
    "m": ("seconds", 60),
    "h": ("seconds", 3600),
    "rows": ("rows", 1),
    "krows": ("rows", 1_000),
    "Mrows": ("rows", 1_000_000),
}
"""Unit of a budget to what it limits, and how many of it the unit is."""
BUDGETS = ("trials", "seconds", "rows")


def _split_specs(value: Any) -> Any:
    """``a,b[c=1]`` or a list of such; at least one."""
    names = split_list(value) if isinstance(value, str) else value
    if isinstance(names, (list, tuple)) and not names:
        raise ValueError("it names nothing, as does a shell variable that is not set")
    return names


def _split_specs_or_none(value: Any) -> Any:
    """``a,b[c=1]`` or a list of such; ``none`` is an empty list."""
    if value is None or value == "none":
        return []
    return _split_specs(value) if isinstance(value, str) else value


def _read_seeds(value: Any) -> Any:
    """A count, or the seeds themselves (``0,3,5``; ``7,`` for one)."""
    if isinstance(value, str):
        numbers = split_list(value)
        if not numbers or not all(SEED.fullmatch(number) for number in numbers):
            raise ValueError("write how many (3), or which (0,5,7), in at most 18 digits")
        value = [int(number) for number in numbers] if "," in value else int(value)

    # a count stands for the first seeds
    if isinstance(value, int):
        if value < 1:
            raise ValueError("there must be at least one seed")
        if value > MAX_SEEDS:
            raise ValueError(f"a grid takes at most {MAX_SEEDS:,} seeds")
        return list(range(value))
    if isinstance(value, list) and len(set(map(str, value))) != len(value):
        raise ValueError("a seed is named twice")
    return value


Specs = Annotated[tuple[str, ...], BeforeValidator(_split_specs)]
SpecsOrNone = Annotated[tuple[str, ...], BeforeValidator(_split_specs_or_none)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=SEED_LIMIT)], ...],
    BeforeValidator(_read_seeds),
    Field(min_length=1, max_length=MAX_SEEDS),
]


def _check_space(space: dict[str, Any]) -> dict[str, Any]:
    """Look at each dimension of a space; a mapping that is none holds options of a method."""
    for name, written in space.items():
        nested = isinstance(written, dict) and written and not is_dimension(written)
        ranges = {f"{name}.{key}": value for key, value in written.items()} if nested else None
        for dotted, value in (ranges or {name: written}).items():
            if value is not None:
                Dimension.read(dotted, value)
    return space


class TuningSettings(Settings):
    """How the settings of a grid's methods are tuned."""

    trials: int | None = Field(
        None, gt=0, le=10_000, description="of each model under each balancer; default: no tuning"
    )
    seconds: float | None = Field(
        None, gt=0, description="instead of trials: they begin until those before took so long"
    )
    rows: float | None = Field(
        None, gt=0, description="instead: until those before saw so many training rows"
    )
    halving: int | None = Field(
        None,
        ge=2,
        le=10,
        description="one trial of so many goes on, from few rows to more; default: all see all",
    )
    space: Annotated[dict[str, Any], AfterValidator(_check_space)] = Field(
        default_factory=dict,
        description="setting: its range, beside or instead of the declared one; null: not tuned",
    )
    sampler: Literal["sobol", "optuna"] = Field(
        "sobol", description="sobol: the same points for all; optuna: TPE, for each by its own runs"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the sampler")
    seeds: int = Field(1, gt=0, le=100, description="runs of each trial")

    @model_validator(mode="after")
    def _one_budget(self) -> TuningSettings:
        given = [kind for kind in BUDGETS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"choose one of {' and '.join(given)}")
        if self.halving is not None and (given != ["trials"] or self.sampler != "sobol"):
            needed = "halving needs a number of trials, and sampler: sobol"
            raise ValueError(f"{needed}; --set tune.halving=none leaves it out")
        return self

    @property
    def budget(self) -> tuple[str, float] | None:
        """What limits the trials of a method (one of ``BUDGETS``), and how much of it there is;
        None for no tuning.
        """
        given = ((kind, getattr(self, kind)) for kind in BUDGETS)
        return next((budget for budget in given if budget[1] is not None), None)


def read_budget(text: str) -> dict[str, float | None]:
    """The budget of ``--tune`` as settings: 20 trials, ``10m`` of them, or ``20Mrows``.

    Raises:
        UsageError: It is none.
    """
    match = BUDGET.fullmatch(text)
    if match is None or match[2] not in UNITS:
        raise UsageError(
            f"--tune cannot be {text!r}: write how many trials (20), how long they may take (90s, "
            "10m, 2h), or how many training rows they may see (20Mrows).",
            "mtlkit bench --tune 20",
        )
    kind, unit = UNITS[match[2]]
    # a budget of another kind in a file gives way
    return dict.fromkeys(BUDGETS) | {kind: float(match[1]) * unit}


class GridSettings(Settings):
    """A grid, as a YAML file holds it."""

    dataset: str | None = Field(
        None, description="a data set; default: the one fetched last, else census"
    )
    models: Specs = Field(("shared-bottom", "mmoe", "ple"), description="architectures")
    balancers: Specs = Field(("uniform", "uwl"), description="balancers")
    references: SpecsOrNone = Field(("single-task",), description="what to compare with, or none")
    seeds: Seeds = Field((0, 1, 2), description="how many, or which")
    tasks: Specs | None = Field(None, description="a subset of the data set's tasks")
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    model: dict[str, Any] = Field(
        default_factory=dict, description="options for every model that has them"
    )
    balancer: dict[str, Any] = Field(
        default_factory=dict, description="options for every balancer that has them"
    )
    tune: TuningSettings = Field(default_factory=TuningSettings)
    execution: ExecutionSettings = Field(default_factory=ExecutionSettings)
    out: FolderPath = Field(Path("results"), description="where results go")


def read_grid(file: Path | None, flags: dict[str, Any], assignments: list[str]) -> GridSettings:
    """Merge a YAML file, flags and ``--set`` assignments, the later ones winning.

    Args:
        flags: Values given on the command line; nested mappings are merged into those of the file.
        assignments: ``key=value`` texts. A key without a section is looked up in the training
            settings, then in the execution settings, and else belongs to the models.

    Raises:
        UsageError: The file or a setting cannot be read.
    """
    values = {} if file is None else _read_file(file)

    _move_labels(values, file)

    # flags win over the file; a section keeps what its flags leave alone
    for key, value in flags.items():
        if not isinstance(value, dict):
            values[key] = value
            continue
        section = values.setdefault(key, {})
        if not isinstance(section, dict):
            raise UsageError(
                f"{key!r} in {file} must hold key: value pairs.", "mtlkit bench --print-config"
            )
        section.update(value)

    # assignments win over both
    for assignment in assignments:
        section_name = section_of(assignment.partition("=")[0].strip())
        prefix = f"{section_name}." if section_name else ""
        assign(values, f"{prefix}{assignment}", "given to --set")
    return validate(GridSettings, values, "grid", "mtlkit bench --print-config shows every setting")


def _move_labels(values: dict[str, Any], file: Path | None) -> None:
    """Turn the ``labels`` of a file, as that of a table has them, into settings of the training; a
    :class:`UsageError` where they say what only a table can be told.
    """
    labels = values.pop("labels", None) or {}
    training = values.setdefault("training", {}) if labels else {}
    for name, label in labels.items() if isinstance(labels, dict) else [(labels, None)]:
        if not (isinstance(label, dict) and isinstance(training, dict)):
            raise UsageError(
                f"The labels of {file} are no mapping of a task to what is known of it.",
                "labels: {click: {losses: focal}}",
            )
        spec = validate(TaskSpec, label, f"label {name}")
        for key in label:
            if key not in ("losses", "row_weights", "report", "weight"):
                raise UsageError(
                    f"{file} says {key!r} of the label {name!r}, which is settled when a table is "
                    "prepared.",
                    "write it into the file of the table: mtlkit init TABLE > table.yaml",
                )
        if spec.losses:
            training.setdefault("loss", {})[name] = spec.losses
        if spec.row_weights is not None:
            training.setdefault("row_weights", {})[name] = spec.row_weights.model_dump()
        if not spec.report:
            training.setdefault("auxiliary", []).append(name)
        if "weight" in label:
            training.setdefault("select_weights", {})[name] = spec.weight


def _read_file(file: Path) -> dict[str, Any]:
    """The plain values of a YAML file."""
    try:
        # a device or a pipe may have no end
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = "it is not UTF-8 text"
        raise UsageError(
            f"Cannot read {file}: {reason}.",
            "mtlkit bench --print-config > grid.yaml makes such a file",
        ) from None
    return read_yaml(text, str(file))


def section_of(key: str) -> str | None:
    """The section that a setting belongs to: training, execution, else the options of all models.

    Args:
        key: Such as ``lr``, or ``task_weights.income``.

    Returns:
        The name of the section; None for a key that is one of the grid's own, or names its section.
    """
    head = key.partition(".")[0]
    if head in GridSettings.model_fields:
        return None
    if head in TrainingSettings.model_fields:
        return "training"
    if head in ExecutionSettings.model_fields:
        return "execution"
    return "model"


def with_dataset(settings: GridSettings, dataset: str) -> GridSettings:
    """The same grid on a data set, with the training settings that suit it where the user gave
    none.

    Raises:
        UsageError: The data set or an option of it is unknown.
    """
    asked_for = settings.training.model_dump(exclude_unset=True)
    suited = open_source(dataset).training
    training = TrainingSettings.model_validate(suited | asked_for)
    return settings.model_copy(update={"dataset": dataset, "training": training})


def write_grid(settings: GridSettings) -> str:
    """The YAML text of a grid."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
