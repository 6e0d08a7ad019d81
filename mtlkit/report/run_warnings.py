"""What runs warned of while they were trained: each kind once, with the rows that it touches."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from mtlkit.report.blocks import Block
from mtlkit.report.frame import Frames

SHOWN = 4
"""Rows that a warning lists by name."""
NUMBER = re.compile(r"\d[\d.,]*(e[+-]?\d+)?")


def all_run_warnings(frames: Frames) -> tuple[str, ...]:
    """The warnings of all blocks, each with its data set's title where there are several."""
    titled = []
    for block in frames.blocks:
        title = f"{block.title}: " if len(frames.blocks) > 1 else ""
        titled += [title + warning for warning in run_warnings(frames, block)]
    return tuple(titled)


def run_warnings(frames: Frames, block: Block) -> list[str]:
    """A sentence a kind of warning, the one that touches most runs first.

    Sentences that differ in numbers alone are of one kind; the first of them is quoted.
    """
    in_block = frames.runs[frames.runs["block"] == block.id]
    first: dict[str, str] = {}
    runs: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for group, seed, texts in zip(
        in_block["group"], in_block["seed"], in_block["warnings"], strict=True
    ):
        for text in texts:
            kind = NUMBER.sub("#", text)
            first.setdefault(kind, text)
            runs[kind][group].add(int(seed))

    labels = {group.id: group.label for group in block.groups}
    warnings = []
    for kind in sorted(runs, key=lambda kind: -_count(runs[kind])):
        rows = sorted((labels[group], sorted(seeds)) for group, seeds in runs[kind].items())
        warnings.append(_sentence(first[kind], rows))
    return warnings


def _count(by_group: dict[str, set[int]]) -> int:
    return sum(len(seeds) for seeds in by_group.values())


def _sentence(text: str, rows: Sequence[tuple[str, list[int]]]) -> str:
    """The warning, and after it the rows with their seeds."""
    texts = [
        f"{label} (seed{'s' * (len(seeds) > 1)} {seed_ranges(seeds)})" for label, seeds in rows
    ]
    runs = sum(len(seeds) for _, seeds in rows)
    count = f"{runs} run{'s' * (runs > 1)}"
    return f"Warned of by {count}: {text.rstrip('.')}. Rows: {listed(texts)}."


def listed(texts: Sequence[str], shown: int = SHOWN, noun: str = "rows") -> str:
    """The first of some rows in words, and how many more there are."""
    left_out = len(texts) - shown
    more = f"; and {left_out} more {noun if left_out > 1 else noun[:-1]}" if left_out > 0 else ""
    return "; ".join(texts[:shown]) + more


def seed_ranges(seeds: Sequence[int]) -> str:
    """``0-4, 7`` for the seeds 0, 1, 2, 3, 4 and 7."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
