"""IMTL: losses scaled to the same size, then equal projections on all tasks' gradients.

w_t = a_t exp(s_t): imtl-l learns s from the losses, imtl-g finds a for the gradients of exp(s_t)
L_t, sum a = 1.

Papers: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021 (openreview IMPnRXEWpvr, no
arXiv number); Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, arXiv:2308.12029, on its
loss part.

When to use: losses and gradients of different size.
When not: instead of imtl-g where only shared parameters matter: the step points the same way, and
the scales give it another length.
Cost: one backward pass a task.
Deviations: those of imtl-l and imtl-g. What a single task's parameters receive is the recorded
``heads`` setting, w_t or 1; in the paper it is exp(s_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import Step
from mtlkit.balancers.imtl_g import IMTLG
from mtlkit.balancers.imtl_l import IMTLL
from mtlkit.data.types import Task


class IMTL(Balancer):
    """Impartial multi-task learning, both parts."""

    class Options(IMTLL.Options):
        """Options of imtl."""

    search_space: ClassVar = {"lr": {"log": [1e-3, 1e-1]}}
    needs = "gram"
    scale = "native"
    signed = True
    same_as: ClassVar = {"equal cosines": {}}

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.loss_balance = IMTLL(tasks, options)
        self.gradient_balance = IMTLG(tasks, IMTLG.Options())

    def forward(self, step: Step) -> Tensor:
        scales = self.loss_balance(step)  # (T,) exp(s)
        # inner products of the gradients of exp(s_t) L_t
        gramian = step.gramian() * torch.outer(scales, scales).to(torch.float64)
        return scales * self.gradient_balance.weigh(step, gramian)
