"""Data set blocks and groups: what may share a table, what is one row of it, and their titles."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtlkit.errors import MtlkitError
from mtlkit.metrics.definitions import PRIMARY_METRIC, Metric, reading
from mtlkit.records import NO_BALANCER, RunRecord
from mtlkit.registry import BALANCERS, MODELS, NO_FACTS, Facts, Registry, is_baseline
from mtlkit.spec import Spec, digest, flatten, parse_spec
from mtlkit.store import printable
from mtlkit.studies import Studies, Study, budget_note

FAMILIES = {
    "losses": "from losses",
    "norms": "from gradient norms",
    "gram": "from inner products of gradients",
    "rows": "from whole gradients",
}
"""What a balancer asks of a step, and how its family is called."""


@dataclass(frozen=True)
class TaskInfo:
    """What is measured, a task or another score of a funnel, as a report names it."""

    name: str  # in records
    metric: str  # the primary one
    space: str = "all rows"  # the rows that count
    description: str = ""  # of the data set
    label: str = ""  # in tables and figures; the name, if empty
    trained: str = ""  # the task that is trained for it; itself, if empty
    hidden: bool = False  # whether it needs labels that only a generator knows
    # What the planted model of simulated data reaches on the test split; NaN where that is unknown.
    ceiling: float = math.nan
    kind: str = ""  # of the task, such as ``binary``; empty if unknown
    # What a random order of the test rows reaches, where that follows from them; NaN where the
    # metric's own floor holds.
    floor: float = math.nan

    @property
    def title(self) -> str:
        return printable(self.label or self.name)

    @property
    def reading(self) -> Metric:
        """How the primary metric is read."""
        metric = reading(printable(self.metric))
        return metric if math.isnan(self.floor) else replace(metric, floor=self.floor)


@dataclass(frozen=True)
class RunGroup:
    """The runs of one row: the same settings, several seeds."""

    id: str  # ``RunRecord.group``
    # Label of the model: its name, what the user typed, and what tells it from a namesake.
    model: str
    balancer: str  # the same of the balancer
    balancer_name: str  # the recorded name of the balancer; a plugin's is the path of its file
    is_reference: bool  # whether other models are compared with this one
    is_baseline: bool  # whether it is no network, and so none of the methods that are compared
    constant_weights: bool  # whether the balancer's weights are the same in all steps
    # The option that holds those weights, in a method that is a point of a sweep.
    weights_option: str | None
    training: str  # digest of the training settings; of tuned ones, of those before tuning
    seeds: tuple[int, ...]  # seeds that finished
    failed: tuple[int, ...]  # seeds that did not
    # All settings but the data set's.
    resolved: dict[str, Any] = field(compare=False, default_factory=dict)
    typed: tuple[str, str] = ("", "")  # model and balancer as they were typed
    # Options that were typed for all methods, and the folder of the run to start from, by the names
    # that ``--set`` takes.
    common: dict[str, Any] = field(compare=False, default_factory=dict)
    forced: bool = False  # whether the model does not apply to the data
    # What chose the settings; none if they were typed.
    studies: tuple[Study, ...] = field(compare=False, default=())
    family: str = ""  # from what the balancer makes its weights, in words; empty if unknown

    @property
    def label(self) -> str:
        return f"{self.model} + {self.balancer}" if self.has_balancer else self.model

    @property
    def study(self) -> Study | None:
        """Of several studies with one choice, the one that tried most."""
        return self.studies[0] if self.studies else None

    @property
    def has_balancer(self) -> bool:
        return self.balancer_name != NO_BALANCER


@dataclass(frozen=True)
class Block:
    """One data set with one protocol, one list of tasks and one content: what a table may hold."""

    id: str
    name: str
    title: str
    slug: str
    protocol: str | None
    fingerprint: str
    simulated: bool
    tasks: tuple[TaskInfo, ...]
    groups: tuple[RunGroup, ...]
    typed: str = ""
    data: str = ""  # digest of data set, options and contents, whichever of its tasks were trained
    task_names: tuple[str, ...] = ()
    """The tasks that were trained, those that are not reported included."""

    @property
    def label(self) -> str:
        """The title, with what must be said wherever a reader sees numbers of this block."""
        return self.title + self.mark

    @property
    def mark(self) -> str:
        """That the data is simulated; nothing for real data."""
        return " (simulated data)" if self.simulated else ""

    @property
    def budget(self) -> tuple[str, ...]:
        """A note on what tuning has spent on the rows, if they are tuned."""
        note = budget_note([study for group in self.groups for study in group.studies])
        return (note,) if note else ()

    @property
    def comparable(self) -> tuple[TaskInfo, ...]:
        """The scores by which rows are compared: all but those that no model can be trained for."""
        return tuple(task for task in self.tasks if not task.hidden)

    @property
    def methods(self) -> tuple[RunGroup, ...]:
        """The groups that are compared: all but baselines, unless there is nothing else."""
        return tuple(group for group in self.groups if not group.is_baseline) or self.groups

    @property
    def task_of(self) -> dict[str, str]:
        """Score to the task whose label it is compared with."""
        return {task.name: task.trained or task.name for task in self.tasks}

    @property
    def trained(self) -> int:
        """Number of tasks that were trained; on a funnel more scores than that are measured."""
        return len(set(self.task_of.values()))


def block_id(record: RunRecord) -> str:
    """Digest of what may share a table: data set, options, tasks, contents, scoring."""
    dataset = record.cell.data or {}
    keys = ("name", "options", "tasks", "fingerprint", "funnel_scoring")
    return digest([dataset.get(key) for key in keys])


def make_block(key: str, records: list[RunRecord], studies: Studies) -> Block:
    """The block of all records with one block id, and what studies say of them."""
    cell = records[0].cell
    dataset = cell.resolved.get("dataset", {})
    name = printable(Path(str(dataset.get("name") or parse_spec(cell.dataset).name)).stem)
    options = dataset.get("options") or {}
    protocol = printable(str(options["protocol"])) if options.get("protocol") else None
    tasks = _tasks(records)
    trained = dict.fromkeys(task.trained or task.name for task in tasks)
    return Block(
        id=key,
        name=name,
        title=f"{name}, protocol {protocol}" if protocol else name,
        slug=slug("-".join(filter(None, [name, protocol, *trained]))),
        protocol=protocol,
        fingerprint=str(dataset.get("fingerprint") or ""),
        simulated=bool(dataset.get("simulated", False)),
        tasks=tasks,
        groups=_groups(records, studies),
        typed=cell.dataset,
        data=digest([(cell.data or {}).get(key) for key in ("name", "options", "fingerprint")]),
        task_names=tuple(map(printable, map(str, dataset.get("tasks") or trained))),
    )


def _tasks(records: list[RunRecord]) -> tuple[TaskInfo, ...]:
    """The tasks of a block: as described by its finished records, else by name alone."""
    tasks: dict[str, TaskInfo] = {}

    # described
    for record in records:
        for task in record.tasks:
            if task["name"] not in tasks:
                tasks[task["name"]] = _described(task)

    # measured
    for record in records:
        for name, values in record.metrics.get("test", {}).items():
            if name in tasks:
                continue
            metric = next((metric for metric in PRIMARY_METRIC.values() if metric in values), "auc")
            tasks[name] = TaskInfo(name, metric, printable(values.get("space") or "all rows"))

    # only planned: no run has finished
    if not tasks:
        for planned in records[0].cell.resolved.get("dataset", {}).get("tasks") or []:
            name = str(planned["name"]) if isinstance(planned, Mapping) else str(planned)
            tasks[name] = TaskInfo(name, "score")  # of which kind it is, nobody noted

    ceiling = {name: value for record in records for name, value in record.cell.ceiling.items()}
    return tuple(replace(task, ceiling=ceiling.get(task.name, math.nan)) for task in tasks.values())


def _described(task: Mapping[str, Any]) -> TaskInfo:
    """A task as a record describes it."""
    return TaskInfo(
        name=task["name"],
        metric=task.get("metric") or PRIMARY_METRIC.get(task.get("kind", ""), "auc"),
        space=printable(task.get("space") or "all rows"),
        description=printable(task.get("description") or ""),
        label=task.get("label") or "",
        trained=task.get("task") or "",
        hidden=bool(task.get("hidden")),
        kind=str(task.get("kind") or ""),
    )


def _groups(records: list[RunRecord], studies: Studies) -> tuple[RunGroup, ...]:
    """The groups of a block, the reference first."""
    by_group: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_group[record.group].append(record)

    namesakes: dict[tuple[str, str], list[RunGroup]] = defaultdict(list)
    for key, members in by_group.items():
        group = _tuned(_group(key, members), studies)
        namesakes[group.model, group.balancer].append(group)

    groups = [group for same in namesakes.values() for group in _tell_apart(same)]
    groups.sort(key=lambda group: (not group.is_reference, group.model, group.balancer))
    return tuple(groups)


def _group(key: str, records: list[RunRecord]) -> RunGroup:
    """The group of all records with one digest of their settings."""
    # records of an earlier version do not say what was given for all methods
    cell = max((record.cell for record in records), key=lambda c: "common" in c.model_fields_set)
    resolved = {part: value for part, value in cell.resolved.items() if part != "dataset"}
    model = _shortest(record.cell.model for record in records)
    balancer = _shortest(record.cell.balancer for record in records)
    model_facts = _facts(MODELS, resolved.get("model", {}))
    balancer_facts = _facts(BALANCERS, resolved.get("balancer", {}))
    finished = {record.cell.seed for record in records if record.ok}
    return RunGroup(
        id=key,
        model=printable(f"{model}{_share_of_rows(records)}"),
        balancer=printable(str(balancer)),
        balancer_name=resolved.get("balancer", {}).get("name", balancer.name),
        is_reference=bool(model_facts.attributes.get("is_reference")),
        is_baseline=is_baseline(str(model.name)),
        constant_weights=bool(balancer_facts.attributes.get("constant_weights")),
        weights_option=balancer_facts.attributes.get("weights_option"),
        training=digest(cell.resolved.get("training", {})),
        seeds=tuple(sorted(finished)),
        failed=tuple(sorted({record.cell.seed for record in records} - finished)),
        resolved=resolved,
        typed=(cell.model, cell.balancer),
        common=cell.common,
        forced=cell.forced,
        family=_family(balancer_facts),
    )


def _share_of_rows(records: list[RunRecord]) -> str:
    """What a label says of a baseline that was not fitted on all rows; empty for all others."""
    for record in records:
        fitted, labelled = (record.cost.get(f"{name}_rows") for name in ("fitted", "labelled"))
        if isinstance(fitted, int) and isinstance(labelled, int):
            return f" ({fitted:,} of {labelled:,} rows)"
    return ""


def _family(balancer: Facts) -> str:
    """From what a balancer makes its weights, in words; empty for one that is gone."""
    if balancer is NO_FACTS:
        return ""
    if balancer.attributes.get("constant_weights"):
        return "fixed weights"
    inherited = "gram" if "GramBalancer" in balancer.bases else "losses"
    return FAMILIES.get(balancer.attributes.get("needs", inherited), "")


def _tuned(group: RunGroup, studies: Studies) -> RunGroup:
    """A group as a study names it. All that one grid has tuned is compared with each other, though
    it was trained in different ways.
    """
    chosen = studies.chosen.get(group.id)
    if chosen:
        study = chosen[0]
        balancer = printable(study.balancer)
        training = f"tuned from {study.training}"
        return replace(
            group,
            model=printable(study.model),
            balancer=balancer,
            training=training,
            typed=(study.model, study.balancer),
            studies=chosen,
        )
    if group.id in studies.defaults:
        return replace(group, model=f"{group.model} (untuned)")
    return group


def _facts(registry: Registry, method: Mapping[str, Any]) -> Facts:
    """What a method says of itself; nothing for a plugin file that is gone or was changed."""
    name = str(method.get("name", ""))
    try:
        source_digest = registry.source_digest(name)
    except OSError:
        return NO_FACTS
    if source_digest != method.get("source_sha256"):
        return NO_FACTS
    return registry.facts(name)


def _shortest(texts: Iterable[str]) -> Spec:
    """Of several spellings of the same settings, the one with the fewest words; plugins by their
    file's stem.
    """
    specs = []
    for spec in map(recorded_spec, sorted(set(texts))):
        if spec.name.endswith(".py"):
            spec = replace(spec, name=Path(spec.name).stem)
        specs.append(spec)
    return min(specs, key=lambda spec: (len(str(spec)), str(spec)))


def recorded_spec(text: str) -> Spec:
    """What a file says was typed; all of it is the name where it cannot be read."""
    try:
        return parse_spec(text)
    except MtlkitError:
        return Spec(text)


def _tell_apart(same: list[RunGroup]) -> list[RunGroup]:
    """Add to the labels of namesakes the settings in which they differ."""
    if len(same) == 1:
        return same

    # the keys whose values are not the same in all groups
    settings = [dict(flatten(group.resolved)) for group in same]
    keys = sorted({key for values in settings for key in values})
    differing = [key for key in keys if len({str(values.get(key)) for values in settings}) > 1]

    labelled = []
    for group, values in zip(same, settings, strict=True):
        model = [_setting(key, values) for key in differing if not key.startswith("balancer.")]
        balancer = [_setting(key, values) for key in differing if key.startswith("balancer.")]
        labelled.append(
            replace(
                group,
                model=group.model + _suffix(model),
                balancer=group.balancer + _suffix(balancer),
            )
        )
    return labelled


def _setting(key: str, values: Mapping[str, Any]) -> str:
    """One setting as a label shows it: its own name, and its value."""
    value = values.get(key)
    if value is None:
        shown = "none"
    else:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    for prefix in ("training.", "model.options.", "balancer.options."):
        key = key.removeprefix(prefix)
    return printable(f"{key}={shown}")


def _suffix(settings: list[str]) -> str:
    return f" ({', '.join(settings)})" if settings else ""


def slug(text: str) -> str:
    """A text as a part of file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")


def distinct(blocks: list[Block]) -> list[Block]:
    """Give blocks of one title what they differ in as a distinction: their tasks, the options that
    were typed, or else a digest of their contents; and every file its own name.
    """
    for sign in (_tasks_sign, _options_sign, _contents_sign):
        signs: dict[str, set[str]] = {}
        for block in blocks:
            signs.setdefault(block.title, set()).add(sign(block))
        blocks = [
            replace(block, title=block.title + sign(block) * (len(signs[block.title]) > 1))
            for block in blocks
        ]

    slugs = Counter(block.slug for block in blocks)
    suffixes = [f"-{block.id[:6]}" * (slugs[block.slug] > 1) for block in blocks]
    return [
        replace(block, slug=block.slug + suffix)
        for block, suffix in zip(blocks, suffixes, strict=True)
    ]


def _tasks_sign(block: Block) -> str:
    return f", tasks {', '.join(task.title for task in block.tasks)}"


def _options_sign(block: Block) -> str:
    _, bracket, options = block.typed.partition("[")
    return printable(f",{options[:-1]}").replace(",", ", ") if bracket else ""


def _contents_sign(block: Block) -> str:
    return f", version {block.id[:6]}"
