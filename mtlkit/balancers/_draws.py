"""Random numbers of single steps, drawn ahead so that a GPU gets those of many steps at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtlkit.balancers._step import Step

AHEAD = 256  # steps whose numbers are drawn together


class StepDraws:
    """A few numbers a step. Those of a step follow from its seed and its index alone.

    Args:
        distribution: ``random`` (uniform from 0 to 1) or ``standard_normal``.
        count: Numbers a step.
    """

    def __init__(self, distribution: Literal["random", "standard_normal"], count: int) -> None:
        self.distribution = distribution
        self.count = count
        self._block: tuple[int, int] | None = None
        self._numbers = torch.empty(0)  # (AHEAD, count)

    def of(self, step: Step) -> Tensor:
        """The numbers (count,) of a step, of the type of its losses."""
        block = (step.seed, step.index // AHEAD)
        if block != self._block or self._numbers.device != step.losses.device:
            first = block[1] * AHEAD
            rows = []
            for index in range(first, first + AHEAD):
                rng = np.random.default_rng([step.seed, index])
                rows.append(getattr(rng, self.distribution)(self.count))
            self._numbers = torch.from_numpy(np.stack(rows)).to(step.losses)
            self._block = block
        return self._numbers[step.index % AHEAD]
