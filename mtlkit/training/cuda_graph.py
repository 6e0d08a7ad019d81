"""A whole optimiser step as one CUDA graph: recorded once, replayed in every step.

**It has never run on a GPU.** What is tested is the step on static memory, without recording, which
on a CPU ends with the bits of the plain one. ``benchmarks/gpu.py`` holds the graph to the plain
step where there is a GPU.
"""

from __future__ import annotations

import torch

from mtlkit.errors import UsageError
from mtlkit.training.optimizers import learning_rate_factor
from mtlkit.training.running_means import RunningMeans
from mtlkit.training.trainer import Trainer

WARM_UP = 3
"""Steps before the one that is recorded: in them libraries set themselves up, and state is made."""


class StepGraph:
    """Stands in for the step of a trainer.

    What changes from step to step is written into memory that stays: row numbers and learning
    rates. All else happens on the device: gather, forward pass, balancer, backward pass, optimiser.

    Args:
        trainer: A run under a balancer whose steps are all the same.
        record: Whether a graph is recorded; without one, each step does the same on static memory.

    Raises:
        UsageError: The run cannot be a graph.
    """

    def __init__(self, trainer: Trainer, record: bool = True) -> None:
        reason = refusal(trainer)
        if record and trainer.device.type != "cuda":
            reason = "there is no GPU to record one on"
        if reason is not None:
            raise UsageError(f"A step cannot be one CUDA graph: {reason}.", "--set compile=off")
        self.steps = 0
        self.passes = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(trainer.device) if record else None

        # The static memory: the rows of each batch, and the learning rate of each group.
        shape = (trainer.settings.accumulate, trainer.settings.batch_size)
        self.rows = torch.zeros(shape, dtype=torch.int64, device=trainer.device)
        for group in trainer.optimizer.param_groups:
            rate = torch.tensor(group["peak"], dtype=torch.float32, device=trainer.device)
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = record

    def __call__(self, trainer: Trainer, index: int, window: RunningMeans) -> None:
        """One optimiser step.

        Args:
            trainer: The one that the graph was made for. It is not kept, so that the two go as
                soon as the cell is over, with the memory that they have on the device.
            index: Number of steps before this one.
            window: Losses and weights are counted in here; the same in every step.
        """
        factor = learning_rate_factor(trainer.settings, index, trainer.total_steps)
        for group in trainer.optimizer.param_groups:
            group["lr"].fill_(group["peak"] * factor)
        for rows in self.rows:
            rows.copy_(trainer.stream.next_rows()[0])

        # The first steps are plain ones, on the stream that is recorded later.
        self.steps += 1
        if self.stream is None:
            self._update(trainer, index, window)
        elif self.steps <= WARM_UP:
            current = torch.cuda.current_stream(trainer.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                self._update(trainer, index, window)
            current.wait_stream(self.stream)
        elif self.graph is None:
            self._record(trainer, index, window)
        else:
            self.graph.replay()
            trainer.backward_passes += self.passes

    def _record(self, trainer: Trainer, index: int, window: RunningMeans) -> None:
        """Record a step, which does not run it, and run it."""
        before = trainer.backward_passes
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(trainer.device), torch.cuda.graph(graph, stream=self.stream):
            self._update(trainer, index, window)
        self.passes = trainer.backward_passes - before
        self.graph = graph
        graph.replay()

    def _update(self, trainer: Trainer, index: int, window: RunningMeans) -> None:
        batches = (trainer.train.take(rows) for rows in self.rows)
        trainer.update(batches, index, window)


def refusal(trainer: Trainer) -> str | None:
    """Why the steps of a run are not one and the same graph; None if they are."""
    balancer, settings = trainer.balancer, trainer.settings
    large = [sliced.name for sliced in trainer.sharing.parameters if sliced.sparse]
    shared = trainer.train.shared_columns
    if large:
        return f"the table {large[0]} has row-sparse gradients"
    if trainer.train.columns.bags or (shared is not None and shared.bags):
        return "batches with bags are of different size"
    if trainer.train.batch_device != trainer.train.storage_device:
        return "the rows of the data do not fit on the device"
    if balancer is not None and not balancer.same_every_step:
        return f"under {type(balancer).__name__} a step depends on its number, or on the host"
    if balancer is not None and balancer.update_every > 1:
        return "with update_every some steps make weights and others do not"
    if settings.heads == "plain" or settings.task_every or settings.task_lr:
        return "heads=plain, task_every and task_lr ask the host in a step"
    if settings.batches == "covering":
        return "batches=covering weighs the rows of each batch"
    if settings.optimizer == "adagrad":
        return "adagrad counts its steps on the host"
    return None
