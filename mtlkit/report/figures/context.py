"""What a figure may read: the rows and probes of a block, and how balancers and models look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlkit.report.figures.sheet import Entry
from mtlkit.report.figures.style import (
    CEILING_COLOUR,
    CEILING_DASHES,
    COLOURS,
    MARKERS,
    MUTED,
    REFERENCE_COLOUR,
    REFERENCE_MARKER,
    cycle,
)
from mtlkit.report.frame import Frames
from mtlkit.report.probe_frames import Probes
from mtlkit.report.summary import Row, Summary


@dataclass(frozen=True)
class Look:
    """Balancer to colour and dashes, model to marker: the same in all figures of a report."""

    colours: Mapping[str, str]
    dashes: Mapping[str, Any]
    markers: Mapping[str, str]

    @classmethod
    def of(cls, frames: Frames) -> Look:
        """The look of everything that a store holds."""
        groups = [group for block in frames.blocks for group in block.groups]

        # The balancers in a fixed order, so that the look does not depend on that of the runs.
        names = {group.balancer for group in groups if group.balancer_name != "none"}
        balancers = sorted(names, key=_uniform_first)
        lines = {name: cycle(index, COLOURS) for index, name in enumerate(balancers)}

        # A marker for each model; single-task always has the star.
        models = sorted({group.model for group in groups if not group.is_reference})
        markers = {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(models)}
        markers |= {group.model: REFERENCE_MARKER for group in groups if group.is_reference}
        return cls(
            colours={name: colour for name, (colour, _) in lines.items()},
            dashes={name: dashes for name, (_, dashes) in lines.items()},
            markers=markers,
        )

    def colour(self, row: Row) -> str:
        """The colour of a row's balancer."""
        return self.colours.get(row.group.balancer, REFERENCE_COLOUR)

    def marker(self, row: Row) -> str:
        """The marker of a row's model."""
        return self.markers[row.group.model]

    def line(self, row: Row) -> dict[str, Any]:
        """Colour and dashes of a row's line."""
        return {
            "color": self.colour(row),
            "linestyle": self.dashes.get(row.group.balancer, "-"),
            "linewidth": 1.4,
            "zorder": 3,
        }


@dataclass(frozen=True)
class Context:
    """What a figure may read: one data set block's summary and probes, and the look."""

    summary: Summary
    probes: Mapping[str, Probes]
    look: Look

    @property
    def subtitle(self) -> str:
        """Which data set, and whether it is simulated."""
        return self.summary.block.label

    @property
    def ceiling_entry(self) -> list[Entry]:
        """The legend entry of the planted model's line; none for real data."""
        if all(math.isnan(task.ceiling) for task in self.summary.block.tasks):
            return []
        return [Entry("planted model (ceiling)", CEILING_COLOUR, "", CEILING_DASHES)]

    def probed(self) -> list[tuple[Row, Probes]]:
        """Rows with probes, ordered by model and balancer."""
        rows = [row for row in self.summary.rows if row.group.id in self.probes]
        rows.sort(key=lambda row: (row.group.model, _uniform_first(row.group.balancer)))
        return [(row, self.probes[row.group.id]) for row in rows]

    def balancer_legend(self, rows: Sequence[Row], lines: bool = False) -> list[Entry]:
        """Legend entries of the balancers among some rows: a colour each.

        Args:
            rows: The rows that are shown.
            lines: Whether they are shown as lines, with dashes; else as markers.
        """
        names = {row.group.balancer for row in rows if row.group.balancer in self.look.colours}
        if not names:
            return []
        entries = [Entry("balancer", MUTED, "")]
        for name in sorted(names, key=_uniform_first):
            colour = self.look.colours[name]
            if lines:
                entries.append(Entry(name, colour, "", self.look.dashes[name]))
            else:
                entries.append(Entry(name, colour))
        return entries

    def legend(self, rows: Sequence[Row]) -> list[Entry]:
        """Legend entries of the balancers (colour) and models (marker) among some rows."""
        markers = self.look.markers
        # Single-task last, as it is what the others are compared with.
        names = {row.group.model for row in rows}
        models = sorted(names, key=lambda name: (markers[name] == REFERENCE_MARKER, name))
        return [
            *self.balancer_legend(rows),
            Entry("model", MUTED, ""),
            *(Entry(name, MUTED, markers[name], hollow=True) for name in models),
        ]


def _uniform_first(balancer: str) -> tuple[bool, str]:
    return balancer != "uniform", balancer
