"""What a figure may read: the rows and probes of a block, and how balancers and models look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, TypeVar

from mtlkit.report.curves import Curve
from mtlkit.report.figures.sheet import Entry, Sheet
from mtlkit.report.figures.style import (
    CEILING_COLOUR,
    CEILING_DASHES,
    COLOURS,
    MARKERS,
    MUTED,
    OTHER_COLOUR,
    OTHER_MARKER,
    REFERENCE_COLOUR,
    REFERENCE_MARKER,
    WIDTH,
    cycle,
)
from mtlkit.report.probe_frames import Probes
from mtlkit.report.relations import Relations
from mtlkit.report.summary import Row, Summary

LINES = 2 * len(COLOURS)
"""Balancers with a look of their own: each colour twice, plain and then dashed or hollow."""
OTHERS = (OTHER_COLOUR, "-")
T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """How balancers and models look: the same in all figures of a report."""

    # Balancer to colour and dashes; those that are not in it share one grey.
    colours: Mapping[str, tuple[str, Any]]
    markers: Mapping[str, str]  # model to marker; those that are not in it share a dot

    @classmethod
    def of(cls, summaries: Sequence[Summary]) -> Look:
        """The look of all rows. Where colours or markers do not suffice, the rows that stand
        highest in the tables get them.
        """
        tables = [summary.rows for summary in summaries]
        groups = [row.group for rows in zip_longest(*tables) for row in rows if row is not None]
        balancers = dict.fromkeys(group.balancer for group in groups if group.has_balancer)
        models = dict.fromkeys(group.model for group in groups if not group.is_reference)
        references = [group.model for group in groups if group.is_reference]

        # in a fixed order, so that the look does not depend on ranks unless it must
        best_balancers = sorted(balancers, key=lambda name: name != "uniform")[:LINES]
        best_models = list(models)[: len(MARKERS)]
        return cls(
            colours={
                name: cycle(index, COLOURS)
                for index, name in enumerate(sorted(best_balancers, key=uniform_first))
            },
            markers={
                **dict(zip(sorted(best_models), MARKERS, strict=False)),
                **dict.fromkeys(references, REFERENCE_MARKER),
            },
        )

    def colour(self, row: Row) -> str:
        """The colour of a row's balancer."""
        if not row.group.has_balancer:
            return REFERENCE_COLOUR
        return self.colours.get(row.group.balancer, OTHERS)[0]

    def marker(self, row: Row) -> str:
        """The marker of a row's model."""
        return self.markers.get(row.group.model, OTHER_MARKER)

    def hollow(self, row: Row) -> bool:
        """Whether a row's marker is hollow, as its line would be dashed."""
        return self.colours.get(row.group.balancer, OTHERS)[1] != "-"

    def line(self, row: Row) -> dict[str, Any]:
        """Colour and dashes of a row's line."""
        if not row.group.has_balancer:
            return {"color": REFERENCE_COLOUR, "linestyle": "-", "linewidth": 1.4, "zorder": 3}
        colour, dashes = self.colours.get(row.group.balancer, OTHERS)
        known = row.group.balancer in self.colours
        width, order = (1.4, 3) if known else (0.9, 2.5)
        return {"color": colour, "linestyle": dashes, "linewidth": width, "zorder": order}


@dataclass(frozen=True)
class Context:
    """What a figure may read: what is known of one data set block, and the look and width."""

    summary: Summary
    probes: Mapping[str, Probes]
    look: Look
    # Group to the curves of its finished runs.
    curves: Mapping[str, Sequence[Curve]] = field(default_factory=dict)
    relations: Relations = field(default_factory=Relations)
    width: float = WIDTH  # inches

    @property
    def subtitle(self) -> str:
        """Which data set, and whether it is simulated."""
        return self.summary.block.label

    def at(self, width: float) -> Context:
        """The same, for figures of another width."""
        return replace(self, width=width)

    def sheet(
        self, title: str, body: float, legend: Sequence[Entry] = (), has_bar: bool = False
    ) -> Sheet:
        """A sheet for a figure of this block."""
        return Sheet(title, self.subtitle, body, legend, width=self.width, has_bar=has_bar)

    @property
    def ceiling_entry(self) -> list[Entry]:
        """The legend entry of the planted model's line; none for real data."""
        if all(math.isnan(task.ceiling) for task in self.summary.block.tasks):
            return []
        return [Entry("planted model (ceiling)", CEILING_COLOUR, "", CEILING_DASHES)]

    def probed(self) -> list[tuple[Row, Probes]]:
        """Rows with probes, ordered by model and balancer."""
        rows = [row for row in self.summary.rows if row.group.id in self.probes]
        rows.sort(key=lambda row: (row.group.model, uniform_first(row.group.balancer)))
        return [(row, self.probes[row.group.id]) for row in rows]

    def best_rows(
        self, shown: Sequence[tuple[Row, T]], most: int
    ) -> tuple[list[tuple[Row, T]], str]:
        """Of some rows, in their order, those of uniform weights and those that stand highest in
        the table; and a sentence for the caption where some are left out.
        """
        if len(shown) <= most:
            return list(shown), ""
        table = [row.group.id for row in self.summary.rows]
        ranked = sorted(
            shown,
            key=lambda pair: (pair[0].group.balancer != "uniform", table.index(pair[0].group.id)),
        )
        kept = {row.group.id for row, _ in ranked[:most]}
        best = [(row, what) for row, what in shown if row.group.id in kept]
        return best, (
            f" Shown are {most} of {len(shown)} rows: uniform weights, and those that stand "
            "highest in the table of results."
        )

    def balancer_legend(self, rows: Sequence[Row], lines: bool = False) -> list[Entry]:
        """Legend entries of the balancers among some rows: a colour each.

        Args:
            lines: Whether they are shown as lines, with dashes; else as markers.
        """
        names = {row.group.balancer for row in rows if row.group.has_balancer}
        if not names:
            return []
        styles = [(name, style) for name, style in self.look.colours.items() if name in names]
        if names - self.look.colours.keys():
            styles.append(("other balancers", OTHERS))

        entries = [Entry("balancer", MUTED, "")]
        for name, (colour, dashes) in styles:
            if lines:
                entries.append(Entry(name, colour, "", dashes))
            else:
                entries.append(Entry(name, colour, hollow=dashes != "-"))
        return entries

    def legend(self, rows: Sequence[Row]) -> list[Entry]:
        """Legend entries of the balancers (colour) and models (marker) among some rows."""
        names = {row.group.model for row in rows}
        styles = [(name, mark) for name, mark in self.look.markers.items() if name in names]
        if names - self.look.markers.keys():
            styles.append(("other models", OTHER_MARKER))
        return [
            *self.balancer_legend(rows),
            Entry("model", MUTED, ""),
            *(Entry(name, MUTED, marker, hollow=True) for name, marker in styles),
        ]


def uniform_first(balancer: str) -> tuple[bool, str]:
    """A sorting key: by name, but uniform weights before all others."""
    return balancer != "uniform", balancer
