"""What a forward pass costs, counted rather than timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtlkit.models._architecture import Architecture
from mtlkit.models._types import Batch
from mtlkit.ops._dispatch import plain_operations

aten = torch.ops.aten
FIRST_FACTOR: Mapping[Any, int] = {
    aten.mm.default: 0,
    aten.addmm.default: 1,
    aten.bmm.default: 0,
    aten.baddbmm.default: 1,
}
"""Matrix products, with the position of the argument whose last dimension is summed over."""


class _Products(TorchDispatchMode):
    """Counts the floating-point operations of all matrix products.

    A multiplication and an addition are two operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FIRST_FACTOR:
            summed_over = args[FIRST_FACTOR[func]].shape[-1]
            self.operations += 2 * result.numel() * summed_over
        return result


@torch.no_grad()
def flops_per_row(model: Architecture, batch: Batch) -> float:
    """Floating-point operations of the matrix products of a forward pass, by row of the batch.

    They are those of the plain form: the fast kernels do the same sums in another order. Look-ups,
    activations and the sums of mixtures are left out.
    """
    was_training = model.training
    model.eval()
    # only the products of PyTorch's own operations can be seen
    with plain_operations(), _Products() as seen:
        model(batch)
    model.train(was_training)
    return seen.operations / len(batch)
