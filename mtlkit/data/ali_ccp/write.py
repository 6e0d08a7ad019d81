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
from mtlkit.data.storage import BagColumns, Column, SplitFiles

FINAL_SPLITS = dict(zip((TRAIN, VALIDATION, TEST), SPLITS, strict=True))


class Encoders:
    """What turns ids and values of the text into inputs."""

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
    """Writes the arrays of the final splits."""

    def __init__(self, folder: Path, encoders: Encoders, total: int) -> None:
        self.folder, self.encoders = folder, encoders
        self.total, self.done = total, 0
        self.adding = threading.Lock()

    def write(self, joined: Joined, progress: Progress) -> dict[str, Any]:
        """The final splits that come of an official one; returns their entries in the manifest."""
        sizes = joined.sizes()
        names = {code: name for code, name in FINAL_SPLITS.items() if sizes[code]}
        shared_arrays = self._write_shared(joined, list(names.values()), progress)
        users = joined.users.column("user")
        plan, tasks = joined.rows.plan, [task.name for task in TASKS]
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "ids": (np.int32, (len(plan.ids),)),
            "dense": (np.float32, (len(plan.dense),)),
            "labels": (np.float32, (len(TASKS),)),
            "observed": (bool, (len(TASKS),)),
            "group-user": (np.int32, ()),
            "side-row": (np.int32, ()),
        }
        with ExitStack() as stack:
            files = {
                code: SplitFiles(stack, self.folder, name, shapes, bag_names(plan))
                for code, name in names.items()
            }
            for rows, chunk in joined.row_chunks():
                split, common_row = joined.split[rows], joined.common_row[rows]
                encoded = self.encoders.encode(plan, chunk)
                arrays = {
                    "ids": encoded.ids,
                    "dense": encoded.values,
                    "labels": encoded.labels,
                    "observed": np.ones((len(chunk), len(TASKS)), bool),
                    # Rows that are dropped may have no common row.
                    "group-user": users.take(common_row, mode="clip"),
                    "side-row": common_row,
                }
                bags = [(encoded.lengths[:, b], *bag) for b, bag in enumerate(encoded.bags)]
                for code, split_files in files.items():
                    split_files.write(arrays, bags, split == code)
                self._tell(progress, len(chunk))
        entries = {names[code]: split_files.entry(tasks) for code, split_files in files.items()}
        for entry in entries.values():
            entry["arrays"] = sorted([*entry["arrays"], *shared_arrays])
        return entries

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
            bags = [
                BagColumns(stack, self.folder, f"{first}.side-bag", name)
                for name in bag_names(plan)
            ]
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


def bag_names(plan: FieldPlan) -> list[str]:
    """The names of all bags of a plan."""
    return [FIELDS[field].name for field in plan.bags]


def link_or_copy(path: Path, other: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
