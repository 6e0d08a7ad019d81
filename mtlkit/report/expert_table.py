"""The table of expert use: how far tasks share experts, how many count, how many are idle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtlkit.report.experts import (
    IDLE_LOSS,
    ExpertLevel,
    effective_number,
    idle_in_gates,
    idle_share,
    levels_of,
    overlap,
    shares,
)
from mtlkit.report.probe_frames import Probes
from mtlkit.report.statistics import Interval, t_interval
from mtlkit.report.summary import Row, Summary
from mtlkit.report.tables import NOTES, Table, TableCell, csv_interval, csv_key, spread

GATE_COLUMNS = ("gate overlap", "effective experts", "idle experts")
ABLATION_COLUMNS = ("overlap of losses", "experts that matter", "idle by ablation")
GATE_NOTES = (
    "At the last evaluation point, with mean gate weights p of the validation split. All columns "
    "are the same for any order of the experts: they are computed run by run, then averaged.",
    "gate overlap: the sum over experts of the smaller p, averaged over pairs of the tasks' gates. "
    "1: tasks mix the experts alike; 0: no two share an expert.",
    "effective experts: the exponential of the entropy of p, averaged over the level's gates; k "
    "where k experts are used alike.",
    "idle experts: the share of the level's experts that no gate gives a tenth of an equal share.",
)
ABLATION_NOTES = (
    "The last three columns say the same of what each task's metric loses when an expert's output "
    "is taken to be 0, as shares of the task's sum of losses; idle here is an expert without which "
    f"no task loses {IDLE_LOSS:g}.",
)


@dataclass(frozen=True)
class ExpertUse:
    """One level of one row: column to its mean and interval over seeds."""

    row: Row
    level: ExpertLevel
    columns: Mapping[str, Interval]


def expert_use(summary: Summary, probes: Mapping[str, Probes]) -> list[ExpertUse]:
    """A line a row and level, in the order of the rows; empty without experts."""
    uses = []
    for row in summary.rows:
        probed = probes.get(row.group.id)
        if probed is None:
            continue
        for level in levels_of(probed):
            columns = {**_gate_columns(level, probed.tasks), **_ablation_columns(level)}
            uses.append(ExpertUse(row, level, columns))
    return uses


def _gate_columns(level: ExpertLevel, tasks: tuple[str, ...]) -> dict[str, Interval]:
    if not level.gates:
        return {}
    # a gate that is no task's, such as that of a shared path, does not count as sharing
    of_tasks = [line for line, gate in enumerate(level.gates) if gate in tasks]
    used = shares(level.weights)
    by_seed = (
        overlap(used[:, of_tasks] if len(of_tasks) > 1 else used),
        effective_number(used),
        idle_share(idle_in_gates(level.weights)),
    )
    return _intervals(GATE_COLUMNS, by_seed)


def _ablation_columns(level: ExpertLevel) -> dict[str, Interval]:
    if not level.has_ablation:
        return {}
    recorded = level.losses[np.isfinite(level.losses).any(axis=(1, 2))]
    lost = shares(recorded)
    by_seed = (overlap(lost), effective_number(lost), idle_share(~(recorded >= IDLE_LOSS)))
    return _intervals(ABLATION_COLUMNS, by_seed)


def _intervals(columns: tuple[str, ...], by_seed: tuple[np.ndarray, ...]) -> dict[str, Interval]:
    return {
        column: t_interval(values.tolist()) for column, values in zip(columns, by_seed, strict=True)
    }


def expert_table(summary: Summary, uses: list[ExpertUse]) -> Table:
    """The lines as a table for page, Markdown and LaTeX."""
    ablated = any(use.level.has_ablation for use in uses)
    columns = (*GATE_COLUMNS, *(ABLATION_COLUMNS if ablated else ()))
    rows = []
    for use in uses:
        names = (use.row.group.model, use.row.group.balancer, use.level.name)
        numbers = [spread(use.columns.get(column, Interval()), 3) for column in columns]
        texts = (*names, str(len(use.level.experts)), *numbers)
        rows.append(tuple(map(TableCell, texts)))
    notes = (
        NOTES["interval"],
        *GATE_NOTES,
        *(ABLATION_NOTES if ablated else ()),
        *summary.block.budget,
    )
    title = f"{summary.block.label}: use of experts"
    return Table(title, ("model", "balancer", "level", "experts", *columns), tuple(rows), notes)


def expert_rows(summary: Summary, uses: list[ExpertUse]) -> list[dict[str, object]]:
    """The same as plain values: one line a model x balancer x level x column."""
    rows: list[dict[str, object]] = []
    for use in uses:
        for column, interval in use.columns.items():
            rows.append(
                {
                    **csv_key(summary.block, use.row.group),
                    "level": use.level.name,
                    "experts": len(use.level.experts),
                    "quantity": column,
                    **csv_interval(interval),
                    "seeds": interval.n,
                }
            )
    return rows
