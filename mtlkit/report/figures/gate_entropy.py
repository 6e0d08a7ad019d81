"""Entropy of the gates over the run: how soon, and how far, they settle on few experts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from mtlkit.report.experts import split_gate
from mtlkit.report.figures.axes import epoch_axis, neutral_line, shared_y_axis
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Columns, Drawing, PanelGrid, flow_panels
from mtlkit.report.figures.text import in_two
from mtlkit.report.probe_frames import GateUsage, Probes, mean_over
from mtlkit.report.summary import Row

CAPTION = (
    "Mean entropy of each gate's weights divided by its largest possible value, the logarithm of "
    "the number of experts that the gate sees. At 1 (dashed) a gate uses all experts alike for "
    "every row; near 0 it picks one expert. Lines are means over seeds.{merged}"
)
SEPARATE = 4  # up to this many gates a level each gets a panel; more are averaged


@dataclass(frozen=True)
class _Curve:
    """Entropy over the run of one row: epochs (P,) and shares of the largest value (P,)."""

    row: Row
    epochs: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class _Panel:
    """The curves of one gate, or of the mean of several."""

    model: str  # with its level, if there are several
    gate: str
    curves: list[_Curve]
    merged: bool = False


def draw(context: Context) -> list[Drawing]:
    """Panels of model and level x gate."""
    shown = [
        (row, probes) for row, probes in context.probed() if probes.gates and len(probes.epochs) > 1
    ]
    if not shown:
        return []
    lines = _lines(shown)
    panels = [panel for line in lines for panel in line]

    # A single panel gets half of the width.
    widest = max(2, max(len(line) for line in lines))
    fitting = Columns.that_fit(context.width, widest, 1.0, left=0.72, right=0.2, gap=0.26)
    width = min(fitting.width, 4.2)
    titles = [in_two(panel.model, panel.gate, 8.5, width) for panel in panels]
    second = 0.15 * any("\n" in title for title in titles)
    grid = PanelGrid(0.72, 0.34 + second, width, height=1.05, gap=0.26, pitch=1.36 + second)
    places = flow_panels([len(line) for line in lines], fitting.number)
    sheet = context.sheet(
        "Gate entropy over the run",
        0.34 + second + grid.pitch * (places[-1][-1][0] + 1) + 0.3,
        context.balancer_legend([row for row, _ in shown], lines=True),
    )

    # All panels share both axes, so that their curves can be compared.
    lower_limit = _lower_limit(panels)
    last_epoch = float(max(probes.epochs[-1] for _, probes in shown))
    in_order = [place for of_line in places for place in of_line]
    for panel, title, (line, column) in zip(panels, titles, in_order, strict=True):
        axes = grid.axes(sheet, line, column)
        _draw_panel(axes, context, panel)
        axes.set_ylim(lower_limit, 1.03)
        axes.set_title(title, size=8.5, loc="left", pad=3)
        shared_y_axis(axes, "entropy / max", labelled=column == 0)
        epoch_axis(axes, last_epoch, labelled=(line + 1, column) not in in_order)

    merged = ""
    if any(panel.merged for panel in panels):
        merged = f" Levels with more than {SEPARATE} gates are averaged over their gates."
    caption = CAPTION.format(merged=merged)
    return [Drawing("gate-entropy", "Gate entropy over the run", caption, sheet.figure)]


def _lines(shown: list[tuple[Row, Probes]]) -> list[list[_Panel]]:
    """Lines of panels: one a model and level."""
    lines = []
    for model in dict.fromkeys(row.group.model for row, _ in shown):
        probed = [(row, probes) for row, probes in shown if row.group.model == model]
        levels = sorted({split_gate(name)[0] for _, probes in probed for name in probes.gates})
        for level in levels:
            gates = [name for name in probed[0][1].gates if split_gate(name)[0] == level]
            where = f"{model}, {level}" if len(levels) > 1 else model
            lines.append(_line(probed, gates, where))
    return lines


def _line(probed: list[tuple[Row, Probes]], gates: list[str], where: str) -> list[_Panel]:
    """The panels of one level: a gate each, or all of many gates together."""
    if len(gates) > SEPARATE:
        mean = f"mean of {len(gates)} gates"
        return [_Panel(where, mean, _curves(probed, gates), merged=True)]
    return [_Panel(where, split_gate(gate)[1], _curves(probed, [gate])) for gate in gates]


def _curves(probed: list[tuple[Row, Probes]], gates: list[str]) -> list[_Curve]:
    """The mean over some gates, of each row that has one of them."""
    curves = []
    for row, probes in probed:
        shares = [_entropy_share(probes.gates[name]) for name in gates if name in probes.gates]
        if shares:
            mean = mean_over(np.stack(shares), axis=0)  # (P,)
            defined = np.isfinite(mean)
            curves.append(_Curve(row, probes.epochs[defined], mean[defined]))
    return curves


def _entropy_share(gate: GateUsage) -> np.ndarray:
    """(P,) entropy over its largest value, the logarithm of the number of experts."""
    return mean_over(gate.entropy, axis=0) / math.log(max(len(gate.experts), 2))


def _lower_limit(panels: list[_Panel]) -> float:
    """A round number a little below the lowest curve."""
    lows = [
        float(curve.shares.min()) for panel in panels for curve in panel.curves if len(curve.shares)
    ]
    low = min(lows, default=0.0)
    return max(0.0, math.floor((low - 0.03) * 20) / 20)


def _draw_panel(axes: Axes, context: Context, panel: _Panel) -> None:
    neutral_line(axes, 1)
    for curve in panel.curves:
        axes.plot(curve.epochs, curve.shares, **context.look.line(curve.row))
