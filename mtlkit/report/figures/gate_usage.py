"""Mean weight of every expert in every gate at the end of the run: a figure a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from mtlkit.config import digest
from mtlkit.report.figures.style import (
    INK,
    MUTED,
    SEQUENTIAL,
    WIDTH,
    Context,
    Drawing,
    Sheet,
    contrast,
    shorten,
    text_width,
)
from mtlkit.report.probes import Probes
from mtlkit.report.summary import Row

CAPTION = (
    "How {model} uses its experts at the last evaluation point: the mean gate weight of each expert (column) in each "
    "gate (row), averaged over the validation split and over seeds; a row sums to 1. {levels}Rows that look alike mean "
    "that the tasks share experts; different ones, that they specialise. Crossed fields are experts that a gate cannot "
    "see."
)
CELL, ROW, GAP = 0.44, 0.27, 0.3


@dataclass(frozen=True)
class Level:
    """One level of a model under one balancer: gates x experts."""

    name: str
    gates: tuple[str, ...]
    experts: tuple[str, ...]
    share: np.ndarray


def draw(context: Context) -> list[Drawing]:
    """One drawing a model with gates."""
    shown = [(row, levels_of(probes)) for row, probes in context.probed() if probes.gates]
    models = list(dict.fromkeys(row.group.model for row, _ in shown))
    return [_model(context, model, [pair for pair in shown if pair[0].group.model == model]) for model in models]


def split_gate(name: str) -> tuple[str, str]:
    """``level-1/income`` is the gate ``income`` of ``level 1``."""
    level, slash, gate = name.partition("/")
    return (level.replace("-", " "), gate) if slash else ("", name)


def levels_of(probes: Probes) -> list[Level]:
    """The gates of one group, level by level."""
    by_level: dict[str, list[str]] = {}
    for name in probes.gates:
        by_level.setdefault(split_gate(name)[0], []).append(name)
    levels = []
    for level, names in sorted(by_level.items()):
        experts = tuple(sorted({expert for name in names for expert in probes.gates[name].experts}, key=_expert_order))
        share = np.full((len(names), len(experts)), np.nan)
        for line, name in enumerate(names):
            gate = probes.gates[name]
            columns = [experts.index(expert) for expert in gate.experts]
            share[line, columns] = probes.last(gate.mean)
        levels.append(Level(level, tuple(split_gate(name)[1] for name in names), experts, share))
    return levels


def _expert_order(name: str) -> tuple[bool, str, int]:
    """Shared experts last, numbers as numbers."""
    match = re.fullmatch(r"(.*?)\s*(\d+)", name)
    stem, number = (match.group(1), int(match.group(2))) if match else (name, 0)
    return stem.startswith("shared"), stem, number


def _model(context: Context, model: str, shown: list[tuple[Row, list[Level]]]) -> Drawing:
    levels = shown[0][1]
    label = min(max(text_width(gate, 7.5) for level in levels for gate in level.gates), 1.1) + 0.14
    foot = 0.7 * min(max(text_width(expert, 7) for level in levels for expert in level.experts), 1.1) + 0.16
    widest = max(len(level.experts) for level in levels)
    cell = min(CELL, (WIDTH - 0.3 - label) / widest)
    widths = [label + cell * len(level.experts) for level in levels]
    stacked = sum(widths) + GAP * (len(levels) - 1) > WIDTH - 0.2
    unit = max(widths) if stacked else sum(widths) + GAP * (len(levels) - 1)
    named = 0.2 if len(levels) > 1 else 0.0
    heights = [named + ROW * len(level.gates) + foot for level in levels]
    pitch = 0.26 + (sum(heights) if stacked else max(heights)) + 0.08
    columns = max(1, min(len(shown), int((WIDTH - 0.2 + GAP) / (unit + GAP))))
    rows = -(-len(shown) // columns)
    sheet = Sheet(f"Use of experts: {model}", context.subtitle, pitch * rows)
    top = max(float(np.nanmax(level.share)) for _, of in shown for level in of)
    end = min(1.0, float(np.ceil(top * 10)) / 10)
    norm = Normalize(0, end)
    image = None
    for place, (row, of) in enumerate(shown):
        line, column = divmod(place, columns)
        left, up = 0.1 + column * (unit + GAP), pitch * line
        sheet.text(left, up + 0.17, shorten(row.group.balancer, 9, unit, bold=True), size=9, weight="bold", va="bottom")
        for level, width, height in zip(of, widths, heights, strict=True):
            size = (cell * len(level.experts), ROW * len(level.gates))
            axes = sheet.axes(left + label, up + 0.26 + named, *size)
            image = _panel(axes, level, norm, label, cell, named=named > 0)
            left, up = (left, up + height) if stacked else (left + width + GAP, up)
    sheet.colourbar(image, "mean gate weight", [0, end / 2, end])
    note = "Levels run from the input to the towers, the last one feeds the towers. " if len(levels) > 1 else ""
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    if slug != model.lower():  # two models may differ in signs only, and a file name may not be too long
        slug = f"{slug[:40].strip('-')}-{digest(model)[:6]}"
    return Drawing(f"gates-{slug}", f"Use of experts: {model}", CAPTION.format(model=model, levels=note), sheet.figure)


def _panel(axes: Axes, level: Level, norm: Normalize, label: float, cell: float, named: bool) -> object:
    axes.set_facecolor("#eef0f2")
    image = axes.imshow(level.share, cmap=SEQUENTIAL, norm=norm, aspect="auto", interpolation="nearest")
    size = 7.5 if cell > 0.36 else 6.5 if cell > 0.28 else 5.5
    for (line, column), value in np.ndenumerate(level.share):
        text, colour = (f"{value:.2f}", contrast(value, image)) if np.isfinite(value) else ("×", "#a9b1b8")
        axes.text(column, line, text, ha="center", va="center", size=size, color=colour)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(len(level.experts) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(level.gates) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0, pad=3)
    experts = [shorten(expert, 7, 1.1) for expert in level.experts]
    axes.set_xticks(range(len(experts)), experts, rotation=40, ha="right", rotation_mode="anchor", size=7, color=INK)
    axes.set_yticks(
        range(len(level.gates)), [shorten(gate, 7.5, label - 0.1) for gate in level.gates], size=7.5, color=INK
    )
    if named and level.name:
        axes.set_title(level.name, size=7.5, color=MUTED, loc="left", pad=3)
    return image
