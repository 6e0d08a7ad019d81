"""PEPNet: who, what and where decide how embeddings and hidden units of the towers are scaled.

GateNU(u) = 2 * sigmoid(W_2 relu(W_1 u)), sg = stop-gradient, x = all embeddings.
EPNet: o = x * GateNU([x_domain; sg(x)]).
PPNet: h_t^0 = o and, for every hidden layer l of tower t, h_t^l = f(W_t^l h_t^(l-1)) *
GateNU_t^l([x_user; x_item; sg(o)]); y_t = Linear_t(h_t^L). The gates train the embeddings of the
domain, the user and the item, but no other part of x.

Paper: Chang et al., "PEPNet: Parameter and Embedding Personalized Network for Infusing with
Personalized Prior Information", KDD 2023, arXiv:2302.01115.

When to use: several domains (pages, entrances) and ids of users and items in one data set; features
with these roles.
When not: data without a domain, or without ids that say who and what.
Cost: T gate networks on the whole input for each tower layer, often more than the towers
themselves.
Deviations: there is no code of the authors. Author features count as item ones. Gates are not
shared by tasks. The embedding that is scaled holds all features, those with a role, too.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import StackedLinear, Towers
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes

ROLES = ("domain", "user", "item")


class GateNU(nn.Module):
    """n gates in (0, scale): scale * sigmoid(W_2 relu(W_1 u)).

    Args:
        scale: Largest factor.
    """

    def __init__(self, n: int, inputs: int, hidden: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.cross = StackedLinear(n, inputs, hidden)
        self.spread = StackedLinear(n, hidden, outputs)
        self.scale = scale

    def forward(self, u: Tensor) -> Tensor:
        """(B, inputs) to (B, n, outputs)."""
        return self.scale * self.spread(F.relu(self.cross(u))).sigmoid()


class PEPNet(Architecture):
    """Parameter and embedding personalised network."""

    detaches = True

    class Options(ModelOptions):
        tower: Sizes | dict[str, Sizes] = Field(
            (64, 32), description="hidden layers of the towers, for all or by task"
        )
        gate_width: int = Field(32, gt=0, description="hidden width of each gate")
        gate_scale: float = Field(2.0, gt=0, description="largest factor of a gate")

    search_space: ClassVar = {
        "tower": {"choice": [[32, 16], [64, 32], [128, 64]]},
        "gate_width": {"choice": [16, 32, 64]},
    }

    @classmethod
    def inapplicable(cls, schema: Schema) -> str | None:
        roles = {feature.role for feature in schema.features}
        for role in ROLES:
            if role not in roles:
                return f"has no feature with the role {role} (needs domain, user and item)"
        return None

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.embedding = FieldEmbedding(schema, options)
        width = self.embedding.width
        domain = self._columns("domain")
        prior = torch.cat([self._columns("user"), self._columns("item")])
        self.domain: Tensor = nn.Buffer(domain, persistent=False)
        self.prior: Tensor = nn.Buffer(prior, persistent=False)

        # One gate on the embeddings, and one on each hidden layer of each stack of towers.
        hidden, scale = options.gate_width, options.gate_scale
        self.epnet = GateNU(1, width + len(domain), hidden, width, scale)
        self.ppnet = nn.ModuleList()
        self.towers = Towers(self.tasks, width, options)
        inputs = width + len(prior)
        for members, sizes in zip(self.towers.members, self.towers.sizes, strict=True):
            gates = [GateNU(len(members), inputs, hidden, size, scale) for size in sizes]
            self.ppnet.append(nn.ModuleList(gates))

    def _columns(self, role: str) -> Tensor:
        """The columns of x that features with a role fill."""
        columns: list[int] = []
        for feature in self.schema.features:
            if feature.role == role:
                columns += self.embedding.feature_columns[feature.name]
        return torch.tensor(columns, dtype=torch.long)

    def forward(self, batch: Batch) -> Output:
        embedded = self.embedding(batch)
        x = embedded.tensor()  # (B, D)

        # EPNet: the domain scales the embeddings.
        domain_inputs = torch.cat([x[:, self.domain], x.detach()], dim=-1)
        scaled = x * self.epnet(domain_inputs)[:, 0]  # (B, D)

        # PPNet: user and item scale the hidden layers of the towers.
        prior = torch.cat([x[:, self.prior], scaled.detach()], dim=-1)
        factors = [[gate(prior) for gate in stack.children()] for stack in self.ppnet]
        tower_inputs = scaled[:, None].expand(-1, len(self.tasks), -1)  # (B, T, D)
        return self.output(self.towers(tower_inputs, factors), embedded)
