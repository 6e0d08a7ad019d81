"""Settings: the base of every group of options, lists, training, execution, and their checks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mtlkit.errors import UsageError, did_you_mean, nearest_names, short_repr
from mtlkit.spec import split_list

# --- the base, and types that options share


class Settings(BaseModel):
    """Base of every group of options: unknown keys are errors, values change no more."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_by_name(cls, values: Any) -> Any:
        """Restore the word ``none`` for options that have it among their choices, such as ``norm``.

        In brackets ``none`` means no value, so it arrives here as None.
        """
        if not isinstance(values, dict):
            return values
        restored = dict(values)
        for key, field in cls.model_fields.items():
            has_the_word = "none" in get_args(field.annotation)
            if has_the_word and key in values and values[key] is None:
                restored[key] = "none"
        return restored

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is meant: Python would read them as 1 and 0."""
        assert info.field_name is not None
        types = list(_types_within(cls.model_fields[info.field_name].annotation))
        wants_number = int in types or float in types
        if wants_number and bool not in types and _holds_bool(value):
            raise ValueError("true and false are no numbers")
        return value


def without_unused(
    model: BaseModel, values: dict[str, Any], later: Sequence[str]
) -> dict[str, Any]:
    """The values of a model without those fields, added later, that have their defaults: digests of
    what does not use them stay what they were.
    """
    fields = type(model).model_fields
    unused = {
        name
        for name in later
        if getattr(model, name) == fields[name].get_default(call_default_factory=True)
    }
    return {name: value for name, value in values.items() if name not in unused}


def _types_within(annotation: Any) -> Iterator[Any]:
    """The types that an annotation consists of; values of literals count as such."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _types_within(argument)


def _holds_bool(value: Any) -> bool:
    """Whether a value is true or false, or a list or mapping with one of them in it."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_bool(element) for element in value)
    return isinstance(value, bool)


def _as_list(value: Any) -> Any:
    """A list stays one; no value is the empty list, a single value a list of one."""
    if isinstance(value, (list, tuple)):
        return value
    if value is None or value == "none":
        return []
    return [value]


def _as_words(value: Any) -> Any:
    """As :func:`_as_list`; a text is split at its commas, and must hold something."""
    if not isinstance(value, str) or value == "none":
        return _as_list(value)
    words = split_list(value)
    if not words:
        raise ValueError("it names nothing, as does a shell variable that is not set")
    return words


def _as_text(value: Any) -> Any:
    """A text with colons, such as ``buy:gauc``, which ``--set`` reads as a list."""
    return ":".join(map(str, value)) if isinstance(value, (list, tuple)) else value


Sizes = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_as_list)]
"""Widths of consecutive layers; written ``64:32`` in brackets, ``none`` for no layer."""

Floats = Annotated[tuple[float, ...], BeforeValidator(_as_list)]
"""A list of numbers, one a task as a rule; written ``1:2`` in brackets."""

Words = Annotated[tuple[str, ...], BeforeValidator(_as_words)]
"""A list of words; written with commas between them."""


def _check_path(value: Any) -> Any:
    if isinstance(value, (str, Path)) and (not str(value).strip() or "\0" in str(value)):
        raise ValueError("it is no path")
    return value


FolderPath = Annotated[Path, BeforeValidator(_check_path)]


def _check_devices(text: str) -> str:
    devices = text.split(",")
    is_one = re.fullmatch(r"auto|all|cpu|cuda(:(0|[1-9][0-9]{0,3}))?", text)
    are_several = all(re.fullmatch(r"cuda:(0|[1-9][0-9]{0,3})", device) for device in devices)
    if not is_one and (not are_several or len(set(devices)) < len(devices)):
        raise ValueError("write auto, cpu, cuda, cuda:1, cuda:0,cuda:1 or all")
    return text


Devices = Annotated[str, AfterValidator(_check_devices)]
"""One device, a list of GPUs with commas between them, or ``all`` of them."""


def read_interval(text: str) -> tuple[float | None, float | None]:
    """The seconds of a time such as ``90s``, ``10m`` or ``2h``, or else a share of a run such as
    ``0.1``: one of them is None.

    Raises:
        ValueError: It is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([smh]?)", text)
    if match is not None:
        number, unit = float(match[1]), match[2]
        if unit and number > 0:
            return number * {"s": 1, "m": 60, "h": 3600}[unit], None
        if not unit and 0 < number < 1:
            return None, number
    raise ValueError("write a time such as 10m, or a share of the run such as 0.1")


