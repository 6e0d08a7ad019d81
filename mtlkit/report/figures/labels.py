"""Place labels beside points so that they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtlkit.report.figures.style import text_width

Box = tuple[float, float, float, float]
HEIGHT = 0.13
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


def place_labels(
    anchors: Sequence[tuple[float, float]],
    texts: Sequence[str],
    obstacles: Sequence[tuple[float, float]],
    size: tuple[float, float],
    font: float,
) -> list[tuple[float, float]]:
    """Find the lower left corner of each label.

    Args:
        anchors: Points to be labelled, in inches from the lower left of the panel.
        texts: Their labels.
        obstacles: All points of the panel.
        size: Width and height of the panel in inches.
        font: Font size in points.

    Returns:
        For each label the corner, in inches, of the candidate with the least overlap.
    """
    taken: list[Box] = [(x - 0.055, y - 0.055, x + 0.055, y + 0.055) for x, y in obstacles]
    corners = []
    for (x, y), text in zip(anchors, texts, strict=True):
        width = text_width(text, font)
        candidates = [
            (_start(x, dx * reach, width), y + dy * reach)
            for reach in (1.0, 1.9, 3.0)
            for dx, dy in OFFSETS
        ]
        boxes = [(left, low, left + width, low + HEIGHT) for left, low in candidates]
        costs = [_cost(box, taken, size) + 0.0008 * rank for rank, box in enumerate(boxes)]
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        corners.append(candidates[best])
    return corners


def _start(x: float, shift: float, width: float) -> float:
    if shift == 0:
        return x - width / 2
    return x + shift if shift > 0 else x + shift - width


def _cost(box: Box, taken: Sequence[Box], size: tuple[float, float]) -> float:
    outside = (
        max(0.0, -box[0])
        + max(0.0, -box[1])
        + max(0.0, box[2] - size[0])
        + max(0.0, box[3] - size[1])
    )
    return 10 * outside + sum(_overlap(box, other) for other in taken)


def _overlap(one: Box, two: Box) -> float:
    wide = min(one[2], two[2]) - max(one[0], two[0])
    high = min(one[3], two[3]) - max(one[1], two[1])
    return wide * high if wide > 0 and high > 0 else 0.0
