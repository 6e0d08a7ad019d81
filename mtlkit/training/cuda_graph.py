"""A whole optimiser step as one CUDA graph, or as two with a question to the host between them.

Graphs are recorded once and replayed in every step. A balancer whose weights follow from a Gram
matrix solves a small problem on the host: the first graph ends with one packed copy of what it
reads, and the second one begins with the weights.

**It has never run on a GPU.** What is tested is the step on static memory, without recording, which
on a CPU ends with the bits of the plain one. ``benchmarks/gpu.py`` holds the graph to the plain
step where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mtlkit.balancers._balancer import GramBalancer
from mtlkit.balancers._step import Step
from mtlkit.errors import UsageError
from mtlkit.training.batches import sent
from mtlkit.training.optimizers import Optimizers, learning_rate_factor
from mtlkit.training.running_means import RunningMeans
from mtlkit.training.stacked import StackedTrainer
from mtlkit.training.stacked_step import HostStep, StackedStep, asks_for_gramian
from mtlkit.training.step import LoopStep
from mtlkit.training.trainer import Trainer

WARM_UP = 3
"""Steps before the one that is recorded: in them libraries set themselves up, and state is made."""


class StepGraph:
    """Stands in for the step of a trainer.

    What changes from step to step is written into memory that stays: row numbers, learning rates
    and, under a Gram-based balancer, task weights. All else happens on the device: gather, forward
    pass, balancer, backward pass, optimiser. Bags are filled up to one size; where a batch has more
    ids, the size grows, and the graphs are recorded anew.

    Args:
        trainer: A run under a balancer whose steps are all the same, or that asks for a Gram matrix
            alone.
        record: Whether graphs are recorded; without them, each step does the same on static memory.

    Raises:
        UsageError: The run cannot be a graph.
    """

    def __init__(self, trainer: Trainer, record: bool = True) -> None:
        _check(refusal(trainer), trainer.device, record)
        stream = torch.cuda.Stream(trainer.device) if record else None
        pool = torch.cuda.graph_pool_handle() if record else None
        self.pieces = [_Piece(stream, pool), _Piece(stream, pool)]
        self.asks_host = asks_for_gramian(trainer)

        # The static memory: the rows of each batch, the learning rate of each group, and what goes
        # to the host and comes back: (T, T + 2) and (T,).
        device, tasks = trainer.device, len(trainer.tasks)
        shape = (trainer.settings.accumulate, trainer.settings.batch_size)
        self.rows = torch.zeros(shape, dtype=torch.int64, device=device)
        self.room: dict[str, int] = {}  # by bag feature, ids of a batch
        self.packed = torch.zeros(tasks, tasks + 2, dtype=torch.float64, device=device)
        self.weights = torch.zeros(tasks, device=device)
        self.step: LoopStep | None = None
        _put_rates_on(device, trainer.optimizer, record)

    def __call__(self, trainer: Trainer, index: int, window: RunningMeans) -> None:
        """One optimiser step.

        Args:
            trainer: The one that the graph was made for. It is not kept, so that the two go as
                soon as the cell is over, with the memory that they have on the device.
            index: Number of steps before this one.
            window: Losses and weights are counted in here; the same in every step.
        """
        _write_rates(trainer.optimizer, trainer, index)
        for rows in self.rows:
            drawn, _ = trainer.stream.next_rows()
            _make_room(self.room, trainer.train.count_ids(drawn), self.pieces)
            rows.copy_(sent(drawn, rows.device))

        first, second = self.pieces
        if not self.asks_host:
            first([trainer], lambda: self._update(trainer, index, window))
            return
        first([trainer], lambda: self._ask(trainer, index))
        self.weights.copy_(self._answer(trainer, index))
        second([trainer], lambda: self._follow(trainer, window))

    def _update(self, trainer: Trainer, index: int, window: RunningMeans) -> None:
        batches = (trainer.train.take(rows, room=self.room) for rows in self.rows)
        trainer.update(batches, index, window)

    # --- a step in two pieces

    def _ask(self, trainer: Trainer, index: int) -> None:
        """The forward pass and the task gradients, up to what the balancer reads of them."""
        trainer.optimizer.zero_grad()
        self.step = trainer._step(trainer.train.take(self.rows[0], room=self.room), index)
        self.packed.copy_(GramBalancer.pack(self.step, self.step.gramian()))

    def _answer(self, trainer: Trainer, index: int) -> Tensor:
        """(T,) the weights that the balancer decides on, on the host."""
        assert trainer.balancer is not None
        step = HostStep(self.packed.cpu(), trainer.step_info(index))
        weights = trainer.balancer.decide(cast(Step, step))  # asked for nothing that it lacks
        assert isinstance(weights, Tensor), "a Gram matrix gives weights"
        return weights

    def _follow(self, trainer: Trainer, window: RunningMeans) -> None:
        """The gradients that the weights mean, and the optimiser."""
        assert self.step is not None
        trainer.follow(self.step, self.weights, window)
        self.step = None
        trainer.move()


class StackGraph:
    """Stands in for the step of stacked cells, as :class:`StepGraph` for that of one.

    A cell that has ended or failed since the graph was recorded goes on with the others; what was
    written down of it stays.

    Args:
        stack: Cells under balancers whose steps are all the same, or that ask for a Gram matrix
            alone.
        record: Whether a graph is recorded.

    Raises:
        UsageError: The step cannot be a graph.
    """

    def __init__(self, stack: StackedTrainer, record: bool = True) -> None:
        device, cells, tasks = stack.first.device, len(stack.trainers), len(stack.first.tasks)
        _check(next(filter(None, map(refusal, stack.trainers)), None), device, record)
        stream = torch.cuda.Stream(device) if record else None
        pool = torch.cuda.graph_pool_handle() if record else None
        self.pieces = [_Piece(stream, pool, stack.stack.generators) for _ in range(2)]

        # The static memory; batches of all cells lie one after another.
        shape = (stack.settings.accumulate, cells * stack.settings.batch_size)
        self.rows = torch.zeros(shape, dtype=torch.int64, device=device)
        self.room: dict[str, int] = {}  # by bag feature, ids of a batch of each cell
        self.packed = torch.zeros(cells, tasks, tasks + 2, dtype=torch.float64, device=device)
        self.weights = torch.zeros(cells, tasks, device=device)
        self.step: StackedStep | None = None
        _put_rates_on(device, stack.optimizer, record)

    def __call__(self, stack: StackedTrainer, index: int) -> None:
        """One optimiser step of all cells, with ``index`` steps before it."""
        _write_rates(stack.optimizer, stack.first, index)
        for rows in self.rows:
            drawn, _ = stack.next_rows()
            counts = stack.first.train.count_ids(drawn, len(stack.trainers))
            _make_room(self.room, counts, self.pieces)
            rows.copy_(sent(drawn, rows.device))

        first, second = self.pieces
        if not stack.asks_host:
            first(stack.trainers, lambda: self._update(stack, index))
            return
        first(stack.trainers, lambda: self._ask(stack, index))
        self.weights.copy_(stack.answer(self.packed.cpu(), index))
        second(stack.trainers, lambda: self._follow(stack))

    def _update(self, stack: StackedTrainer, index: int) -> None:
        stack.update((stack.take(rows, room=self.room) for rows in self.rows), index)

    def _ask(self, stack: StackedTrainer, index: int) -> None:
        stack.optimizer.zero_grad()
        self.step = stack.begin(stack.take(self.rows[0], room=self.room), index)
        self.packed.copy_(stack.pack(self.step))

    def _follow(self, stack: StackedTrainer) -> None:
        assert self.step is not None
        stack.follow(self.step, self.weights)
        self.step = None
        stack.move()


class _Piece:
    """A part of a step that is run a few times, recorded, and replayed from then on.

    Args:
        stream: On which it is recorded; None for never.
        pool: The memory of its graph; a later piece reads what an earlier one has left there.
        generators: What it draws from, beside PyTorch's own.

    Attributes:
        fits: Whether the graph is that of the present action.
    """

    def __init__(
        self,
        stream: torch.cuda.Stream | None,
        pool: Any,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.stream, self.pool, self.generators = stream, pool, generators
        self.runs = 0
        self.passes = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.fits = False

    def __call__(self, trainers: Sequence[Trainer], action: Callable[[], None]) -> None:
        # The first steps are plain ones, on the stream that is recorded later.
        self.runs += 1
        if self.stream is None:
            action()
        elif self.runs <= WARM_UP:
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                action()
            current.wait_stream(self.stream)
        elif self.graph is None or not self.fits:
            self._record(trainers[0], action)
        else:
            self.graph.replay()
            for trainer in trainers:
                trainer.backward_passes += self.passes

    def _record(self, trainer: Trainer, action: Callable[[], None]) -> None:
        """Record an action, which does not run it, and run it."""
        before = trainer.backward_passes
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        with (
            torch.cuda.device(trainer.device),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
        ):
            action()
        self.passes = trainer.backward_passes - before
        # an earlier graph is let go only now: the pool of memory ends with its last graph
        self.graph, self.fits = graph, True
        graph.replay()


def _make_room(room: dict[str, int], counts: Mapping[str, int], pieces: Sequence[_Piece]) -> None:
    """Let batches have so many ids of each bag feature, and more, so that room is rarely made."""
    grown = {name: count * 9 // 8 for name, count in counts.items() if count > room.get(name, -1)}
    if grown:
        room |= grown
        for piece in pieces:
            piece.fits = False


def _check(reason: str | None, device: torch.device, record: bool) -> None:
    """Raise a ``UsageError`` if there is a reason against a graph, or nothing to record it on."""
    if record and device.type != "cuda":
        reason = "there is no GPU to record one on"
    if reason is not None:
        raise UsageError(f"A step cannot be one CUDA graph: {reason}.", "--set compile=off")


def _put_rates_on(device: torch.device, optimizer: Optimizers, record: bool) -> None:
    """Give the learning rate of each group memory that stays."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["peak"], dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = record


