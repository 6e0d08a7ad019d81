"""The batches of a run, one after another without end."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from mtlkit.models._types import Batch
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.sampling import row_stream
from mtlkit.training.stratified import StratifiedSampler


class BatchStream:
    """Endless training batches, with the order of rows from a generator.

    Its state is the number of batches taken: the rows follow from that and from the seed.

    Args:
        sampler: How batches with rows of every task are drawn; None if all rows are shuffled.
        groups: (N,) numbers of the groups whose rows come together; None for no groups.
        with_seeds: Whether each batch gets a seed of its own, for dropout.

    Attributes:
        block: Which block of each batch is handed out, and how many blocks there are.
        taken: Number of batches taken.
        seed: Of the last batch; 0 without seeds.
    """

    def __init__(
        self,
        split: DeviceSplit,
        sampler: StratifiedSampler | None,
        batch_size: int,
        random: torch.Generator,
        groups: Tensor | None = None,
        with_seeds: bool = False,
    ) -> None:
        self.split, self.random, self.with_seeds = split, random, with_seeds
        self.block = (0, 1)
        self.taken, self.seed = 0, 0
        device = split.row_device
        self._weights: Tensor | None = None  # (N,)
        self._batches: Generator[Batch] | None = None
        self._rows: Iterator[Tensor]
        if sampler is None:
            self._rows = row_stream(len(split), batch_size, random, device, groups)
        else:
            self._weights = torch.from_numpy(sampler.weights).to(device)
            self._rows = sampler.stream(random, device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.with_seeds:  # the seed is that of the last rows
            return self.split.take(*self.next_rows())
        if self._batches is None:
            self._batches = self.split.take_each(iter(self._draw, None))
        batch = next(self._batches)
        self.taken += 1
        return batch

    def close(self) -> None:
        """End the thread that gathers batches ahead, if there is one; no batch may follow."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def next_rows(self) -> tuple[Tensor, Tensor | None]:
        """The row numbers (B,) of the next batch, and the factors (B,) on their weights, if any."""
        self.taken += 1
        return self._draw()

    def _draw(self) -> tuple[Tensor, Tensor | None]:
        rows = next(self._rows)
        if self.with_seeds:
            seed = int(torch.randint(2**62, (), generator=self.random))
            self.seed = seed + self.block[0]  # each block has dropout of its own
        number, blocks = self.block
        if blocks > 1:
            rows = rows.tensor_split(blocks)[number]
        return rows, None if self._weights is None else self._weights[rows]

    def state_dict(self) -> dict[str, int]:
        """The number of batches taken."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Pass over as many batches as were taken, without gathering their rows."""
        while self.taken < state["taken"]:
            self.next_rows()
