"""HoME: experts for groups of tasks, then for tasks, normalised and gated to protect sparse tasks.

Meta level: group g and the shared path read x, each scaled by a feature gate of its own. z_g mixes
the group's and the shared meta experts, z_S all of them. Task level: task t of group g mixes its
own experts on z_g, the group's on z_g and the shared ones on z_S, each input scaled by a feature
gate, by softmax(W_t [z_g; z_S]). To every mixture, one of the reader's own experts alone is added,
by a self gate on their unscaled input (a sigmoid if there is one expert). An expert is
Swish(BatchNorm(W u)). A feature gate is sum_i softmax(W u)_i 2 sigmoid(u B_i A_i) with n pairs of
matrices of rank width / n. y_t = Tower_t(h_t).

Paper: Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou", KDD
2025, arXiv:2408.05430.

When to use: many tasks that fall into groups, some with few positives; experts of ple that die or
serve one task only.
When not: two or three tasks without groups, where most of the hierarchy repeats itself.
Cost: two levels of experts, and a feature gate of about 2 * width^2 parameters for each of their
inputs.
Deviations: there is no code of the authors. Without the option ``groups`` all tasks are one group;
the paper groups tasks by hand. Norm and activation are those of the towers, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedLinear, StackedMLP, Towers
from mtlkit.models._moe import GateStack, MoELayer, numbered
from mtlkit.models._options import BaseOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.ops.combine_experts import combine_experts
from mtlkit.ops.softmax import softmax
from mtlkit.settings import Sizes


class FeatureGate(nn.Module):
    """n inputs scaled by mixtures of low-rank gates: u * sum_i softmax(W u)_i 2 sigmoid(u B_i A_i).

    Args:
        pairs: Number of low-rank gates of each input, m, of rank width / m.
    """

    mixed: Tensor

    def __init__(self, n: int, width: int, pairs: int) -> None:
        super().__init__()
        self.n = n
        self.pairs = pairs
        rank = max(1, width // pairs)
        self.router = StackedLinear(n, width, pairs, bias=False) if pairs > 1 else None
        self.down = StackedLinear(n * pairs, width, rank, bias=False)
        self.up = StackedLinear(n * pairs, rank, width, bias=False)
        self.register_buffer("mixed", torch.arange(n * pairs).view(n, pairs), persistent=False)

    @property
    def first(self) -> list[StackedLinear]:
        """The layers that read the input."""
        return [self.down] if self.router is None else [self.down, self.router]

    def forward(self, u: Tensor | EmbeddedBatch) -> Tensor:
        """(B, width), the same for all, or (B, n, width); returns (B, n, width)."""
        low_rank = self.up(self.down(u)).contiguous()  # slices of a product take many times as long
        factors = low_rank.sigmoid_()  # (B, n * m, width)
        inputs = u.tensor() if isinstance(u, EmbeddedBatch) else u
        if inputs.dim() == 2:
            inputs = inputs[:, None]
        if self.router is None:
            return inputs * (2 * factors)
        weights = softmax(self.router(u))  # (B, n, m)
        return inputs * combine_experts(2 * weights, factors, self.mixed)


class SelfGate(nn.Module):
    """Mixtures of n readers' own k experts.

    Args:
        k: Number of experts of each; a single one is weighted by a sigmoid.
    """

    mixed: Tensor

    def __init__(self, n: int, width: int, k: int) -> None:
        super().__init__()
        self.n_experts = n * k
        self.linear = StackedLinear(n, width, k)
        self.register_buffer("mixed", torch.arange(n * k).view(n, k), persistent=False)

    def forward(self, u: Tensor | EmbeddedBatch, experts: Tensor) -> Tensor:
        """(B, n, d) mixtures of the experts.

        Args:
            u: (B, width), the same for all, or (B, n, width).
            experts: (B, n * k, d), those of the first reader first.
        """
        logits = self.linear(u)
        weights = softmax(logits) if logits.shape[-1] > 1 else logits.sigmoid()  # (B, n, k)
        return combine_experts(weights, experts, self.mixed)


class HoME(Architecture):
    """Hierarchy of multi-gate experts."""

    inputs: Tensor

    class Options(GateOptions):
        groups: dict[str, str] = Field(
            default_factory=dict, description="task: its group; default: one group of all"
        )
        meta: int = Field(2, gt=0, description="meta experts of each group, and shared ones")
        meta_hidden: Sizes = Field(
            (32,), min_length=1, description="hidden layers of each meta expert"
        )
        specific: int = Field(
            1, gt=0, description="experts of each task, of each group, and shared ones"
        )
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        gate_parts: int = Field(2, gt=0, description="low-rank matrices of each feature gate")
        activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = "silu"
        norm: Literal["none", "batch", "layer"] = "batch"

    search_space: ClassVar = {
        "meta_hidden": {"choice": [[32], [64]]},
        "hidden": {"choice": [[32], [64], [64, 32]]},
    }

    @classmethod
    def check(cls, schema: Schema, options: BaseOptions) -> None:
        assert isinstance(options, cls.Options)
        names = set(schema.task_names)
        if options.groups and set(options.groups) != names:
            one_group = ",".join(f"groups.{name}=first" for name in schema.task_names)
            raise UsageError(
                "The groups of home must name a group for each task, and no other task.",
                f"mtlkit bench --models 'home[{one_group}]'",
            )
        if "shared" in options.groups.values():
            raise UsageError(
                "No group of home can be called 'shared'.",
                "mtlkit info home tells of the shared path",
            )

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.check(schema, options)
        tasks = schema.task_names
        group_of = options.groups or dict.fromkeys(tasks, "all tasks")
        groups = list(dict.fromkeys(group_of[task] for task in tasks))
        task_groups = torch.tensor([groups.index(group_of[task]) for task in tasks])  # (T,)
        self.embedding = FieldEmbedding(schema, options)
        self._add_meta_level(self.embedding.width, groups)
        self._add_task_level(self.meta_experts.outputs, groups, task_groups)
        self.towers = Towers(self.tasks, self.experts.outputs, options)

    def _add_meta_level(self, width: int, groups: Sequence[str]) -> None:
        """The first level: G groups and the shared path on x."""
        options = self.options
        assert isinstance(options, HoME.Options)
        n_groups, meta = len(groups), options.meta
        n_experts = (n_groups + 1) * meta
        self.meta_features = FeatureGate(n_groups + 1, width, options.gate_parts)
        self.meta_experts = StackedMLP(n_experts, width, options.meta_hidden, options)
        self.meta_gates = Gate(n_groups, width, 2 * meta, options)
        self.shared_gate = Gate(1, width, n_experts, options)
        self.meta_self = SelfGate(n_groups + 1, width, meta)

        # A group mixes its own and the shared experts, the shared path all of them.
        shared = torch.full((n_groups,), n_groups)
        seen = torch.stack([torch.arange(n_groups), shared], dim=1)  # (G, 2) paths
        self.meta_level = MoELayer(
            1,
            self.meta_experts,
            [
                GateStack(groups, self.meta_gates, _experts_of(seen, meta)),
                GateStack(["shared"], self.shared_gate),
            ],
            numbered([*groups, "shared"], meta),
            torch.arange(n_groups + 1).repeat_interleave(meta),
        )

    def _add_task_level(self, width: int, groups: Sequence[str], task_groups: Tensor) -> None:
        """The second level: the paths of T tasks, G groups and all, on the outputs of the first."""
        options = self.options
        assert isinstance(options, HoME.Options)
        tasks, specific = self.schema.task_names, options.specific
        n_tasks, n_groups = len(tasks), len(groups)
        n_paths = n_tasks + n_groups + 1
        self.features = FeatureGate(n_paths, width, options.gate_parts)
        self.experts = StackedMLP(n_paths * specific, width, options.hidden, options)
        self.gates = Gate(n_tasks, 2 * width, 3 * specific, options)
        self.self_gates = SelfGate(n_tasks, width, specific)

        # The path of a task reads the output of its group.
        inputs = torch.cat([task_groups, torch.arange(n_groups + 1)])  # (paths,)
        self.register_buffer("inputs", inputs, persistent=False)

        # A task mixes its own experts, its group's and the shared ones.
        shared = torch.full((n_tasks,), n_tasks + n_groups)
        seen = torch.stack([torch.arange(n_tasks), n_tasks + task_groups, shared], dim=1)  # (T, 3)
        paths = [*tasks, *(f"group {name}" for name in groups), "shared"]
        self.task_level = MoELayer(
            2,
            self.experts,
            [GateStack(tasks, self.gates, _experts_of(seen, specific))],
            numbered(paths, specific),
            torch.arange(n_paths).repeat_interleave(specific),
        )

    def forward(self, batch: Batch) -> Output:
        n_tasks = len(self.tasks)
        embedded = self.embedding(batch)
        # All layers that read x (B, D) are one product.
        gates = [*self.meta_gates.first, *self.shared_gate.first, self.meta_self.linear]
        x = embedded.compute_together(*self.meta_features.first, *gates)

        # The meta level: a mixture for each group and one of all, each with its own experts again.
        outputs = self.meta_level.expert_outputs(self.meta_features(x))  # (B, E, d)
        meta = self.meta_level.mix(self.meta_level.gate_weights(x), outputs)
        z = meta.outputs + self.meta_self(x, outputs)  # (B, G + 1, d)

        # The task level: the gate of a task reads its group's output and the shared one.
        path_inputs = z.index_select(1, self.inputs)  # (B, T + G + 1, d)
        outputs = self.task_level.expert_outputs(self.features(path_inputs))
        task_inputs = path_inputs[:, :n_tasks]
        gate_inputs = torch.cat([task_inputs, z[:, -1:].expand_as(task_inputs)], dim=-1)
        mixture = self.task_level.mix(self.task_level.gate_weights(gate_inputs), outputs)
        own_outputs = outputs[:, : self.self_gates.n_experts]
        h = mixture.outputs + self.self_gates(task_inputs, own_outputs)  # (B, T, d)

        logits = self.towers(h)
        return self.output(logits, embedded, meta.gates | mixture.gates)


def _experts_of(paths: Tensor, each: int) -> Tensor:
    """Paths (n, p) to the experts (n, p * each) on them."""
    return (paths[..., None] * each + torch.arange(each)).flatten(-2)
