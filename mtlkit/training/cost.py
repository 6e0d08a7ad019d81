"""What a forward pass costs, counted rather than timed."""

from __future__ import annotations

import torch

from mtlkit.models._architecture import Architecture
from mtlkit.models._types import Batch
from mtlkit.ops._dispatch import plain_operations


@torch.no_grad()
def flops_per_row(model: Architecture, batch: Batch) -> float:
    """Floating-point operations of the matrix products of a forward pass, by row of the batch; a
    multiplication and an addition are two.

    They are those of the plain form: the fast kernels do the same sums in another order. Look-ups,
    activations and the sums of mixtures are left out.
    """
    # imported here: it is needed once a run, at the end
    from torch.utils.flop_counter import FlopCounterMode

    was_training = model.training
    model.eval()
    # only the products of PyTorch's own operations can be seen
    with plain_operations(), FlopCounterMode(display=False) as counter:
        model(batch)
    model.train(was_training)
    return counter.get_total_flops() / len(batch)
