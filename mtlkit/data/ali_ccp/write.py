"""Writing the final splits of Ali-CCP from the joined texts, straight to their files."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.data.ali_ccp.fields import FIELDS
from mtlkit.data.ali_ccp.join import TEST, TRAIN, VALIDATION, Joined
from mtlkit.data.ali_ccp.protocols import TASKS, FieldPlan
from mtlkit.data.ali_ccp.staging import Chunk
from mtlkit.data.ali_ccp.vocabulary import Vocabulary
from mtlkit.data.datasets._source import Progress
from mtlkit.data.encoders import MinMaxScaler
from mtlkit.data.splits import SPLITS
from mtlkit.data.storage import BagColumns, Column

FINAL_SPLITS = dict(zip((TRAIN, VALIDATION, TEST), SPLITS, strict=True))


class Encoders:
    """What turns ids and values of the text into inputs.

    Args:
        vocabulary: Numbers of the ids that are kept.
        scalers: Scale of each field whose value is an input.
    """

    def __init__(self, vocabulary: Vocabulary, scalers: dict[int, MinMaxScaler]) -> None:
        self.vocabulary, self.scalers = vocabulary, scalers

    def encode(self, plan: FieldPlan, chunk: Chunk) -> Chunk:
        """The same rows with int32 numbers in place of ids, and float32 scaled values."""
        values = np.empty(chunk.values.shape, np.float32)
        for column, field in enumerate(plan.dense):
            values[:, column] = self.scalers[field].transform(chunk.values[:, column])
        bags = [
            (self.vocabulary.bag(field, ids), weights)
            for field, (ids, weights) in zip(plan.bags, chunk.bags, strict=True)
        ]
        return replace(
            chunk, ids=self.vocabulary.rows(plan.ids, chunk.ids), values=values, bags=bags
        )


class SplitWriter:
    """Writes the arrays of the final splits.

    Args:
        folder: Where the files go.
        encoders: Fitted on train.
        total: Rows to be written, for progress.
    """

    def __init__(self, folder: Path, encoders: Encoders, total: int) -> None:
        self.folder, self.encoders = folder, encoders
        self.total, self.done = total, 0
        self.adding = threading.Lock()

    def write(self, joined: Joined, progress: Progress) -> dict[str, Any]:
        """The final splits that come from one official split; returns their entries in the
        manifest.
        """
        sizes = joined.sizes()
        names = {code: name for code, name in FINAL_SPLITS.items() if sizes[code]}
        shared_arrays = self._write_shared(joined, list(names.values()), progress)
        users = joined.users.column("user")
        with ExitStack() as stack:
            files = {code: _SplitFiles(stack, self, name, joined) for code, name in names.items()}
            for rows, chunk in joined.row_chunks():
                split, common_row = joined.split[rows], joined.common_row[rows]
                encoded = self.encoders.encode(joined.rows.plan, chunk)
                for code in names:
                    files[code].write(encoded, common_row, users, split == code)
                self._tell(progress, len(chunk))
        return {
            name: {
                "rows": sizes[code],
                "positives": files[code].positives(),
                "arrays": sorted([*files[code].arrays(), *shared_arrays]),
            }
            for code, name in names.items()
        }

    def _tell(self, progress: Progress, rows: int) -> None:
        """Say that more rows are written; they are added up over all threads."""
        with self.adding:
            self.done += rows
            progress("writing splits", self.done, self.total)

    def _write_shared(self, joined: Joined, names: list[str], progress: Progress) -> list[str]:
        """The users' columns, written once and given a second name for a second split of the same
        users; returns the names of the arrays.
        """
        plan, first = joined.users.plan, names[0]
        with ExitStack() as stack:
            ids_path = self.folder / f"{first}.side-ids.npy"
            dense_path = self.folder / f"{first}.side-dense.npy"
            ids = stack.enter_context(Column(ids_path, np.int32, (len(plan.ids),)))
            dense = stack.enter_context(Column(dense_path, np.float32, (len(plan.dense),)))
            bags = bag_columns(stack, self.folder, f"{first}.side-bag", plan)
            for _, chunk in joined.user_chunks():
                encoded = self.encoders.encode(plan, chunk)
                ids.write(encoded.ids)
                dense.write(encoded.values)
                for b, bag in enumerate(bags):
                    bag.write(encoded.lengths[:, b], *encoded.bags[b])
                self._tell(progress, 0)

        arrays = ["side-ids", "side-dense"]
        for bag in bags:
            arrays += bag.arrays
        for name in names[1:]:
            for array in arrays:
                path = self.folder / f"{first}.{array}.npy"
                link_or_copy(path, self.folder / f"{name}.{array}.npy")
        return arrays


class _SplitFiles:
    """The growing files of one final split, without those of the columns that rows share."""

    def __init__(self, stack: ExitStack, writer: SplitWriter, name: str, joined: Joined) -> None:
        plan = joined.rows.plan
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "ids": (np.int32, (len(plan.ids),)),
            "dense": (np.float32, (len(plan.dense),)),
            "labels": (np.float32, (len(TASKS),)),
            "observed": (bool, (len(TASKS),)),
            "group-user": (np.int32, ()),
            "side-row": (np.int32, ()),
        }
        self.columns = {}
        for array, (dtype, shape) in shapes.items():
            path = writer.folder / f"{name}.{array}.npy"
            self.columns[array] = stack.enter_context(Column(path, dtype, shape))
        self.bags = bag_columns(stack, writer.folder, f"{name}.bag", plan)
        self.positive = np.zeros(len(TASKS), np.int64)

    def write(
        self, encoded: Chunk, common_row: np.ndarray, users: np.ndarray, is_here: np.ndarray
    ) -> None:
        """Add the rows of a chunk that belong to this split.

        Args:
            encoded: The n rows.
            common_row: (n,) their common rows.
            users: (U,) raw id of the user of each common row.
            is_here: (n,) which of them belong to this split.
        """
        rows = np.flatnonzero(is_here)
        labels = encoded.labels[rows]
        self.columns["ids"].write(encoded.ids[rows])
        self.columns["dense"].write(encoded.values[rows])
        self.columns["labels"].write(labels)
        self.columns["observed"].write(np.ones((len(rows), len(TASKS)), bool))
        self.columns["group-user"].write(users[common_row[rows]])
        self.columns["side-row"].write(common_row[rows])
        self.positive += labels.sum(0, dtype=np.int64)

        for b, bag in enumerate(self.bags):
            lengths, (numbers, weights) = encoded.lengths[:, b], encoded.bags[b]
            entries = np.flatnonzero(np.repeat(is_here, lengths))
            bag.write(lengths[rows], numbers[entries], weights[entries])

    def positives(self) -> dict[str, int]:
        """Task to the number of its positive labels."""
        return dict(zip([task.name for task in TASKS], self.positive.tolist(), strict=True))

    def arrays(self) -> list[str]:
        """The names of the arrays."""
        arrays = list(self.columns)
        for bag in self.bags:
            arrays += bag.arrays
        return arrays


def bag_columns(stack: ExitStack, folder: Path, prefix: str, plan: FieldPlan) -> list[BagColumns]:
    """The files of all bags of a plan; ``prefix`` is that of their names."""
    return [BagColumns(stack, folder, prefix, FIELDS[field].name) for field in plan.bags]


def link_or_copy(path: Path, other: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
