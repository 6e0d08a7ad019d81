"""Mixtures of experts: a level of experts, the gates that mix them, and the names of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from mtlkit.models._boundary import Boundary, FirstLayerBoundary, dense_weights, mixture_boundary
from mtlkit.models._embedded_batch import EmbeddedBatch, side_by_side
from mtlkit.models._layers import Gate, StackedLinear, StackedMLP
from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops.combine_experts import combine_experts, expert_index_array
from mtlkit.ops.gated_experts import MixedExperts, gated_experts, gated_experts_vjp
from mtlkit.ops.linear_by_path import Runs, linear_by_path
from mtlkit.ops.mixture_gramian import mixture_gramian


@dataclass
class Mixture:
    """Mixtures of the experts of a level, one a reader."""

    outputs: Tensor  # (B, n, d) the mixtures
    gates: dict[str, Tensor]  # the weights (B, k) of each reader, by the name of its gate
    # Where the readers part; None where the level has several stacks of gates, where it reads
    # another level in one kernel, or while a graph is compiled. It is where the tasks of a model
    # part only if its readers are all the tasks, in their order: a model that mixes otherwise (see
    # ``omoe``) leaves it out of its ``Output``.
    boundary: Boundary | None


class GateStack(nn.Module):
    """n gates of a level that are computed as one, and who reads the mixture of each.

    The gates stay sub-modules of the architecture, see :class:`MoELayer`. To keep them from being
    registered here a second time, under a second name, they are held in a tuple: PyTorch registers
    a module that is an attribute, but does not look into tuples.

    Args:
        readers: Names of the n readers: tasks, groups of tasks, or a path that all tasks share.
        gate: The n gates; None where the architecture computes the weights by itself.
        expert_index: (n, k) int64, the experts that each reader mixes; None where each mixes all.
        paths: Which of the level's input paths the gates read, one each; None where all read one
            input.
    """

    expert_index: Tensor | None

    def __init__(
        self,
        readers: Sequence[str],
        gate: Gate | None = None,
        expert_index: Tensor | None = None,
        paths: slice | None = None,
    ) -> None:
        super().__init__()
        self.readers = tuple(readers)
        self.paths = paths
        self.register_buffer("expert_index", expert_index, persistent=False)
        self._gate = (gate,)

    @property
    def gate(self) -> Gate:
        """The n gates."""
        (gate,) = self._gate
        assert gate is not None, "the architecture computes these weights by itself"
        return gate

    @property
    def has_gate(self) -> bool:
        """Whether the weights come from gates."""
        return self._gate[0] is not None


class MoELayer(nn.Module):
    """One level of experts and its gates.

    It computes the experts, the gates and the mixtures, in one kernel where it can; it knows the
    names of gates and experts; and it takes an expert out for the time of an ablation.

    The experts and gates stay sub-modules of the architecture, which registers them as ``experts``
    and ``gates``: these are the names by which users freeze parameters and by which probes group
    them, and they do not depend on the number of levels. The layer itself has no parameters: it
    holds the experts in a tuple, as :class:`GateStack` does its gates.

    Args:
        level: Number of the level, from 1 next to the input.
        experts: E experts.
        gate_stacks: The stacks of gates, in the order of the mixtures.
        expert_names: Of the E experts; by default "expert 1", "expert 2", ...
        expert_paths: (E,) int64, the input path that each expert reads; None where all experts read
            one input.
    """

    expert_paths: Tensor | None

    def __init__(
        self,
        level: int,
        experts: StackedMLP,
        gate_stacks: Sequence[GateStack],
        expert_names: Sequence[str] | None = None,
        expert_paths: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.level = level
        self._gate_stacks = nn.ModuleList(gate_stacks)
        if expert_names is None:
            expert_names = numbered(["expert"], experts.n)
        self.expert_names = tuple(expert_names)
        self.register_buffer("expert_paths", expert_paths, persistent=False)
        self._in_turn = expert_paths is not None and _in_turn(expert_paths.tolist())
        self._experts = (experts,)
        self._ablated = False

    @property
    def experts(self) -> StackedMLP:
        """The E experts."""
        return self._experts[0]

    @property
    def gate_stacks(self) -> list[GateStack]:
        """The stacks of gates."""
        return [stack for stack in self._gate_stacks if isinstance(stack, GateStack)]

    @property
    def gate_experts(self) -> dict[str, tuple[str, ...]]:
        """Gate name (``level-<n>/<reader>``) to the names of the experts that it mixes."""
        names: dict[str, tuple[str, ...]] = {}
        for stack in self.gate_stacks:
            for n, gate in enumerate(self._gate_names(stack)):
                names[gate] = self.expert_names
                if stack.expert_index is not None:
                    indices = stack.expert_index[n].tolist()
                    names[gate] = tuple(self.expert_names[k] for k in indices)
        return names

    def used_modules(self) -> list[nn.Module]:
        """The modules with parameters that the layer computes with."""
        gates = [stack.gate for stack in self.gate_stacks if stack.has_gate]
        return [self.experts, *gates]

    @contextmanager
    def ablate(self, expert: int) -> Iterator[None]:
        """Take the output of one expert, counted from 0, for 0.

        A hook on the experts does it, so that it holds whoever asks for their outputs.
        """

        def silence(module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
            index = torch.tensor([expert], device=outputs.device)
            return outputs.index_fill(1, index, 0)  # (B, E, d)

        hook = self.experts.register_forward_hook(silence)
        self._ablated = True
        try:
            yield
        finally:
            hook.remove()
            self._ablated = False

    def forward(self, x: Tensor | EmbeddedBatch) -> Mixture:
        """Mix the experts by softmax gates, all of which read x.

        Args:
            x: (B, D), the input of all experts and gates, or (B, paths, D), of which each reads the
                path that it was given.
        """
        # The layers that read the embedding are one product, and perhaps all is one kernel.
        if isinstance(x, EmbeddedBatch):
            gate_layers = [layer for stack in self.gate_stacks for layer in stack.gate.first]
            x.compute_together(*gate_layers, *self.experts.first)
        if self._is_one_kernel(x):
            return self._mix_in_one_kernel(x)
        weights = self.gate_weights(x)
        return self.mix(weights, self.expert_outputs(x))

    def gate_weights(self, x: Tensor | EmbeddedBatch) -> list[Tensor]:
        """The weights (B, n, k) of each stack of gates."""
        weights = []
        for stack in self.gate_stacks:
            inputs = x
            if stack.paths is not None and isinstance(x, Tensor) and x.dim() == 3:
                inputs = x[:, stack.paths]
            weights.append(stack.gate(inputs))
        return weights

    def expert_outputs(self, x: Tensor | EmbeddedBatch) -> Tensor:
        """The outputs of all experts, (B, E, d)."""
        paths = None if self._in_turn else self.expert_paths
        if paths is not None and isinstance(x, Tensor) and x.dim() == 3:
            x = x.index_select(1, paths)
        outputs: Tensor = self.experts(x)
        return outputs

    def mix(self, weights: Sequence[Tensor], outputs: Tensor) -> Mixture:
        """Mix the experts' outputs.

        Args:
            weights: (B, n, k) for each stack of gates.
            outputs: (B, E, d).

        Returns:
            The mixtures of all stacks, one stack after the other.
        """
        gates = self.named_gates(*weights)
        mixtures = [
            combine_experts(stack_weights, outputs, stack.expert_index)
            for stack_weights, stack in zip(weights, self.gate_stacks, strict=True)
        ]
        if len(mixtures) > 1:
            return Mixture(torch.cat(mixtures, dim=1), gates, None)
        expert_index = self.gate_stacks[0].expert_index
        boundary = mixture_boundary(mixtures[0], weights[0], outputs, expert_index)
        return Mixture(mixtures[0], gates, boundary)

    def named_gates(self, *weights: Tensor) -> dict[str, Tensor]:
        """Weights (B, n, k), one tensor a stack of gates, as (B, k) by gate name."""
        gates: dict[str, Tensor] = {}
        for stack, stack_weights in zip(self.gate_stacks, weights, strict=True):
            for n, name in enumerate(self._gate_names(stack)):
                gates[name] = stack_weights[:, n]
        return gates

    def _gate_names(self, stack: GateStack) -> list[str]:
        return [f"level-{self.level}/{reader}" for reader in stack.readers]

    @cached_property
    def _mixed_experts(self) -> MixedExperts:
        """The experts that the gates mix, for kernels."""
        stacks = [(len(stack.readers), stack.expert_index) for stack in self.gate_stacks]
        return MixedExperts([expert_index_array(n, self.experts.n, index) for n, index in stacks])

    @cached_property
    def _runs(self) -> Runs:
        """The paths that the columns of gates and experts read; none where they read one input, or
        where a stack has not one gate for each of its paths.
        """
        expert_paths = [] if self.expert_paths is None else self.expert_paths.tolist()
        every_path = range(max(expert_paths, default=-1) + 1)
        reads = []
        for stack in self.gate_stacks:
            paths = every_path[stack.paths or slice(None)]
            if len(paths) != len(stack.readers):
                return []
            reads += [(path, stack.gate.linear.weight.shape[1]) for path in paths]
        reads += [(path, self.experts.outputs) for path in expert_paths]
        runs, stop = [], 0
        for path, neighbours in groupby(reads, itemgetter(0)):
            start, stop = stop, stop + sum(columns for _, columns in neighbours)
            runs.append((path, start, stop))
        return runs

    def _is_one_kernel(self, x: Tensor | EmbeddedBatch) -> bool:
        """Whether the compiled kernel does what these layers do on x.

        That may be so in one mode and not in another (dropout). As gates and experts are one layer
        each, the same parameters lie below the boundary either way, so that what
        ``training.sharing`` has learnt in one mode holds in the other.
        """
        layers_allow = (
            use_kernel(*(layer.weight for layer in self._layers))
            and not self._ablated
            and all(stack.gate.is_one_layer for stack in self.gate_stacks)
            and self.experts.is_one_relu_layer
        )
        if isinstance(x, EmbeddedBatch):
            return layers_allow and x.embedding.fast_paths.fuse and not x.embedding.copies
        return layers_allow and x.dim() == 3 and bool(self._runs)

    @property
    def _layers(self) -> list[StackedLinear]:
        """The layers of gates and experts, where these are one layer each."""
        return [*(stack.gate.linear for stack in self.gate_stacks), *self.experts.first]

    def _mix_in_one_kernel(self, x: Tensor | EmbeddedBatch) -> Mixture:
        """As the layers one after the other, for one layer each."""
        # The product of x with all gates and then all experts, (B, G + E * d).
        first_layer = None
        if isinstance(x, EmbeddedBatch):
            first_layer = x.first_layer_of(self._layers[0])
            outputs = first_layer.output
        else:
            weight, bias = side_by_side(self._layers)
            assert bias is not None, "experts have a bias"
            outputs = linear_by_path(x, weight, bias, self._runs)
        n_experts, mixed = self.experts.n, self._mixed_experts
        mixtures, weights = gated_experts(outputs, self.experts.outputs, mixed)
        gates = self.named_gates(*weights)
        stack, *more_stacks = self.gate_stacks
        if more_stacks or first_layer is None:
            return Mixture(mixtures, gates, None)

        # The readers part at the mixtures; below them stands the one product.

        def gramian(grad: Tensor) -> Tensor:
            return mixture_gramian(dense_weights(weights[0], stack.expert_index, n_experts), grad)

        def vjp(grad: Tensor) -> Tensor:
            return gated_experts_vjp(outputs, weights, mixed, grad)

        boundary = FirstLayerBoundary(mixtures, gramian, first_layer, trunk=1, gates=0, vjp=vjp)
        return Mixture(mixtures, gates, boundary)


class MoELevels(nn.ModuleList):
    """Levels of experts, from the input up: a list of modules whose members have a known type."""

    def __iter__(self) -> Iterator[MoELayer]:
        for level in super().__iter__():
            assert isinstance(level, MoELayer)
            yield level


@dataclass(frozen=True)
class SpecificAndShared:
    """The experts of a level: first those of task 1, of task 2 and so on, then shared ones."""

    tasks: Sequence[str]  # names of the T tasks
    specific: int  # number of experts of each task
    shared: int  # number of shared experts

    @property
    def total(self) -> int:
        """The number of experts, E."""
        return len(self.tasks) * self.specific + self.shared

    @property
    def names(self) -> list[str]:
        """The experts' names."""
        return numbered(self.tasks, self.specific) + numbered(["shared"], self.shared)

    @property
    def owner(self) -> Tensor:
        """(E,) the task that each expert belongs to, T for a shared one."""
        n_tasks = len(self.tasks)
        tasks = torch.arange(n_tasks).repeat_interleave(self.specific)
        return torch.cat([tasks, torch.full((self.shared,), n_tasks)])

    @property
    def of_tasks(self) -> Tensor:
        """(T, specific) the experts of each task."""
        return torch.arange(self.total - self.shared).view(len(self.tasks), -1)

    @property
    def of_all(self) -> Tensor:
        """(shared,) the shared experts."""
        return torch.arange(self.total - self.shared, self.total)

    @property
    def of_tasks_and_all(self) -> Tensor:
        """(T, specific + shared) the experts of each task, and the shared ones."""
        shared = self.of_all.expand(len(self.tasks), -1)
        return torch.cat([self.of_tasks, shared], dim=1)


def numbered(names: Sequence[str], count: int) -> list[str]:
    """Each name with the numbers 1 to ``count``: "income 1", "income 2", ..."""
    return [f"{name} {k + 1}" for name in names for k in range(count)]


def _in_turn(paths: Sequence[int]) -> bool:
    """Whether equally many experts read each path, first those of the first one."""
    each = len(paths) / (max(paths) + 1)
    return list(paths) == [k // each for k in range(len(paths))] and each.is_integer()
