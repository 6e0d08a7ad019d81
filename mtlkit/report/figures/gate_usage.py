"""Mean weight of every expert in every gate at the end of the run: a figure a model."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.colors import Normalize

from mtlkit.report.figures.context import Context
from mtlkit.report.figures.expert_grid import ExpertFigure, Level, Scale, by_model, draw_model
from mtlkit.report.figures.sheet import Drawing
from mtlkit.report.figures.style import SEQUENTIAL
from mtlkit.report.probe_frames import Probes

CAPTION = (
    "How {model} uses its experts at the last evaluation point: the mean gate weight of each "
    "expert (column) in each gate (row), averaged over the validation split and over seeds; a row "
    "sums to 1. {levels}Rows that look alike mean that the tasks share experts; different ones, "
    "that they specialise. Crossed fields are experts that a gate cannot see."
)


def draw(context: Context) -> list[Drawing]:
    """One drawing a model with gates."""
    shown = [(row, levels_of(probes)) for row, probes in context.probed() if probes.gates]
    drawings = []
    for model, rows in by_model(shown).items():
        # The colours end at the next tenth above the largest weight.
        largest = max(float(np.nanmax(level.values)) for _, levels in rows for level in levels)
        end = min(1.0, float(np.ceil(largest * 10)) / 10)
        scale = Scale(
            SEQUENTIAL, Normalize(0, end), [0, end / 2, end], "mean gate weight", "{:.2f}".format
        )
        figure = ExpertFigure("gates", "Use of experts", CAPTION, scale)
        drawings.append(draw_model(context, model, rows, figure))
    return drawings


def split_gate(name: str) -> tuple[str, str]:
    """``level-1/income`` is the gate ``income`` of ``level 1``."""
    level, slash, gate = name.partition("/")
    return (level.replace("-", " "), gate) if slash else ("", name)


def levels_of(probes: Probes) -> list[Level]:
    """The gates of one group, level by level."""
    by_level: dict[str, list[str]] = {}
    for name in probes.gates:
        level, _ = split_gate(name)
        by_level.setdefault(level, []).append(name)

    levels = []
    for level, names in sorted(by_level.items()):
        seen = {expert for name in names for expert in probes.gates[name].experts}
        experts = tuple(sorted(seen, key=_expert_order))
        # NaN where a gate does not see an expert.
        weights = np.full((len(names), len(experts)), np.nan)
        for line, name in enumerate(names):
            gate = probes.gates[name]
            columns = [experts.index(expert) for expert in gate.experts]
            weights[line, columns] = probes.last(gate.mean)
        gates = tuple(split_gate(name)[1] for name in names)
        levels.append(Level(level, gates, experts, weights))
    return levels


def _expert_order(name: str) -> tuple[bool, str, int]:
    """Shared experts last, numbers as numbers."""
    match = re.fullmatch(r"(.*?)\s*(\d+)", name)
    stem, number = (match.group(1), int(match.group(2))) if match else (name, 0)
    return stem.startswith("shared"), stem, number
