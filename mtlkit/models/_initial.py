"""Initial linear layers: normal with variance 2 / (inputs + outputs), and biases of zero.

Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
AISTATS 2010. Of several layers in one tensor each has its own inputs and outputs, so a module that
holds some has a method ``glorot``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def glorot_(weight: Tensor, bias: Tensor | None = None) -> None:
    """Draw layers anew.

    Args:
        weight: (..., outputs, inputs).
        bias: Of any shape.
    """
    outputs, inputs = weight.shape[-2:]
    weight.normal_(0, math.sqrt(2 / (inputs + outputs)))
    if bias is not None:
        bias.zero_()


def glorot(model: nn.Module) -> None:
    """Draw all linear layers of a model anew; embeddings, norms and numbers that are no layer stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            glorot_(module.weight, module.bias)
        elif callable(own := getattr(module, "glorot", None)):
            own()
