"""MaskNet: layers that multiply their input by a mask, computed from the whole instance.

Wang et al., "MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by
Instance-Guided Mask", DLP-KDD 2021, arXiv:2102.07619. Here x is normalised as a whole, where the
paper normalises each field's embedding by itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models._layers import StackedLinear, StackedNorm


class MaskBlock(nn.Module):
    """n parallel blocks: relu(LN(W (v * mask))), mask = W_2 relu(W_1 x).

    Args:
        n: Number of blocks.
        context: Width of x.
        inputs: Width of v.
        aggregation: Hidden width of the mask.
        outputs: Width of the output of each block.
    """

    def __init__(self, n: int, context: int, inputs: int, aggregation: int, outputs: int) -> None:
        super().__init__()
        self.aggregate = StackedLinear(n, context, aggregation)
        self.project = StackedLinear(n, aggregation, inputs)
        self.linear = StackedLinear(n, inputs, outputs)
        self.norm = StackedNorm("layer", n, outputs)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        """x (B, context) and v (B, inputs) to (B, n, outputs)."""
        mask = self.project(F.relu(self.aggregate(x)))  # (B, n, inputs)
        return F.relu(self.norm(self.linear(v[:, None] * mask)))


class MaskNet(nn.Module):
    """Mask blocks beside each other on LN(x), their outputs concatenated, or one after another.

    Args:
        serial: Whether each block reads the output of the one before. The mask is always computed
            from x.
        blocks: Number of blocks.
        width: Width of x.
        aggregation: Hidden width of the masks.
        outputs: Width of the output of each block.
    """

    def __init__(
        self, serial: bool, blocks: int, width: int, aggregation: int, outputs: int
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        depth, parallel = (blocks, 1) if serial else (1, blocks)
        self.blocks = nn.ModuleList()
        for step in range(depth):
            inputs = width if step == 0 else outputs
            self.blocks.append(MaskBlock(parallel, width, inputs, aggregation, outputs))
        self.outputs = parallel * outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to (B, outputs)."""
        v = self.norm(x)
        for block in self.blocks:
            v = block(x, v).flatten(1)  # (B, parallel * outputs)
        return v
