"""Data set blocks and groups: what may share a table, what is one row of it, and how both are
called.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtlkit.errors import MtlkitError
from mtlkit.records import METRICS, PRIMARY_METRIC, Metric, RunRecord
from mtlkit.spec import Spec, digest, parse_spec

REFERENCE_MODEL = "single-task"


@dataclass(frozen=True)
class TaskInfo:
    """What is measured, a task or another score of a funnel, as a report names it.

    Args:
        name: In records.
        metric: The primary one.
        space: The rows that count.
        description: Of the data set.
        label: In tables and figures; the name, if empty.
        trained: The task that is trained for it; itself, if empty.
        ceiling: What the planted model of simulated data reaches on the test split; NaN where that
            is unknown.
    """

    name: str
    metric: str
    space: str = "all rows"
    description: str = ""
    label: str = ""
    trained: str = ""
    ceiling: float = math.nan

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def reading(self) -> Metric:
        """How the primary metric is read."""
        return METRICS.get(self.metric) or Metric(self.metric, True)


@dataclass(frozen=True)
class RunGroup:
    """The runs of one row: the same settings, several seeds.

    Args:
        id: ``RunRecord.group``.
        model: Label of the model: its name, what the user typed, and what tells it from a namesake.
        balancer: The same of the balancer.
        model_name: The bare name.
        balancer_name: The bare name.
        training: Digest of the training settings.
        seeds: Seeds that finished.
        failed: Seeds that did not.
        resolved: All settings but the data set's.
    """

    id: str
    model: str
    balancer: str
    model_name: str
    balancer_name: str
    training: str
    seeds: tuple[int, ...]
    failed: tuple[int, ...]
    resolved: dict[str, Any] = field(compare=False, default_factory=dict)

    @property
    def label(self) -> str:
        return self.model if self.balancer_name == "none" else f"{self.model} + {self.balancer}"

    @property
    def is_reference(self) -> bool:
        return self.model_name == REFERENCE_MODEL


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

    @property
    def label(self) -> str:
        """The title, with what must be said wherever a reader sees numbers of this block."""
        return self.title + self.mark

    @property
    def mark(self) -> str:
        """That the data is simulated; nothing for real data."""
        return " (simulated data)" if self.simulated else ""

    @property
    def trained(self) -> int:
        """Number of tasks that were trained; on a funnel more scores than that are measured."""
        return len({task.trained or task.name for task in self.tasks})


def block_id(record: RunRecord) -> str:
    """Digest of what may share a table: data set, options, tasks, contents."""
    dataset = record.cell.resolved.get("dataset", {})
    return digest([dataset.get(key) for key in ("name", "options", "tasks", "fingerprint")])


def make_block(key: str, records: list[RunRecord]) -> Block:
    """The block of all records with one block id."""
    dataset = records[0].cell.resolved.get("dataset", {})
    name = Path(str(dataset.get("name") or parse_spec(records[0].cell.dataset).name)).stem
    protocol = (dataset.get("options") or {}).get("protocol")
    tasks = _tasks(records)
    title = f"{name}, protocol {protocol}" if protocol else name
    trained = dict.fromkeys(task.trained or task.name for task in tasks)
    return Block(
        id=key,
        name=name,
        title=title,
        slug=slug("-".join(filter(None, [name, protocol, *trained]))),
        protocol=protocol,
        fingerprint=str(dataset.get("fingerprint") or ""),
        simulated=bool(dataset.get("simulated", False)),
        tasks=tasks,
        groups=_groups(records),
    )


def _tasks(records: list[RunRecord]) -> tuple[TaskInfo, ...]:
    """The tasks of a block: as described by its finished records, else by name alone."""
    ceiling = {name: value for record in records for name, value in record.cell.ceiling.items()}
    known: dict[str, TaskInfo] = {}
    for record in records:
        for task in record.tasks:
            metric = task.get("metric") or PRIMARY_METRIC.get(task.get("kind", ""), "auc")
            known.setdefault(
                task["name"],
                TaskInfo(
                    task["name"],
                    metric,
                    task.get("space") or "all rows",
                    task.get("description") or "",
                    task.get("label") or "",
                    task.get("task") or "",
                ),
            )
    for record in records:
        for name, values in record.metrics.get("test", {}).items():
            metric = next((metric for metric in PRIMARY_METRIC.values() if metric in values), "auc")
            known.setdefault(name, TaskInfo(name, metric, values.get("space") or "all rows"))
    if not known:
        listed = records[0].cell.resolved.get("dataset", {}).get("tasks") or []
        names = [str(task["name"]) if isinstance(task, Mapping) else str(task) for task in listed]
        known = {name: TaskInfo(name, "auc") for name in names}
    return tuple(replace(task, ceiling=ceiling.get(task.name, math.nan)) for task in known.values())


def _groups(records: list[RunRecord]) -> tuple[RunGroup, ...]:
    by_group: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_group[record.group].append(record)
    groups = [_group(key, members) for key, members in by_group.items()]
    namesakes: dict[tuple[str, str], list[RunGroup]] = defaultdict(list)
    for group in groups:
        namesakes[group.model, group.balancer].append(group)
    told_apart = [group for same in namesakes.values() for group in _tell_apart(same)]
    return tuple(
        sorted(told_apart, key=lambda group: (not group.is_reference, group.model, group.balancer))
    )


def _group(key: str, records: list[RunRecord]) -> RunGroup:
    cell = records[0].cell
    resolved = {part: value for part, value in cell.resolved.items() if part != "dataset"}
    model = _shortest(record.cell.model for record in records)
    balancer = _shortest(record.cell.balancer for record in records)
    done = {record.cell.seed for record in records if record.ok}
    return RunGroup(
        id=key,
        model=str(model),
        balancer=str(balancer),
        model_name=model.name,
        balancer_name=balancer.name,
        training=digest(cell.resolved.get("training", {})),
        seeds=tuple(sorted(done)),
        failed=tuple(sorted({record.cell.seed for record in records} - done)),
        resolved=resolved,
    )


def _shortest(texts: Iterable[str]) -> Spec:
    """Of several spellings of the same settings, the one with the fewest words; plugins by their
    file's stem.
    """
    specs = []
    for text in sorted(set(texts)):
        try:
            spec = parse_spec(text)
        except MtlkitError:
            spec = Spec(text)
        specs.append(
            Spec(Path(spec.name).stem if spec.name.endswith(".py") else spec.name, spec.options)
        )
    return min(specs, key=lambda spec: (len(str(spec)), str(spec)))


def _tell_apart(same: list[RunGroup]) -> list[RunGroup]:
    """Add to the labels of namesakes the settings in which they differ."""
    if len(same) == 1:
        return same
    flat = [dict(flatten(group.resolved)) for group in same]
    keys = sorted({key for values in flat for key in values})
    differing = [key for key in keys if len({str(values.get(key)) for values in flat}) > 1]
    labelled = []
    for group, values in zip(same, flat, strict=True):
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
    short = (
        key.removeprefix("training.")
        .removeprefix("model.options.")
        .removeprefix("balancer.options.")
    )
    value = values.get(key)
    shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return f"{short}={shown}"


def _suffix(settings: list[str]) -> str:
    return f" ({', '.join(settings)})" if settings else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested settings under dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def slug(text: str) -> str:
    """A text as a part of file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")


def distinct(blocks: list[Block]) -> list[Block]:
    """Give blocks of one title their tasks, or else their contents, as a distinction; and every
    file its own name.
    """
    titles = Counter(block.title for block in blocks)
    blocks = [
        replace(
            block, title=f"{block.title}, tasks {', '.join(task.title for task in block.tasks)}"
        )
        if titles[block.title] > 1
        else block
        for block in blocks
    ]
    titles = Counter(block.title for block in blocks)
    slugs = Counter(block.slug for block in blocks)
    return [
        replace(
            block,
            title=block.title + (f", version {block.id[:6]}" if titles[block.title] > 1 else ""),
            slug=block.slug + (f"-{block.id[:6]}" if slugs[block.slug] > 1 else ""),
        )
        for block in blocks
    ]
