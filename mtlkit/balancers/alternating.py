"""Alternating: one task a step, in rounds.

A round visits every task once, in an order drawn anew; the task whose turn it is has weight 1 (or
its rate), the others have 0. Tasks without a label in the batch are skipped, and a round ends when
no active task is left to visit.

Paper: Pascal et al., "Improved optimization strategies for deep Multi-Task Networks", 2021,
arXiv:2109.11678.

When to use: tasks whose gradients are better not added up; tasks with labels on different rows.
When not: few steps, as each task gets one in T.
Cost: one backward pass.
Deviations: the optimiser's running means are common to all tasks, where the paper keeps them apart;
a task's own parameters move on by the momentum that is left while others have their turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._draws import StepDraws
from mtlkit.balancers._options import per_task
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task
from mtlkit.settings import Floats


class Alternating(Balancer):
    """One task at a time."""

    class Options(Balancer.Options):
        rates: Floats = Field(
            (), description="a factor on each task's steps, in the order of the tasks; default 1"
        )

    scale = "native"
    on_scale = True

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.rates: Tensor = nn.Buffer(per_task("rates", options.rates, tasks, 1.0))
        self.round: Tensor = nn.Buffer(torch.ones((), dtype=torch.int64))
        # (T,) the last round in which each task had its turn
        self.visited: Tensor = nn.Buffer(torch.zeros(len(tasks), dtype=torch.int64))
        self.positions: Tensor = nn.Buffer(torch.arange(len(tasks)), persistent=False)
        self.draws = StepDraws("random", len(tasks))

    def forward(self, step: Step) -> Tensor:
        # a round is over when no active task is left to visit; then all wait again
        waiting = step.active & (self.visited < self.round)
        round_over = ~waiting.any() & step.active.any()
        self.round.add_(round_over)
        waiting = torch.where(round_over, step.active, waiting)

        # a random one of those that wait
        chosen = torch.where(waiting, self.draws.of(step), -1.0).argmax()
        turn = waiting & (self.positions == chosen)
        self.visited.copy_(torch.where(turn, self.round, self.visited))
        return (self.rates * turn).to(step.losses.dtype)
