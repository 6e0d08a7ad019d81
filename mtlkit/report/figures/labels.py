"""Place labels beside points so that they cover neither points nor each other."""

from __future__ import annotations

import math
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
RANK_COST = 0.0008  # of equally free places the first is taken


def place_labels(
    anchors: Sequence[tuple[float, float]],
    texts: Sequence[str],
    obstacles: Sequence[tuple[float, float]],
    size: tuple[float, float],
    font: float,
    written: Sequence[Box] = (),
) -> list[tuple[float, float] | None]:
    """The lower left corner of each label, in inches: of the candidate with the least overlap; None
    where each of them would lie on another text, or leave the panel.

    Args:
        anchors: Points to be labelled, in inches from the lower left of the panel.
        texts: Their labels.
        obstacles: All points of the panel.
        size: Width and height of the panel in inches.
        font: Font size in points.
        written: Where the panel has texts already.
    """
    texts_so_far = list(written)
    taken: list[Box] = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in obstacles]
    corners: list[tuple[float, float] | None] = []
    for anchor, text in zip(anchors, texts, strict=True):
        width = text_width(text, font)
        candidates = _candidates(anchor, width)
        boxes = [(left, low, left + width, low + HEIGHT) for left, low in candidates]
        costs = [
            _cost(box, taken) + RANK_COST * rank
            if _is_readable(box, texts_so_far, size)
            else math.inf
            for rank, box in enumerate(boxes)
        ]
        best = int(np.argmin(costs))
        if math.isinf(costs[best]):
            corners.append(None)
            continue

        # Greedy: a label that is placed is an obstacle for those after it.
        taken.append(boxes[best])
        texts_so_far.append(boxes[best])
        corners.append(candidates[best])
    return corners


def _is_readable(box: Box, texts: Sequence[Box], size: tuple[float, float]) -> bool:
    """Whether a label lies in the panel, and on no other text."""
    left, low, right, top = box
    width, height = size
    is_inside = left >= 0 and low >= 0 and right <= width and top <= height
    return is_inside and not any(_overlap(box, other) for other in texts)


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


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """Square inches that are covered already."""
    return sum(_overlap(box, other) for other in taken)


def _overlap(one: Box, other: Box) -> float:
    """Square inches that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
