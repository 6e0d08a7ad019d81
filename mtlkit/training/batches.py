"""Packed splits as tensors on a device, and the order in which rows are visited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mtlkit.data.schema import Schema, Split
from mtlkit.models.base import Batch


@dataclass
class DeviceSplit:
    """A split whose columns live on one device; batches are gathered there.

    Args:
        all: All rows as one batch.
        hidden: Task to (N,) labels for scoring that no batch carries.
    """

    all: Batch
    hidden: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, split: Split, device: torch.device) -> DeviceSplit:
        """Copy a split to a device."""
        split = split.joined()

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(array)).to(device)

        observed = None if bool(split.observed.all()) else tensor(split.observed)
        weight = None if split.weight is None else tensor(split.weight)
        bags = {
            name: (tensor(bag.offsets), tensor(bag.values), tensor(bag.weights)) for name, bag in split.bags.items()
        }
        hidden = {name: tensor(labels) for name, labels in split.hidden.items()}
        return cls(Batch(tensor(split.ids), tensor(split.dense), tensor(split.labels), observed, weight, bags), hidden)

    def __len__(self) -> int:
        return len(self.all)

    def take(self, rows: Tensor, weight: Tensor | None = None) -> Batch:
        """The rows of the given numbers (B,), with extra row weights (B,) if given."""
        source = self.all
        own = None if source.weight is None else source.weight.index_select(0, rows)
        if weight is not None:
            own = weight if own is None else own * weight
        return Batch(
            source.ids.index_select(0, rows),
            source.dense.index_select(0, rows),
            source.labels.index_select(0, rows),
            None if source.observed is None else source.observed.index_select(0, rows),
            own,
            {name: _take_bag(bag, rows) for name, bag in source.bags.items()},
        )

    def chunks(self, size: int) -> Iterator[Batch]:
        """All rows in order, in batches of at most ``size``."""
        rows = torch.arange(len(self), device=self.all.labels.device)
        for part in rows.split(size):
            yield self.take(part)


def _take_bag(bag: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    offsets, values, weights = bag
    starts = offsets.index_select(0, rows)
    lengths = offsets.index_select(0, rows + 1) - starts
    new = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    place = torch.arange(int(new[-1]), device=rows.device) + torch.repeat_interleave(starts - new[:-1], lengths)
    return new, values.index_select(0, place), weights.index_select(0, place)


def row_stream(rows: int, batch_size: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Endless batches of row numbers (batch_size,): one permutation after another, every batch full.

    What is left of an epoch begins the first batch of the next, so shapes never change and no row is dropped.
    """
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, torch.randperm(rows, generator=generator)])
        on_device = left.to(device)
        full = len(left) // batch_size
        yield from on_device[: full * batch_size].split(batch_size)
        left = left[full * batch_size :]


def probe_rows(split: Split, schema: Schema, size: int, positives: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A fixed stratified sample that holds enough positives of every binary task.

    Rows are drawn within each pattern of binary labels, more than proportionally where positives are rare, and
    weighted by the inverse of their chance, so that weighted means over the sample estimate means over the split.

    Args:
        split: Where to draw from.
        schema: Says which tasks are binary.
        size: Rows to draw in proportion.
        positives: Least number of positives of each binary task (all there are, if fewer).
        seed: Of the draw.

    Returns:
        Row numbers (n,) int64 and weights (n,) float32 with mean 1.
    """
    rng = np.random.default_rng(seed)
    binary = [t for t, task in enumerate(schema.tasks) if task.kind == "binary"]
    labels = (np.asarray(split.labels)[:, binary] > 0) & np.asarray(split.observed)[:, binary]
    patterns, member, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    member = member.reshape(-1)
    least = np.zeros(len(patterns))
    for t in range(len(binary)):
        holds = patterns[:, t]
        if holds.any():
            share = counts * holds / (counts * holds).sum()
            least = np.maximum(least, np.ceil(positives * share))
    wanted = np.minimum(counts, np.maximum(least, np.ceil(size * counts / len(split)))).astype(int)
    rows, weights = [], []
    for p, count in enumerate(wanted):
        rows.append(rng.choice(np.flatnonzero(member == p), size=count, replace=False))
        weights.append(np.full(count, counts[p] / count))
    weight = np.concatenate(weights)
    return np.concatenate(rows), (weight / weight.mean()).astype(np.float32)