def _check_interval(value: Any) -> str:
    text = str(value)
    read_interval(text)
    return text


Interval = Annotated[str, BeforeValidator(_check_interval)]


def _as_choice(value: Any) -> Any:
    """What was written before there were choices: true is ``best``, false is ``none``."""
    return {True: "best", False: "none"}.get(value, value) if isinstance(value, bool) else value


# --- the settings of a run


class RowWeights(Settings):
    """How much rows count for a task, by the label of another one: its task space."""

    indicator: str = Field(description="the binary task whose positives are inside")
    inside: float = Field(1.0, ge=0, description="weight of rows whose indicator is positive")
    outside: float = Field(1.0, ge=0, description="weight of all other rows")
    mean: Literal["batch", "train"] = Field(
        "batch", description="the weights are divided by their mean: over the batch, or over train"
    )
    train_mean: float | None = Field(None, description="filled in where mean is train")


class TrainingSettings(Settings):
    """What moves the numbers of a run besides model and balancer: all is part of the cell's key."""

    # how long, and in which batches
    epochs: float = Field(
        6, gt=0, le=1e6, description="passes over the training split; may be a fraction"
    )
    batch_size: int = Field(1024, gt=0, description="rows per batch")

    # the optimiser
    optimizer: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    lr: float = Field(4e-3, gt=0, description="peak learning rate of the dense parameters")
    embedding_lr: float | None = Field(
        None, gt=0, description="learning rate of the embeddings, if another"
    )
    sparse_rows: int = Field(
        100_000,
        gt=0,
        description=(
            "embedding tables of at least so many rows get row-sparse gradients and a lazy "
            "optimiser, which leaves rows alone that a batch does not hold"
        ),
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd")

    # its learning rate over the run, penalties and the size of a step
    schedule: Literal["constant", "onecycle", "cosine", "linear"] = "onecycle"
    warmup: float = Field(0.3, ge=0, lt=1, description="share of the steps in which lr rises")
    l2_dense: float = Field(
        0.0, ge=0, description="L2 penalty (adamw: decoupled decay) of dense parameters"
    )
    l2_embedding: float = Field(0.0, ge=0, description="the same for embedding tables")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient")
    accumulate: int = Field(
        1, gt=0, description="batches whose gradients are averaged into one optimiser step"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    matmul: Literal["fp32", "tf32"] = Field(
        "fp32", description="of products on a GPU; tf32 reads 10 bits of each number, and is faster"
    )
    deterministic: bool = Field(
        False, description="the same numbers in every run on a GPU too, at a cost in speed"
    )

    # the balancer
    scope: Literal["dense", "all", "representation"] = Field(
        "dense",
        description=(
            "what the gradients of gradient-based balancers are taken by: shared dense parameters,"
            " all shared parameters, or the representation, which is what tasks share where they "
            "part (the outputs of experts or of a bottom, arXiv:1810.04650), or the embedding "
            "output in models that name no such place"
        ),
    )
    heads: Literal["weighted", "plain"] = Field(
        "weighted",
        description="whether parameters of one task alone receive that task's weight, or weight 1",
    )

    # the start
    init_from: str | None = Field(
        None, description="key of the run whose weights it starts from; see --init-from"
    )
    freeze: Words = Field(
        (), description="patterns of parameters that keep the weights of that run"
    )

    # evaluation and selection
    evaluations: int = Field(10, gt=0, description="least number of evaluation points a run")
    validation_rows: int | None = Field(
        None,
        gt=0,
        description=(
            "most validation rows that are scored at an evaluation point, a fixed random choice; "
            "the point that is picked is then scored on all of them; default: 50,000, or more as "
            "long as all points together score less than three tenths of the rows trained on"
        ),
    )
    patience: int | None = Field(
        None, gt=0, description="evaluation points without improvement before stopping early"
    )
    select: Annotated[str, BeforeValidator(_as_text)] = Field(
        "mean",
        description=(
            "what picks the best point on validation: mean or weighted over tasks, loss, or a "
            "task; of a metric other than the usual one: gauc, ndcg@5, weighted:logloss, buy:gauc"
        ),
    )
    select_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="task: weight, for select=weighted"
    )

    # what a single task gets
    task_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="task: factor on its loss, above 0"
    )
    task_lr: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="task: factor on the learning rate of the parameters that it alone reaches",
    )
    task_every: dict[str, Annotated[int, Field(gt=0)]] = Field(
        default_factory=dict, description="task: it takes part in every n-th step only"
    )

    loss: dict[str, Annotated[Words, Field(min_length=1)]] = Field(
        default_factory=dict,
        description="task: its losses, which are added up, such as bce or focal[gamma=2]",
    )
    row_weights: dict[str, RowWeights] = Field(
        default_factory=dict,
        description="task: weights of rows inside and outside of the positives of another task",
    )
    auxiliary: Words = Field((), description="tasks that are trained, and not reported")
    scored_by: dict[str, str] = Field(
        default_factory=dict,
        description="task: another one, by whose prediction it is reported; it is not trained",
    )

    # which rows meet in a batch
    batches: Literal["shuffled", "covering", "grouped"] = Field(
        "shuffled",
        description=(
            "covering: each batch holds rows and positives of every task, with importance weights; "
            "grouped: the rows of a session come together, for losses within sessions"
        ),
    )
    cover: int = Field(
        1, gt=0, description="least number of rows and positives of a task in a covering batch"
    )

    added_later: ClassVar[tuple[str, ...]] = (
        "loss",
        "row_weights",
        "auxiliary",
        "scored_by",
        "matmul",
        "deterministic",
    )
    """Settings that keys hold only where they are used, so that earlier runs keep their keys."""

    def of_key(self) -> dict[str, Any]:
        """What a cell's key holds, as plain values."""
        return without_unused(self, self.model_dump(mode="json"), self.added_later)

    def of_baselines(self) -> dict[str, Any]:
        """What the key of a baseline holds, where nothing is trained: what is said of tasks."""
        values = self.model_dump(mode="json", include={"row_weights", "auxiliary"})
        return {name: value for name, value in values.items() if value}

    def steps(self, train_rows: int) -> int:
        """The length of a run, in optimiser steps."""
        return max(1, round(self.epochs * train_rows / (self.batch_size * self.accumulate)))

    def repeats_rows(self, train_rows: int) -> str | None:
        """A sentence where one optimiser step takes more rows than there are, so that rows repeat
        within it and a run makes more passes than were asked for; None otherwise.
        """
        rows_per_step = self.batch_size * self.accumulate
        if rows_per_step <= train_rows:
            return None
        passes = self.steps(train_rows) * rows_per_step / train_rows
        batch_size = max(1, train_rows // self.accumulate)
        return (
            f"a step takes {rows_per_step:,} rows, but the training split has {train_rows:,}: rows "
            f"repeat within a step, and a run makes {passes:.3g} passes over the data where epochs "
            f"asks for {self.epochs:g}; choose batch_size={batch_size} or less"
        )


BY_TASK = (
    "select_weights",
    "task_weights",
    "task_lr",
    "task_every",
    "loss",
    "row_weights",
    "auxiliary",
    "scored_by",
)
"""Training settings that name tasks, as the keys of a mapping or in a list."""


def training_of_tasks(training: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """Training settings as plain values, without what they say of other tasks or leave empty."""
    kept = dict(training)
    for name in BY_TASK:
        values = kept.pop(name, None) or ()
        if isinstance(values, Mapping):
            mine: Any = {task: value for task, value in values.items() if task in tasks}
        else:
            mine = [task for task in values if task in tasks]
        if mine:
            kept[name] = mine
    return kept


class ExecutionSettings(Settings):
    """How cells are run. Recorded, but no part of a cell's identity."""

    # where, and how many at a time
    engine: Literal["local", "ray"] = Field(
        "local", description="where cells run: on this machine, or on a Ray cluster"
    )
    address: str | None = Field(
        None, description="of the Ray cluster; default: $RAY_ADDRESS, else one is started here"
    )
    device: Devices = Field("auto", description="auto, cpu, cuda, cuda:1, cuda:0,cuda:1 or all")
    jobs: int | None = Field(
        None, gt=0, description="cells at a time; default: one per core, one a slot of a GPU"
    )
    slots_per_gpu: int = Field(1, gt=0, le=64, description="cells at a time on each GPU")
    gpus_per_cell: float | None = Field(
        None,
        ge=0,
        le=64,
        description="share of a GPU that Ray gives a cell; default: that of a slot",
    )
    stack: Annotated[int, Field(gt=0, le=1024)] | Literal["auto"] = Field(
        1,
        description=(
            "most cells of one shape that are trained as one program; auto: 1 on a CPU, and as "
            "many as the memory of a GPU holds"
        ),
    )
    processes: int = Field(
        1, gt=0, le=4096, description="that train a cell together, each a block of every batch"
    )
    shard_rows: int | None = Field(
        None,
        gt=0,
        description=(
            "rows from which a table with row-sparse gradients is sharded over the processes of a "
            "cell by TorchRec; default: none is"
        ),
    )
    threads: int = Field(
        1,
        gt=0,
        description=(
            "of a cell on the CPU; a second one gains next to nothing at the usual sizes, and "
            "loses much where others use the cores"
        ),
    )

    # what is done about trouble
    timeout: float | None = Field(None, gt=0, description="seconds after which a cell is stopped")
    retries: int = Field(
        1,
        ge=0,
        le=100,
        description="how often a cell whose process was killed is run again, alone, at the end",
    )
    disk_wait: float = Field(
        600,
        ge=0,
        description="seconds that finished cells wait for room where results cannot be written",
    )

    # what is recorded and kept
    probes: bool = Field(True, description="record gradient cosines, gate usage and task weights")
    ablation: bool = Field(
        False, description="record what each expert is good for, at the end of a run"
    )
    save_scores: bool | None = Field(
        None, description="keep the scores of the test split; default: if it has at most 2^20 rows"
    )
    save_weights: Annotated[Literal["best", "last", "none"] | None, BeforeValidator(_as_choice)] = (
        Field(
            None,
            description=(
                "keep the weights of the best point or of the last step, and the encoders of rows "
                "with them; default: those of the best point if below 32 MiB"
            ),
        )
    )
    checkpoint_every: Interval | None = Field(
        None,
        description=(
            "write the state of a run so often, after a time (10m) or a share of the run (0.1), "
            "and when it is told to end; a run that was stopped goes on from there"
        ),
    )
    keep_checkpoints: bool = Field(
        False, description="keep the last checkpoint of a run that is done"
    )

    metrics: Words = Field(
        (),
        description="further metrics of the final scores: gauc@item, ndcg@5, f1@0.3, auc@user=cold",
    )

    # how
    init_from: FolderPath | None = Field(
        None, description="folder of the run whose weights to start from"
    )
    eval_batch_size: int = Field(8192, gt=0, description="rows per batch when scoring")
    compile: Literal["auto", "on", "graph", "off"] = Field(
        "off",
        description=(
            "torch.compile for what stands above the embedding; auto: on a GPU; graph: each step "
            "is one CUDA graph, which no GPU has run yet. On a CPU torch.compile does "
            "not pay: it compiles for most of a minute, later cells for some seconds, and trains "
            "1.0 to 1.1 times as fast, or half as fast where all vocabularies are small"
        ),
    )


# --- checking

S = TypeVar("S", bound=Settings)


def validate(
    settings_class: type[S], values: Mapping[str, Any], owner: str, hint: str | None = None
) -> S:
    """Build settings from plain values.

    Args:
        owner: Whose options these are, for messages: ``"model mmoe"``.
        hint: What to do about an error, instead of a list of the options.

    Raises:
        UsageError: A key is unknown or a value does not fit.
    """
    try:
        return settings_class.model_validate(dict(values))
    except ValidationError as error:
        names = list(settings_class.model_fields)
        message = _first_error(error, names, owner)
        options = f"its options are {', '.join(names)}" if names else "it takes no options"
        raise UsageError(message, hint or options) from None


def _first_error(error: ValidationError, names: list[str], owner: str) -> str:
    """One sentence about the first option that is wrong."""
    errors = error.errors(include_url=False)

    # an option of several types fails once for each: the longest path tells most
    first_option = errors[0]["loc"][:1]
    same_option = [entry for entry in errors if entry["loc"][:1] == first_option]
    deepest = max(same_option, key=lambda entry: len(entry["loc"]))

    # the path holds names of types as well; the user wrote only keys and positions
    path = [str(step) for step in deepest["loc"]]
    key = ".".join(step for step in path if "[" not in step and step != "constrained-int")

    if deepest["type"] == "extra_forbidden":
        guess = did_you_mean(nearest_names(key, names))
        return f"The {owner} has no option {key!r}.{guess}"
    reason = deepest["msg"].removeprefix("Value error, ")
    if deepest["type"] in ("dict_type", "model_type"):
        reason = "it holds key: value pairs"
    reason = reason[:1].lower() + reason[1:]
    if deepest["type"] == "value_error" and isinstance(deepest["input"], Mapping):
        return f"The option {key!r} of the {owner} does not hold: {reason}."
    return f"The option {key!r} of the {owner} cannot be {short_repr(deepest['input'])}: {reason}."
