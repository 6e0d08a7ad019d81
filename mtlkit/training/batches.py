"""Packed splits as tensors, memory-mapped where they lie on disk; batches of them on a device."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlkit.data.splits import Bag, Split
from mtlkit.models._types import Batch
from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops.bags import Bags, take_bags
from mtlkit.ops.take_rows import CompiledGroups
from mtlkit.training.prefetch import map_tensors, prefetched

MAX_MEMORY_SHARE = 0.5  # of the free memory of a GPU that the columns of a split may fill
RELEASED_ROWS = 1 << 20  # rows read after which the pages of mapped files are given back


@dataclass
class SharedTensors:
    """The tensors of :class:`mtlkit.data.splits.SharedColumns`: columns that many rows share."""

    row: Tensor  # (N,) which of the U shared rows belongs to each row of the split
    ids: Tensor  # (U, F)
    dense: Tensor  # (U, D)
    bags: dict[str, Bags] = field(default_factory=dict)  # the bags of the U shared rows


@dataclass
class DeviceSplit:
    """A split from which batches are gathered, columns that rows share included.

    On the CPU its columns are the packed arrays themselves: memory-mapped files are read as rows
    are asked for, and the pages given back, so that memory holds a bounded number of rows. On a GPU
    they are copied there, if there is room.
    """

    columns: Batch  # all rows as one batch, without what rows share
    # Task to (N,) labels for scoring that no batch carries.
    hidden: dict[str, Tensor] = field(default_factory=dict)
    shared_columns: SharedTensors | None = None  # what rows share, or None
    device: torch.device | None = None  # where batches go; None for where the columns are
    files: list[mmap.mmap] = field(default_factory=list)  # mapped files
    _rows_read: int = field(default=0, init=False)

    @classmethod
    def load(
        cls, split: Split, device: torch.device, groups: Collection[str] = (), slots: int = 1
    ) -> DeviceSplit:
        """Open a split for a device that so many cells share, with those groups of its rows that
        losses ask for.
        """
        # Columns that do not fit on a GPU stay in memory, and batches are sent.
        arrays = split.arrays()
        size = sum(array.nbytes for array in arrays.values())
        fits = device.type != "cuda" or size <= _room_on(device) / slots
        storage = device if fits else torch.device("cpu")

        def tensor(array: np.ndarray) -> Tensor:
            return _tensor(array).to(storage)

        def bag_tensors(bags: Mapping[str, Bag]) -> dict[str, Bags]:
            return {
                name: Bags(tensor(bag.offsets), tensor(bag.values), tensor(bag.weights))
                for name, bag in bags.items()
            }

        columns = Batch(
            tensor(split.ids),
            tensor(split.dense),
            tensor(split.labels),
            None if bool(split.observed.all()) else tensor(split.observed),
            None if split.weight is None else tensor(split.weight),
            bag_tensors(split.bags),
            groups={name: tensor(split.groups[name]) for name in groups},
        )
        hidden = {name: tensor(labels) for name, labels in split.hidden.items()}
        shared = split.shared
        shared_columns = None
        if shared is not None:
            shared_columns = SharedTensors(
                tensor(shared.row),
                tensor(shared.ids),
                tensor(shared.dense),
                bag_tensors(shared.bags),
            )

        # Several arrays may look into one file.
        mapped = (_mapped_file(array) for array in arrays.values())
        files = {id(file): file for file in mapped if file is not None}
        return cls(columns, hidden, shared_columns, None if fits else device, list(files.values()))

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def storage_device(self) -> torch.device:
        """Where the columns are, and row numbers are looked up."""
        return self.columns.labels.device

    @property
    def batch_device(self) -> torch.device:
        """Where batches go."""
        return self.device or self.storage_device

    @property
    def row_device(self) -> torch.device:
        """Where row numbers are drawn: on the host, if it counts the ids in the bags of a batch."""
        counts_ids = self.storage_device.type == "cuda" and self._host_bags
        return torch.device("cpu") if counts_ids else self.storage_device

    @cached_property
    def _host_bags(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """By bag feature, on the host: its offsets, and which bag belongs to each row (N,); None
        where bag i belongs to row i.
        """
        own, shared = self.columns.bags, self.shared_columns
        on_host: dict[str, tuple[Tensor, Tensor | None]] = {}
        on_host |= {name: (bags.offsets.cpu(), None) for name, bags in own.items()}
        if shared is not None:
            row = shared.row.cpu()
            on_host |= {name: (bags.offsets.cpu(), row) for name, bags in shared.bags.items()}
        return on_host

    def count_ids(self, rows: Tensor, batches: int = 1) -> dict[str, int]:
        """By bag feature, how many ids the rows have: at most, of some batches one after another.

        On the host, where they are ``row_device``'s if there are bags.
        """
        if not self._host_bags:
            return {}  # nobody waits for row numbers that are on a GPU

        rows, counts = rows.cpu(), {}
        for name, (offsets, bag_of_row) in self._host_bags.items():
            bag = rows if bag_of_row is None else bag_of_row[rows].long()
            lengths = offsets[bag + 1] - offsets[bag]
            counts[name] = max(int(batch.sum()) for batch in lengths.chunk(batches))
        return counts

    def take(
        self, rows: Tensor, weight: Tensor | None = None, room: Mapping[str, int] | None = None
    ) -> Batch:
        """Gather a batch.

        Args:
            rows: (B,) int64 row numbers.
            weight: (B,) float32 factors on the weights of these rows, or None.
            room: By bag feature, how many ids the batch is to have, as in ``take_bags``.
        """
        columns = self.columns
        if room is None and self.storage_device.type == "cuda":
            room = self.count_ids(rows)
        rows = sent(rows, self.storage_device)
        weight = None if weight is None else sent(weight, self.storage_device)

        # The weight of a row in the data, times the one it is given.
        row_weight = None if columns.weight is None else columns.weight.index_select(0, rows)
        if weight is not None:
            given = weight if row_weight is None or row_weight.dim() == 1 else weight[:, None]
            row_weight = given if row_weight is None else row_weight * given

        batch = Batch(
            columns.ids.index_select(0, rows),
            columns.dense.index_select(0, rows),
            columns.labels.index_select(0, rows),
            None if columns.observed is None else columns.observed.index_select(0, rows),
            row_weight,
            take_bags(columns.bags, rows, room),
            groups={name: ids.index_select(0, rows) for name, ids in columns.groups.items()},
        )

        # Columns that rows share come after a row's own columns of the same kind.
        shared = self.shared_columns
        if shared is not None:
            shared_rows = shared.row.index_select(0, rows)
            batch.ids = torch.cat([batch.ids, shared.ids.index_select(0, shared_rows)], 1)
            batch.dense = torch.cat([batch.dense, shared.dense.index_select(0, shared_rows)], 1)
            batch.bags |= _take_shared_bags(shared, shared_rows, room)

        self._release_pages(len(rows))
        if self.batch_device == self.storage_device:
            return batch
        return map_tensors(batch, lambda tensor: sent(tensor, self.batch_device))

    def take_each(
        self, rows: Iterator[tuple[Any, ...]], take: Callable[..., Batch] | None = None
    ) -> Generator[Batch]:
        """:meth:`take`, or what calls it, with each of some arguments; ahead of time where batches
        are sent.
        """
        take = take or self.take
        if self.batch_device != self.storage_device:
            return prefetched(take, rows, self.batch_device)
        return (take(*each) for each in rows)

    def subset(self, rows: Tensor) -> DeviceSplit:
        """Some rows (n,) as a split; what is not a label is gathered when it is asked for."""
        columns = self.columns
        rows = rows.to(self.storage_device)
        labels_only = Batch(
            columns.ids[:0],
            columns.dense[:0],
            columns.labels.index_select(0, rows),
            None if columns.observed is None else columns.observed.index_select(0, rows),
        )
        hidden = {name: labels.index_select(0, rows) for name, labels in self.hidden.items()}
        numbers = rows.to(self.row_device)
        return _Subset(labels_only, hidden, device=self.device, whole=self, rows=numbers)

    def chunks(self, size: int) -> Iterator[Batch]:
        """All rows in order, in batches of at most ``size``."""
        starts = range(0, len(self), size)
        rows = (torch.arange(start, min(start + size, len(self))) for start in starts)
        return self.take_each((numbers,) for numbers in rows)

    def _release_pages(self, rows: int) -> None:
        """Count rows that were read, and now and then give their pages back.

        The system keeps pages for as long as it has room.
        """
        self._rows_read += rows
        if self._rows_read < RELEASED_ROWS:
            return
        self._rows_read = 0
        for file in self.files:
            if hasattr(file, "madvise"):  # not every system has it
                file.madvise(mmap.MADV_DONTNEED)


@dataclass
class _Subset(DeviceSplit):
    """Some rows of a split."""

    whole: DeviceSplit = field(kw_only=True)  # the split
    rows: Tensor = field(kw_only=True)  # (n,) the numbers of the rows in it

    def take(
        self, rows: Tensor, weight: Tensor | None = None, room: Mapping[str, int] | None = None
    ) -> Batch:
        return self.whole.take(self.rows[sent(rows, self.rows.device)], weight, room)


def _take_shared_bags(
    shared: SharedTensors, rows: Tensor, room: Mapping[str, int] | None
) -> dict[str, Bags]:
    """The bags that each row (B,) of a batch shares with others; each is there once.

    With room for a number of ids, as on a GPU, a bag is there once a row: the host would wait for
    the number of different ones.
    """
    weights = [bags.weights for bags in shared.bags.values()]
    if room is not None or not (weights and use_kernel(*weights)):
        return take_bags(shared.bags, rows.long(), room)
    groups = CompiledGroups(rows, len(shared.ids))
    taken = take_bags(shared.bags, groups.rows)
    return {name: bags._replace(row=groups.group) for name, bags in taken.items()}


def _room_on(device: torch.device) -> float:
    """Bytes that the columns of a split may fill on a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return MAX_MEMORY_SHARE * free


def _tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor, without a copy."""
    with warnings.catch_warnings():
        # PyTorch warns of read-only arrays. Nobody writes to these tensors.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _mapped_file(array: object) -> mmap.mmap | None:
    """The mapped file that an array looks into, if it does."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the copy to a GPU runs while the host goes on."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
