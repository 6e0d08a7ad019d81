"""Adam on the rows of large embedding tables that a batch holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlkit.ops.adam_rows import AdamStep, adam_rows
from mtlkit.ops.take_rows import coalesced


class LazyAdam(torch.optim.Optimizer):
    """Adam (arXiv:1412.6980) on the rows that a row-sparse gradient holds.

    A row that every step holds moves as under plain Adam. Bias is corrected by the steps of the
    table, not of the row. ``torch.optim.SparseAdam`` adds its epsilon before that correction, which
    shortens the first steps of rows with small gradients several times.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move the rows of all gradients; a closure is not called."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._move(table, group)

    def _move(self, table: Tensor, group: dict[str, Any]) -> None:
        """Move the rows of a table (V, ...) that its gradient holds."""
        assert table.grad is not None
        grad = coalesced(table.grad)

        # The two moments of a row lie side by side: one trip to memory.
        state = self.state[table]
        if not state:
            moments = table.new_zeros(len(table), 2, *table.shape[1:])
            state |= {"step": 0, "moments": moments}
        state["step"] += 1

        # Both corrections of the bias are factors of this step.
        first_beta, second_beta = group["betas"]
        step = AdamStep(
            mean_rate=1 - first_beta,
            square_rate=1 - second_beta,
            correction=1 / (1 - second_beta ** state["step"]),
            rate=group["lr"] / (1 - first_beta ** state["step"]),
            eps=group["eps"],
        )
        adam_rows(table, state["moments"], grad.indices()[0], grad.values(), step)
