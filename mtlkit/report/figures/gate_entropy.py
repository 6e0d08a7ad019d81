"""Entropy of the gates over the run: how soon, and how far, they settle on few experts."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from mtlkit.report.figures.gate_usage import split_gate
from mtlkit.report.figures.style import GRID, MUTED, WIDTH, Context, Drawing, Sheet, shorten
from mtlkit.report.probe_frames import Probes, mean_over
from mtlkit.report.summary import Row

CAPTION = (
    "Mean entropy of each gate's weights divided by its largest possible value, the logarithm of the number of experts "
    "that the gate sees. At 1 (dashed) a gate uses all experts alike for every row; near 0 it picks one expert. Lines "
    "are means over seeds.{merged}"
)
SEPARATE = 4
"""Up to this many gates a level each gets a panel; more are averaged."""
Panel = tuple[str, list[tuple[Row, np.ndarray, np.ndarray]]]


def draw(context: Context) -> list[Drawing]:
    """Panels of model and level x gate."""
    shown = [
        (row, probes) for row, probes in context.probed() if probes.gates and len(probes.epochs) > 1
    ]
    if not shown:
        return []
    lines = _lines(shown)
    columns = max(2, max(len(line) for line in lines))
    left, gap, height, pitch = 0.72, 0.18, 1.05, 1.36
    width = min((WIDTH - left - 0.2 - gap * (columns - 1)) / columns, 4.2)
    legend = context.legend([row for row, _ in shown], models=False, lines=True)
    sheet = Sheet(
        "Gate entropy over the run", context.subtitle, 0.34 + pitch * len(lines) + 0.3, legend
    )
    low = min(
        (
            float(values.min())
            for line in lines
            for _, of in line
            for _, _, values in of
            if len(values)
        ),
        default=0.0,
    )
    for place, line in enumerate(lines):
        for column, (title, curves) in enumerate(line):
            axes = sheet.axes(left + column * (width + gap), 0.34 + place * pitch, width, height)
            _panel(axes, context, curves)
            axes.set_ylim(max(0.0, math.floor((low - 0.03) * 20) / 20), 1.03)
            axes.set_xlim(0, float(max(probes.epochs[-1] for _, probes in shown)) * 1.02)
            axes.set_title(shorten(title, 8.5, width), size=8.5, loc="left", pad=3)
            if column:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel("entropy / max")
            if place == len(lines) - 1 or column >= len(lines[place + 1]):
                axes.set_xlabel("epoch")
            else:
                axes.set_xticklabels([])
    merged = (
        f" Levels with more than {SEPARATE} gates are averaged over their gates."
        if _merged(shown)
        else ""
    )
    return [
        Drawing(
            "gate-entropy", "Gate entropy over the run", CAPTION.format(merged=merged), sheet.figure
        )
    ]


def _lines(shown: list[tuple[Row, Probes]]) -> list[list[Panel]]:
    """Rows of panels: one a model and level."""
    lines = []
    for model in dict.fromkeys(row.group.model for row, _ in shown):
        own = [(row, probes) for row, probes in shown if row.group.model == model]
        levels = sorted({split_gate(name)[0] for _, probes in own for name in probes.gates})
        for level in levels:
            names = [name for name in own[0][1].gates if split_gate(name)[0] == level]
            where = f"{model}, {level}" if len(levels) > 1 else model
            if len(names) > SEPARATE:
                lines.append([(f"{where} · mean of {len(names)} gates", _curves(own, names))])
            else:
                lines.append(
                    [(f"{where} · {split_gate(name)[1]}", _curves(own, [name])) for name in names]
                )
    return lines


def _merged(shown: list[tuple[Row, Probes]]) -> bool:
    return any("mean of" in title for line in _lines(shown) for title, _ in line)


def _curves(
    own: list[tuple[Row, Probes]], names: list[str]
) -> list[tuple[Row, np.ndarray, np.ndarray]]:
    curves = []
    for row, probes in own:
        shares = [
            mean_over(probes.gates[name].entropy, axis=0)
            / math.log(max(len(probes.gates[name].experts), 2))
            for name in names
            if name in probes.gates
        ]
        if shares:
            values = mean_over(np.stack(shares), axis=0)
            known = np.isfinite(values)
            curves.append((row, probes.epochs[known], values[known]))
    return curves


def _panel(axes: Axes, context: Context, curves: list[tuple[Row, np.ndarray, np.ndarray]]) -> None:
    axes.axhline(1, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
    axes.grid(color=GRID, linewidth=0.7)
    for row, epochs, values in curves:
        dashes = context.look.dashes.get(row.group.balancer, "-")
        axes.plot(
            epochs,
            values,
            color=context.look.colour(row),
            linewidth=1.4,
            linestyle=dashes,
            zorder=3,
        )
