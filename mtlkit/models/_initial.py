"""Initial linear layers after Glorot: normal with variance 2 / (inputs + outputs), zero biases.

Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
AISTATS 2010. In a tensor that stacks several layers, each layer counts its own inputs and outputs;
a module with such a tensor therefore has a method ``glorot``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def glorot_(weight: Tensor, bias: Tensor | None = None) -> None:
    """Draw layers anew, in place.

    Args:
        weight: (..., outputs, inputs).
        bias: Of any shape, or None.
    """
    outputs, inputs = weight.shape[-2:]
    weight.normal_(0, math.sqrt(2 / (inputs + outputs)))
    if bias is not None:
        bias.zero_()


def glorot(model: nn.Module) -> None:
    """Draw all linear layers of a model anew; embeddings, norms and other parameters stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            glorot_(module.weight, module.bias)
        elif callable(draw_anew := getattr(module, "glorot", None)):
            draw_anew()
