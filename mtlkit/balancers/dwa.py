"""DWA: tasks whose loss falls slowly weigh more.

w = T softmax(r / temperature), r_t = L_t(last window) / L_t(window before). Windows are counted in
steps, so the method is at work in one-epoch training, too.

Paper: Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv:1803.10704.

When to use: tasks that learn at different speeds; cheap.
When not: noisy losses with short windows; on plateaus it is uniform.
Cost: one backward pass.
Deviations: windows of steps in place of epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._simplex import on_simplex
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task


class DWA(Balancer):
    """Dynamic weight average."""

    class Options(Balancer.Options):
        temperature: float = Field(2.0, gt=0, description="higher is closer to uniform")
        window: int = Field(100, gt=0, description="steps over which losses are averaged")

    search_space: ClassVar = {"temperature": {"log": [0.5, 10]}}
    on_scale = True
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        # of the window that is open
        self.sums: Tensor = nn.Buffer(torch.zeros(len(tasks)))
        self.counts: Tensor = nn.Buffer(torch.zeros(len(tasks)))
        # mean losses of the last window and of the one before
        self.last: Tensor = nn.Buffer(torch.full((len(tasks),), torch.nan))
        self.before: Tensor = nn.Buffer(torch.full((len(tasks),), torch.nan))
        # number of windows so far
        self.closed: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._closed_on_host = 0  # the same, which no step waits for

    def forward(self, step: Step) -> Tensor:
        if step.index // self.options.window > self._closed_on_host:
            self._close()

        # r_t = L_t(last window) / L_t(window before); 1 as long as there is none
        ratio = torch.nan_to_num(self.last / self.before, nan=1.0, posinf=1.0, neginf=1.0)
        self.sums.add_(torch.where(step.active, step.losses, 0.0))
        self.counts.add_(step.active)

        # T softmax(r / temperature)
        return on_simplex(torch.softmax(ratio / self.options.temperature, 0), step.active)

    def _close(self) -> None:
        """End a window; a task that had no label in it keeps its means."""
        seen = self.counts > 0
        means = self.sums / self.counts.clamp_min(1)
        self.before.copy_(torch.where(seen, self.last, self.before))
        self.last.copy_(torch.where(seen, means, self.last))
        self.sums.zero_()
        self.counts.zero_()
        self.closed.add_(1)
        self._closed_on_host += 1

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._closed_on_host = int(self.closed)
