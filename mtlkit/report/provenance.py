"""Where the rows of a leaderboard come from: who sent them, and what they were run with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mtlkit.report.blocks import Block, RunGroup
from mtlkit.report.frame import Frames
from mtlkit.report.run_warnings import seed_ranges
from mtlkit.report.submissions import Manifest
from mtlkit.report.tables import Table, TableCell, csv_key
from mtlkit.spec import canonical_json
from mtlkit.store import printable

COLUMNS = ("model", "balancer", "submission", "by", "sent", "seeds", "code", "hardware", "commit")
NOTES = (
    "A line a row and submission. Senders say this of themselves: mtlkit rerun repeats a run. "
    "Files of plugins are named with the beginning of their digest.",
)


def origin_rows(frames: Frames, block: Block) -> list[dict[str, Any]]:
    """A line a row and submission of a leaderboard as plain values; empty for other folders."""
    if frames.board is None:
        return []
    runs = frames.runs[frames.runs["block"] == block.id]
    runs = runs.assign(sender=runs["folder"].map(frames.board.sender))
    return [
        _origin(block, group, sender, manifest, sent)
        for group in block.groups
        for sender, manifest in frames.board.manifests.items()
        if len(sent := runs[(runs["group"] == group.id) & (runs["sender"] == sender)])
    ]


def _origin(
    block: Block, group: RunGroup, sender: Path, manifest: Manifest, sent: pd.DataFrame
) -> dict[str, Any]:
    """What a submission says of its runs of a row."""
    said = [defaultdict(lambda: "not recorded", one) for one in sent["environment"]]
    code = [f"mtlkit {one['mtlkit']}, PyTorch {one['torch']}" for one in said]
    for method in (group.resolved["model"], group.resolved["balancer"]):
        if method.get("source_sha256"):
            code.append(f"{Path(method['name']).name} {method['source_sha256'][:8]}")
    return csv_key(block, group) | {
        "submission": printable(sender.name),
        "by": printable(manifest.by),
        "sent": f"{manifest.sent:%Y-%m-%d}",
        "seeds": seed_ranges(sorted(sent["seed"])),
        "code": _distinct(code),
        "hardware": _distinct(f"{one['device']}, threads: {one['threads']}" for one in said),
        "commit": _distinct(f"{one['git_commit'] or 'none'}"[:12] for one in said),
        "settings": canonical_json(group.resolved),
    }


def _distinct(texts: Iterable[str]) -> str:
    return printable("; ".join(sorted(set(texts))))


def origin_table(block: Block, lines: Sequence[dict[str, Any]]) -> Table:
    """The same as a table, without the settings."""
    rows = tuple(tuple(TableCell(line[column]) for column in COLUMNS) for line in lines)
    title = f"{block.label}: where the rows come from"
    return Table(title, COLUMNS, rows, NOTES, texts=COLUMNS)
