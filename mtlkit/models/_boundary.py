"""Where the tasks of a model part: above the boundary each has its own layers, below it they share.

Without a boundary, training needs one backward pass a task through the whole model. With one, a
single pass through all towers brings the gradient of every task to the boundary, and the tasks'
gradients are computed separately only below it. Training compares gradients before it relies on a
boundary, see ``training.sharing``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlkit.models._embedded_batch import FirstLayer
from mtlkit.ops.combine_experts import combine_experts_vjp
from mtlkit.ops.mixture_gramian import mixture_gramian


@dataclass
class Boundary:
    """Where the tasks part."""

    task_inputs: Tensor  # (B, T, d), of which task t reads ``task_inputs[:, t]`` and nothing else
    # From the gradient (B, T, d) of ``task_inputs`` to the (T, T) float64 inner products of the
    # tasks' gradients with respect to the trunk's output, which is what they share (the experts'
    # outputs, or the bottom's).
    gramian: Callable[[Tensor], Tensor]


@dataclass
class TensorBoundary(Boundary):
    """A boundary below which the graph goes on from two tensors."""

    trunk_output: Tensor  # (B, ...) the tensor that all tasks share
    # (B, T, ...) the other tensor that ``task_inputs`` is made of, if there is one;
    # ``task_inputs[:, t]`` depends on ``gate_output[:, t]`` alone.
    gate_output: Tensor | None
    # From the gradient (B, T, d) of ``task_inputs`` to (T, B, ...), the gradient of
    # ``trunk_output`` for each task, and (B, T, ...), the gradient of ``gate_output``.
    vjp: Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass
class FirstLayerBoundary(Boundary):
    """A boundary right above layers that read the embedding."""

    first_layer: FirstLayer  # the layers that are computed as one
    trunk: int  # index in ``first_layer.layers`` of the layer that all tasks share
    gates: int  # index of the layer of which each task has its own slices
    # From the gradient (B, T, d) of ``task_inputs`` to columns (B, C): the gradient of the trunk's
    # output for task 0, for task 1, ..., and then that of the gates' output. Hence the trunk comes
    # first here, whatever its index (as in ``ops.gated_experts``).
    vjp: Callable[[Tensor], Tensor]

    @property
    def column_owners(self) -> Sequence[tuple[int, int | None]]:
        """The layer and the task of each block of columns of ``vjp``, in order; the task is None
        where a block holds the gradients of all tasks.
        """
        n_tasks = self.task_inputs.shape[1]
        return [*((self.trunk, task) for task in range(n_tasks)), (self.gates, None)]


def mixture_boundary(
    task_inputs: Tensor, weights: Tensor, experts: Tensor, expert_index: Tensor | None = None
) -> TensorBoundary | None:
    """The boundary at ``task_inputs = combine_experts(weights, experts, expert_index)``.

    Args:
        task_inputs: (B, T, d).
        weights: (B, T, k).
        experts: (B, E, d).
        expert_index: (T, k) int64, the experts that each task mixes; None where every task mixes
            all.
    """
    if in_compiled_graph():
        return None

    # A task's gradient by the experts' outputs is that of its mixture times its weights.
    def gramian(grad: Tensor) -> Tensor:
        return mixture_gramian(dense_weights(weights, expert_index, experts.shape[1]), grad)

    def vjp(grad: Tensor) -> tuple[Tensor, Tensor]:
        return combine_experts_vjp(weights, experts, expert_index, grad)

    return TensorBoundary(task_inputs, gramian, experts, weights, vjp)


def copies_boundary(task_inputs: Tensor, trunk_output: Tensor) -> TensorBoundary | None:
    """The boundary at ``task_inputs = trunk_output.expand(-1, T, -1)``; (B, 1, d) to (B, T, d)."""
    if in_compiled_graph():
        return None

    def gramian(grad: Tensor) -> Tensor:
        # Every task takes the one trunk with weight 1.
        ones = grad.new_ones(*grad.shape[:2], 1)
        return mixture_gramian(ones, grad)

    # Hence a task's gradient by the trunk's output is that of its copy.
    def vjp(grad: Tensor) -> tuple[Tensor, None]:
        return grad.transpose(0, 1)[:, :, None], None  # (T, B, 1, d)

    return TensorBoundary(task_inputs, gramian, trunk_output, None, vjp)


def dense_weights(weights: Tensor, expert_index: Tensor | None, experts: int) -> Tensor:
    """Weights (B, n, k) of the experts in ``expert_index`` (n, k) as weights (B, n, E) of all.

    Experts that are not in the index have weight 0.
    """
    if expert_index is None:
        return weights
    weights = weights.detach()
    zeros = weights.new_zeros(*weights.shape[:2], experts)
    return zeros.scatter_(2, expert_index.expand_as(weights), weights)


def in_compiled_graph() -> bool:
    """Whether there can be neither boundary nor cuts.

    A compiled graph returns no tensors that lie on the way to its losses. This is no choice between
    two forms of an operation, hence no question for ``ops._dispatch``.
    """
    return torch.compiler.is_compiling()
