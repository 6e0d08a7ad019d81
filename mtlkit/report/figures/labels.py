"""Place labels beside points so that they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtlkit.report.figures.text import text_width

Box = tuple[float, float, float, float]  # left, bottom, right and top, in inches
HEIGHT = 0.13  # of a label
OFFSETS = (
    (0.11, 0.07),
    (0.11, -0.17),
    (-0.11, 0.07),
    (-0.11, -0.17),
    (0.0, 0.16),
    (0.0, -0.27),
    (0.14, -0.05),
    (-0.14, -0.05),
)
"""From a point to where its label may begin, the best first."""
REACHES = (1.0, 1.9, 3.0)  # all of the offsets are tried at these multiples of their length
DOT = 0.055  # half the width of a point
OUTSIDE_COST = 10
RANK_COST = 0.0008  # of equally free places the first is taken


def place_labels(
    anchors: Sequence[tuple[float, float]],
    texts: Sequence[str],
    obstacles: Sequence[tuple[float, float]],
    size: tuple[float, float],
    font: float,
) -> list[tuple[float, float]]:
    """The lower left corner of each label, in inches: of the candidate with the least overlap.

    Args:
        anchors: Points to be labelled, in inches from the lower left of the panel.
        texts: Their labels.
        obstacles: All points of the panel.
        size: Width and height of the panel in inches.
        font: Font size in points.
    """
    taken: list[Box] = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in obstacles]
    corners = []
    for anchor, text in zip(anchors, texts, strict=True):
        width = text_width(text, font)
        candidates = _candidates(anchor, width)
        boxes = [(left, low, left + width, low + HEIGHT) for left, low in candidates]
        costs = [_cost(box, taken, size) + RANK_COST * rank for rank, box in enumerate(boxes)]
        best = int(np.argmin(costs))

        # Greedy: a label that is placed is an obstacle for those after it.
        taken.append(boxes[best])
        corners.append(candidates[best])
    return corners


def _candidates(anchor: tuple[float, float], width: float) -> list[tuple[float, float]]:
    """Corners that a label of this width may have, the nearest first."""
    x, y = anchor
    return [
        (_left_edge(x, dx * reach, width), y + dy * reach)
        for reach in REACHES
        for dx, dy in OFFSETS
    ]


def _left_edge(x: float, shift: float, width: float) -> float:
    """Of a label at the right of a point, at its left, or centred on it."""
    if shift == 0:
        return x - width / 2
    return x + shift if shift > 0 else x + shift - width


def _cost(box: Box, taken: Sequence[Box], size: tuple[float, float]) -> float:
    """Square inches that are covered already, and a penalty for each inch beyond the panel."""
    left, low, right, top = box
    width, height = size
    outside = max(0.0, -left) + max(0.0, -low) + max(0.0, right - width) + max(0.0, top - height)
    return OUTSIDE_COST * outside + sum(_overlap(box, other) for other in taken)


def _overlap(one: Box, other: Box) -> float:
    """Square inches that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
