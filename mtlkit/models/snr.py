"""SNR: layers cut into sub-networks, with connections that training switches on or off.

Level 1: S sub-networks on x. Between levels, and from the last one to the towers: v_i = sum_j z_ij
W_ij u_j (``trans``) or v_i = sum_j z_ij u_j (``aver``); sub-network i of the next level, or
Tower_i, reads v_i. Each z_ij is a hard concrete variable: z = clip((zeta - gamma) s + gamma, 0, 1),
s = sigmoid((log u - log(1 - u) + a_ij) / beta) with u uniform, drawn anew for each batch; when
scoring, s = sigmoid(a_ij). The expected number of open connections, sum sigmoid(a_ij - beta
log(-gamma / zeta)), times ``l0`` is added to the losses: a tower's connections to its own task's,
others in equal parts.

Paper: Ma et al., "SNR: Sub-Network Routing for Flexible Parameter Sharing in Multi-Task Learning",
AAAI 2019, doi:10.1609/aaai.v33i01.3301216; the variables are those of Louizos et al., ICLR 2018,
arXiv:1712.01312.

When to use: tasks that share some parts and not others, with a sparse model as the result.
When not: routing that depends on the row (see mmoe); runs too short for connections to settle.
Cost: sub-networks of a level as one product; with ``trans`` one matrix for each connection.
Deviations: there is no code of the authors. The penalty is part of the losses, which losses on all
splits show.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._initial import glorot_
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Objective
from mtlkit.settings import Sizes

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature and stretch of the hard concrete distribution


class Routing(nn.Module):
    """Connections from S sub-networks to n readers.

    Args:
        transform: Whether each connection has a matrix.
        start: Initial a: sigmoid(a) is about the share of open connections.
    """

    stack_axes = {"weight": 0, "log_alpha": 0}  # noqa: RUF012 - read only

    def __init__(self, n: int, subnets: int, width: int, transform: bool, start: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((n, subnets), start))
        self.weight: nn.Parameter | None = None
        if transform:
            bound = 1 / math.sqrt(subnets * width)
            weight = torch.empty(n, width, subnets, width).uniform_(-bound, bound)
            self.weight = nn.Parameter(weight)

    def glorot(self) -> None:
        """Draw the matrices anew: a reader's are one layer on the outputs of all sub-networks."""
        if self.weight is not None:
            glorot_(self.weight.flatten(2))

    def connections(self) -> Tensor:
        """(n, S) values of z: drawn in training, a fixed estimate otherwise."""
        logits: Tensor = self.log_alpha
        temperature = 1.0
        if self.training:
            u = torch.rand(logits.shape, device=logits.device).clamp(1e-6, 1 - 1e-6)
            noise = u.log() - (1 - u).log()
            logits = logits + noise.to(logits.dtype)
            temperature = BETA
        s = (logits / temperature).sigmoid()
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self, u: Tensor) -> Tensor:
        """(B, S, d) to (B, n, d)."""
        z = self.connections().to(u.dtype)
        if self.weight is None:
            return torch.einsum("nj,bjd->bnd", z, u)
        weight = self.weight * z[:, None, :, None]  # (n, d, S, d)
        matrix = weight.flatten(0, 1).flatten(1)  # (n * d, S * d)
        return F.linear(u.flatten(1), matrix).unflatten(1, weight.shape[:2])


class SNR(Architecture):
    """Sub-network routing."""

    class Options(ModelOptions):
        subnets: int = Field(4, gt=0, description="sub-networks of each level")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each sub-network")
        levels: int = Field(2, gt=0, description="levels of sub-networks")
        connection: Literal["trans", "aver"] = Field(
            "trans", description="with a matrix for each connection, or without"
        )
        l0: float = Field(
            1e-4, ge=0, description="price of an open connection, added to the losses"
        )
        start: float = Field(1.0, description="initial log-odds of a connection")

    search_space: ClassVar = {"hidden": {"choice": [[32], [64]]}, "l0": {"log": [1e-6, 1e-2]}}
    options: Options

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.embedding = FieldEmbedding(schema, options)
        # In this order, so that the last shared weight is one of a sub-network.
        self.routings = nn.ModuleList()
        self.subnets = nn.ModuleList()
        width = self.embedding.width
        for level in range(1, options.levels + 1):
            subnets = StackedMLP(options.subnets, width, options.hidden, options)
            self.subnets.append(subnets)
            width = subnets.outputs
            readers = options.subnets if level < options.levels else len(self.tasks)
            transform = options.connection == "trans"
            self.routings.append(Routing(readers, options.subnets, width, transform, options.start))
        self.towers = Towers(self.tasks, width, options)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        v = x
        for subnets, routing in zip(self.subnets, self.routings, strict=True):
            v = routing(subnets(v))  # (B, S, d), in the end (B, T, d)
        return self.output(self.towers(v), x)

    def objectives(self, output: Output, batch: Batch) -> list[Objective]:
        """The losses, and the price of open connections where their task has a label."""
        objectives = super().objectives(output, batch)
        if not self.options.l0:
            return objectives

        # The last level's connections lead to one task each; all tasks share the others.
        parameters = self.routings.named_parameters()
        log_alphas = [value for name, value in parameters if "log_alpha" in name]
        *inner, last = [_expected_open(log_alpha) for log_alpha in log_alphas]
        total = sum((count.sum() for count in inner), torch.zeros_like(last[0]))
        common = total / len(self.tasks)

        by_task = {objective.owner: objective for objective in objectives}
        for t, task in enumerate(self.tasks):
            price = self.options.l0 * (common + last[t])
            own = by_task.get(task.name, Objective(price, task.name))
            if own.active is not None:
                price = price * own.active
            objectives.append(Objective(price, task.name, own.active, own.total))
        return objectives


def _expected_open(log_alpha: Tensor) -> Tensor:
    """(n,) expected number of open connections to each reader."""
    return (log_alpha - BETA * math.log(-GAMMA / ZETA)).sigmoid().sum(1)
