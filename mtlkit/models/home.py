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
serve one task only. When not: two or three tasks without groups, where most of the hierarchy
repeats itself.
Cost: two levels of experts, and a feature gate of about 2 * width^2 parameters for each of their
inputs.
Deviations: there is no code of the authors. Without the option ``groups`` all tasks are one group;
the paper groups tasks by hand. Norm and activation are those of the towers, too.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedLinear, StackedMLP, Towers
from mtlkit.models._options import BaseOptions
from mtlkit.models._types import Batch, Output, Prediction
from mtlkit.ops.combine_experts import combine_experts
from mtlkit.settings import Sizes


class FeatureGate(nn.Module):
    """n inputs scaled by mixtures of low-rank gates: u * sum_i softmax(W u)_i 2 sigmoid(u B_i A_i).

    Args:
        n: Number of inputs.
        width: Width of each.
        parts: Low-rank gates of each, of rank width / parts.
    """

    def __init__(self, n: int, width: int, parts: int) -> None:
        super().__init__()
        self.router = StackedLinear(n, width, parts, bias=False) if parts > 1 else None
        self.down = StackedLinear(n * parts, width, max(1, width // parts), bias=False)
        self.up = StackedLinear(n * parts, max(1, width // parts), width, bias=False)
        self.n, self.parts = n, parts

    def forward(self, u: Tensor) -> Tensor:
        """(B, width), the same for all, or (B, n, width); returns (B, n, width)."""
        each = u if u.dim() == 2 else u.repeat_interleave(self.parts, dim=1)
        factors = 2 * self.up(self.down(each)).sigmoid().unflatten(1, (self.n, self.parts))
        own = u[:, None] if u.dim() == 2 else u
        if self.router is None:
            return own * factors[:, :, 0]
        return own * (self.router(u).softmax(-1)[..., None] * factors).sum(2)


class SelfGate(nn.Module):
    """Mixtures of n readers' own k experts.

    Args:
        n: Number of readers.
        width: Width of the input of each gate.
        k: Number of experts of each; a single one is weighted by a sigmoid.
    """

    def __init__(self, n: int, width: int, k: int) -> None:
        super().__init__()
        self.linear = StackedLinear(n, width, k)

    def forward(self, u: Tensor, experts: Tensor) -> Tensor:
        """u (B, width) or (B, n, width), experts (B, n * k, d) in order, to (B, n, d)."""
        logits = self.linear(u)
        weights = logits.softmax(-1) if logits.shape[-1] > 1 else logits.sigmoid()
        return (weights[..., None] * experts.unflatten(1, weights.shape[1:])).sum(2)


class HoME(Architecture):
    """Hierarchy of multi-gate experts."""

    meta_owner: Tensor
    meta_expert_index: Tensor
    source: Tensor
    owner: Tensor
    expert_index: Tensor

    class Options(GateOptions):
        """Options of home."""

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

    @classmethod
    def check(cls, schema: Schema, options: BaseOptions) -> None:
        assert isinstance(options, cls.Options)
        names = set(schema.task_names)
        if options.groups and set(options.groups) != names:
            raise UsageError(
                "The groups of home must name a group for each task, and no other task.",
                f"mtlkit bench --models 'home[{','.join(f'groups.{name}=first' for name in schema.task_names)}]'",
            )
        if "shared" in options.groups.values():
            raise UsageError(
                "No group of home can be called 'shared'.",
                "mtlkit info home tells of the shared path",
            )

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.check(schema, options)
        names, meta, specific = schema.task_names, options.meta, options.specific
        of = options.groups or dict.fromkeys(names, "all tasks")
        groups = list(dict.fromkeys(of[name] for name in names))
        n, g = len(names), len(groups)
        group = torch.tensor([groups.index(of[name]) for name in names])  # (T,)
        self.embedding = FieldEmbedding(schema, options)
        width = self.embedding.width
        self.meta_features = FeatureGate(g + 1, width, options.gate_parts)
        self.meta_experts = StackedMLP((g + 1) * meta, width, options.meta_hidden, options)
        self.meta_gates = Gate(g, width, 2 * meta, options)
        self.shared_gate = Gate(1, width, (g + 1) * meta, options)
        self.meta_self = SelfGate(g + 1, width, meta)
        width = self.meta_experts.outputs
        self.features = FeatureGate(n + g + 1, width, options.gate_parts)
        self.experts = StackedMLP((n + g + 1) * specific, width, options.hidden, options)
        self.gates = Gate(n, 2 * width, 3 * specific, options)
        self.self_gates = SelfGate(n, width, specific)
        self.own_experts = n * specific
        self.towers = Towers(self.tasks, self.experts.outputs, options)

        def experts_of(paths: Tensor, each: int) -> Tensor:
            """(..., p) paths to their experts (..., p * each)."""
            return (paths[..., None] * each + torch.arange(each)).flatten(-2)

        shared = torch.full((g,), g)
        task_paths = torch.stack(
            [torch.arange(n), n + group, torch.full((n,), n + g)], 1
        )  # own, group's, shared
        buffers = {
            "meta_owner": torch.arange(g + 1).repeat_interleave(
                meta
            ),  # path that a meta expert reads
            "meta_expert_index": experts_of(
                torch.stack([torch.arange(g), shared], 1), meta
            ),  # (G, 2 meta)
            "source": torch.cat(
                [group, torch.arange(g + 1)]
            ),  # (T + G + 1,) the z that a path of the task level reads
            "owner": torch.arange(n + g + 1).repeat_interleave(specific),
            "expert_index": experts_of(task_paths, specific),  # (T, 3 specific)
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        meta_names = [f"{path} {k + 1}" for path in [*groups, "shared"] for k in range(meta)]
        for index, name in enumerate(groups):
            self.gate_experts[f"level-1/{name}"] = tuple(
                meta_names[k] for k in buffers["meta_expert_index"][index]
            )
        self.gate_experts["level-1/shared"] = tuple(meta_names)
        paths = [*names, *(f"group {name}" for name in groups), "shared"]
        self.expert_names = [
            tuple(meta_names),
            tuple(f"{path} {k + 1}" for path in paths for k in range(specific)),
        ]
        for task in names:
            kinds = (task, f"group {of[task]}", "shared")
            self.gate_experts[f"level-2/{task}"] = tuple(
                f"{kind} {k + 1}" for kind in kinds for k in range(specific)
            )

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        v, n = x.tensor(), len(self.tasks)
        outputs = self.present(
            0, self.meta_experts(self.meta_features(v).index_select(1, self.meta_owner))
        )
        to_group, to_all = (
            self.meta_gates(v),
            self.shared_gate(v),
        )  # (B, G, 2 meta), (B, 1, (G + 1) meta)
        z = torch.cat(
            [
                combine_experts(to_group, outputs, self.meta_expert_index),
                combine_experts(to_all, outputs),
            ],
            dim=1,
        )
        z = z + self.meta_self(v, outputs)  # (B, G + 1, d)
        read = z.index_select(1, self.source)  # (B, T + G + 1, d)
        outputs = self.present(1, self.experts(self.features(read).index_select(1, self.owner)))
        own = read[:, :n]
        weights = self.gates(
            torch.cat([own, z[:, -1:].expand_as(own)], dim=-1)
        )  # (B, T, 3 specific)
        h = combine_experts(weights, outputs, self.expert_index) + self.self_gates(
            own, outputs[:, : self.own_experts]
        )
        logits = self.towers(h)
        predictions = [
            Prediction(task.name, logit) for task, logit in zip(self.tasks, logits, strict=True)
        ]
        found = [*to_group.unbind(1), to_all[:, 0], *weights.unbind(1)]
        return Output(predictions, dict(zip(self.gate_experts, found, strict=True)), x)