def _write_rates(optimizer: Optimizers, trainer: Trainer, index: int) -> None:
    """Write the learning rates of a step into that memory."""
    factor = learning_rate_factor(trainer.settings, index, trainer.total_steps)
    for group in optimizer.param_groups:
        group["lr"].fill_(group["peak"] * factor)


def refusal(trainer: Trainer) -> str | None:
    """Why the steps of a run are not one and the same graph; None if they are."""
    balancer, settings = trainer.balancer, trainer.settings
    large = [sliced.name for sliced in trainer.sharing.parameters if sliced.sparse]
    if large and settings.optimizer == "sgd":
        return f"sgd moves the rows of the table {large[0]} as PyTorch does"
    if trainer.train.batch_device != trainer.train.storage_device:
        return "the rows of the data do not fit on the device"
    asks_host = asks_for_gramian(trainer)
    if asks_host and settings.accumulate > 1:
        return "several batches a step ask the host several times"
    if balancer is not None and balancer.update_every > 1:
        return "with update_every some steps make weights and others do not"
    if balancer is not None and not balancer.same_every_step and not asks_host:
        return f"under {type(balancer).__name__} a step depends on its number, or on the host"
    if settings.heads == "plain" or settings.task_every or settings.task_lr:
        return "heads=plain, task_every and task_lr ask the host in a step"
    if settings.batches == "covering":
        return "batches=covering weighs the rows of each batch"
    if settings.optimizer == "adagrad":
        return "adagrad counts its steps on the host"
    return None
