"""Packed splits as tensors, memory-mapped where they lie on disk; batches of them on a device."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mtlkit.data.splits import Bag, Split
from mtlkit.models._types import Batch

Bags = dict[str, tuple[Tensor, Tensor, Tensor]]
SHARE = 0.5  # of the free memory of a GPU that a split may fill
RELEASED_ROWS = 1 << 20  # after so many, pages of mapped files are given back


@dataclass
class SideColumns:
    """Columns that rows share: (N,) numbers of the U shared rows, their ids (U, F), dense values
    (U, D) and bags.
    """

    row: Tensor
    ids: Tensor
    dense: Tensor
    bags: Bags = field(default_factory=dict)


@dataclass
class DeviceSplit:
    """A split from which batches are gathered, columns that rows share included.

    On the CPU its columns are the packed arrays themselves: memory-mapped files are read as rows
    are asked for, and the pages given back, so that memory holds a bounded number of rows. On a GPU
    they are copied there, if there is room.

    Args:
        all: All rows as one batch, without what rows share.
        hidden: Task to (N,) labels for scoring that no batch carries.
        side: What rows share, or None.
        device: Where batches go; None for where the columns are.
        files: Mapped files.
    """

    all: Batch
    hidden: dict[str, Tensor] = field(default_factory=dict)
    side: SideColumns | None = None
    device: torch.device | None = None
    files: list[mmap.mmap] = field(default_factory=list)
    _taken: int = field(default=0, init=False)

    @classmethod
    def load(cls, split: Split, device: torch.device) -> DeviceSplit:
        """Open a split for a device."""
        arrays = split.arrays()
        size = sum(array.nbytes for array in arrays.values())
        room = device.type != "cuda" or size <= SHARE * torch.cuda.mem_get_info(device)[0]
        home = device if room else torch.device("cpu")

        def tensor(array: np.ndarray) -> Tensor:
            return _tensor(array).to(home)

        def bags(of: Mapping[str, Bag]) -> Bags:
            return {
                name: (tensor(bag.offsets), tensor(bag.values), tensor(bag.weights))
                for name, bag in of.items()
            }

        own = Batch(
            tensor(split.ids),
            tensor(split.dense),
            tensor(split.labels),
            None if bool(split.observed.all()) else tensor(split.observed),
            None if split.weight is None else tensor(split.weight),
            bags(split.bags),
        )
        hidden = {name: tensor(labels) for name, labels in split.hidden.items()}
        shared = split.shared
        side = None
        if shared is not None:
            side = SideColumns(
                tensor(shared.row), tensor(shared.ids), tensor(shared.dense), bags(shared.bags)
            )
        files = {id(file): file for array in arrays.values() if (file := _file(array)) is not None}
        return cls(own, hidden, side, None if room else device, list(files.values()))

    def __len__(self) -> int:
        return len(self.all)

    @property
    def home(self) -> torch.device:
        """Where the columns are, and row numbers are looked up."""
        return self.all.labels.device

    @property
    def target(self) -> torch.device:
        """Where batches go."""
        return self.device or self.home

    def take(self, rows: Tensor, weight: Tensor | None = None) -> Batch:
        """The rows of the given numbers (B,), with extra row weights (B,) if given."""
        source = self.all
        rows = rows.to(self.home)
        own = None if source.weight is None else source.weight.index_select(0, rows)
        if weight is not None:
            own = weight if own is None else own * weight
        batch = Batch(
            source.ids.index_select(0, rows),
            source.dense.index_select(0, rows),
            source.labels.index_select(0, rows),
            None if source.observed is None else source.observed.index_select(0, rows),
            own,
            {name: _take_bag(bag, rows) for name, bag in source.bags.items()},
        )
        if self.side is not None:
            shared = self.side.row.index_select(0, rows)
            batch.ids = torch.cat([batch.ids, self.side.ids.index_select(0, shared)], 1)
            batch.dense = torch.cat([batch.dense, self.side.dense.index_select(0, shared)], 1)
            batch.bags |= {name: _take_bag(bag, shared) for name, bag in self.side.bags.items()}
        self._release(len(rows))
        return batch if self.target == self.home else _moved(batch, self.target)

    def part(self, rows: Tensor) -> DeviceSplit:
        """The rows of the given numbers; what is not a label is gathered when it is asked for."""
        rows, source = rows.to(self.home), self.all
        labels = Batch(
            source.ids[:0],
            source.dense[:0],
            source.labels.index_select(0, rows),
            None if source.observed is None else source.observed.index_select(0, rows),
        )
        hidden = {name: values.index_select(0, rows) for name, values in self.hidden.items()}
        return _Part(labels, hidden, device=self.device, whole=self, rows=rows)

    def chunks(self, size: int) -> Iterator[Batch]:
        """All rows in order, in batches of at most ``size``."""
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self)), device=self.home))

    def _release(self, rows: int) -> None:
        """Now and then, give back the pages that were read: the system keeps them while it has
        room.
        """
        self._taken += rows
        if self._taken >= RELEASED_ROWS:
            self._taken = 0
            for file in self.files:
                if hasattr(file, "madvise"):
                    file.madvise(mmap.MADV_DONTNEED)


@dataclass
class _Part(DeviceSplit):
    """Some rows of a split."""

    whole: DeviceSplit = field(kw_only=True)
    rows: Tensor = field(kw_only=True)

    def take(self, rows: Tensor, weight: Tensor | None = None) -> Batch:
        return self.whole.take(self.rows[rows.to(self.home)], weight)


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The given NumPy array is not writable"
        )  # nobody writes to it
        return torch.from_numpy(array)


def _file(array: object) -> mmap.mmap | None:
    """The mapped file that an array looks into, if it does."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array


def _take_bag(bag: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    offsets, values, weights = bag
    starts = offsets.index_select(0, rows)
    lengths = offsets.index_select(0, rows + 1) - starts
    new = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    place = torch.arange(int(new[-1]), device=rows.device) + torch.repeat_interleave(
        starts - new[:-1], lengths
    )
    return new, values.index_select(0, place), weights.index_select(0, place)


def _moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on another device; the copies run beside the host."""

    def move(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(
            device, non_blocking=True
        )

    return Batch(
        move(batch.ids),
        move(batch.dense),
        move(batch.labels),
        None if batch.observed is None else move(batch.observed),
        None if batch.weight is None else move(batch.weight),
        {name: (move(a), move(b), move(c)) for name, (a, b, c) in batch.bags.items()},
    )
