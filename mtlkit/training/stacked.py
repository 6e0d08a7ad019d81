"""K cells that differ in numbers alone, trained as one program; the plain trainer is the reference.

Each cell keeps a trainer of its own, with its batches, dropout, balancer, evaluation points and
record. What is done for all at once is the work of a step: the forward pass, the backward passes
and the optimiser. A cell that diverges fails alone: it stays in the program, and is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import cast

import torch
from torch import Tensor

from mtlkit.balancers._balancer import GramBalancer
from mtlkit.balancers._step import SharedGradient, Step
from mtlkit.errors import MtlkitError
from mtlkit.models._types import Batch
from mtlkit.training.optimizers import Optimizers, learning_rate_factor
from mtlkit.training.result import FitResult
from mtlkit.training.seeding import seed_for
from mtlkit.training.stacked_model import ModelStack, unflatten
from mtlkit.training.stacked_step import CellStep, HostStep, StackedStep, asks_for_gramian
from mtlkit.training.task_schedule import TaskSchedule
from mtlkit.training.trainer import Trainer


def refusal(trainer: Trainer) -> str | None:
    """Why a run cannot be part of a stack; None if it can."""
    balancer, settings = trainer.balancer, trainer.settings
    asks_for_gradients = balancer is not None and balancer.needs != "losses"
    large = [sliced.name for sliced in trainer.sharing.parameters if sliced.sparse]
    if large:
        return f"the table {large[0]} has row-sparse gradients"
    if balancer is not None and balancer.needs == "rows":
        return "its balancer asks for the rows of the Jacobian"
    if asks_for_gradients and settings.scope == "representation":
        return "with scope=representation gradients are taken inside of the model"
    return None


class StackedTrainer:
    """Trains K models as one.

    Args:
        trainers: One a cell, freshly built, on one device and with one data set. Their models have
            one architecture and shape, and their settings differ in learning rates alone; seeds and
            balancers may differ, if all of them see as much of a step (``needs``) and have signed
            weights or not.

    Attributes:
        asks_host: Whether the balancers ask for Gram matrices alone, of which those of all cells go
            to the host as one copy.
        graph: What stands in for the plain step, if anything does.

    Raises:
        ValueError: The trainers are no such stack, or a part of the model does not work in one.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self.trainers = list(trainers)
        first = self.first = self.trainers[0]
        self.settings = first.settings
        self.asks_host = all(map(asks_for_gramian, self.trainers))
        self.graph: Callable[[StackedTrainer, int], None] | None = None
        self.errors: list[Exception | None] = [None] * len(self.trainers)
        self.results: list[FitResult | None] = [None] * len(self.trainers)
        reason = next(filter(None, map(refusal, self.trainers)), None)
        if reason is not None:
            raise ValueError(reason)
        if len({_form(trainer) for trainer in self.trainers}) > 1:
            raise ValueError("the models are of different shape")

        # The models become one, and each cell goes on drawing as it would alone.
        generators = []
        for trainer in self.trainers:
            of_cell = torch.Generator(first.device)
            generators.append(of_cell.manual_seed(seed_for(trainer.seed, "dropout")))
        models = [trainer.model for trainer in self.trainers]
        self.stack = ModelStack(models, generators, self.settings.precision)
        self._try_out()
        self._batches = first.train.take_each(iter(self.next_rows, None), self.take)

        # Trainers that remember where parameters are, which have moved, are told.
        for trainer in self.trainers:
            trainer.schedule = TaskSchedule(
                trainer.settings, trainer.model.tasks, trainer.sharing, trainer.device
            )
        self.optimizer = Optimizers(self.stack.module, self.settings, first.model.learning_rates())
        self._rates = self._relative_learning_rates()
        shape = (3, len(self.trainers), len(first.tasks))
        self._sums = torch.zeros(shape, device=first.device)  # of losses, weights and active steps

    def fit(self, on_point: Callable[[float], None] = lambda share: None) -> None:
        """Train all cells; ``results`` and ``errors`` say what has become of each.

        Args:
            on_point: Called after each evaluation point with the share of steps done.
        """
        for trainer in self.trainers:
            trainer.timer.start()
            trainer.model.train()
        with closing(self._batches):
            self._train(on_point)
        for cell in self._training():
            self._guard(cell, self._finish)

    def _train(self, on_point: Callable[[float], None]) -> None:
        """Train and evaluate, point after point, until the last cell has ended."""
        step = self.graph or StackedTrainer._train_step
        done = 0
        for stop in self.first.evaluator.points:
            if not self._training():
                break
            began = time.perf_counter()
            for index in range(done, stop):
                step(self, index)
            if self.first.device.type == "cuda":
                torch.cuda.synchronize(self.first.device)

            # Each cell takes a share of the time, so that the sum over cells is what it took.
            seconds = (time.perf_counter() - began) / len(self.trainers)
            for cell in self._training():
                trainer = self.trainers[cell]
                trainer.steps = stop
                trainer.timer.seconds["train_seconds"] += seconds
                self._guard(cell, self._evaluate)
            self._sums.zero_()
            done = stop
            on_point(stop / self.first.total_steps)

    def _training(self) -> list[int]:
        """The cells that have neither failed nor ended."""
        return [
            cell
            for cell, (result, error) in enumerate(zip(self.results, self.errors, strict=True))
            if result is None and error is None
        ]

    def _guard(self, cell: int, action: Callable[[int], None]) -> None:
        """Do something for a cell; an error is that of this cell alone."""
        try:
            action(cell)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.errors[cell] = error

    def _evaluate(self, cell: int) -> None:
        """Score a cell, and end it where it has got no better for long."""
        trainer = self.trainers[cell]
        sums = dict(zip(("loss", "weight", "count"), self._sums[:, cell], strict=True))
        trainer.window.load_state_dict(sums)
        trainer._evaluate(trainer.steps)
        if trainer.evaluator.stalled():
            self._finish(cell)

    def _finish(self, cell: int) -> None:
        self.results[cell] = self.trainers[cell]._finish()

    # --- a step

    def _train_step(self, index: int) -> None:
        """One optimiser step of all cells, of ``accumulate`` batches each."""
        settings, total_steps = self.settings, self.first.total_steps
        self.optimizer.set_learning_rate(learning_rate_factor(settings, index, total_steps))
        self.update(islice(self._batches, settings.accumulate), index)

    def update(self, batches: Iterable[Batch], index: int) -> None:
        """Move the parameters of all cells once, by the gradients of some batches."""
        self.optimizer.zero_grad()

        # Add up the gradients of the batches.
        waiting: list[tuple[Batch, dict[int, CellStep]]] = []
        for batch in batches:
            step = self.begin(batch, index)
            if self.asks_host:
                weights = self.answer(self.pack(step).cpu(), index)
                self.follow(step, weights.to(step.losses.device))
                continue
            cells = {
                cell: CellStep(step, cell, self.trainers[cell].step_info(index))
                for cell in self._training()
            }
            self.follow(step, self._decided(cells, step.active.to(step.losses.dtype)))
            if any(cell_step.callbacks for cell_step in cells.values()):
                waiting.append((batch, cells))

        self.move()

        # Tell the balancers that asked what has become of the losses.
        for batch, cells in waiting:
            losses = self._losses(self.stack.losses_again(batch), index)
            for cell, cell_step in cells.items():
                for callback in cell_step.callbacks:
                    callback(losses[cell])

    def begin(self, batch: Batch, index: int) -> StackedStep:
        """The forward pass of a batch of all cells."""
        losses, active = self.stack.losses(batch)
        due = self.first.schedule.due(index)
        return StackedStep(
            self.first.sharing,
            self.stack.parameters,
            self._losses(losses, index),
            active if due is None else active & due,
        )

    def pack(self, step: StackedStep) -> Tensor:
        """(K, T, T + 2) what balancers see that ask for a Gram matrix alone."""
        return GramBalancer.pack(step, step.gramians(self.settings.scope))

    def answer(self, packed: Tensor, index: int) -> Tensor:
        """(K, T) what these balancers decide on the host."""
        dtype = self._sums.dtype
        cells = {
            cell: HostStep(packed[cell], self.trainers[cell].step_info(index), dtype)
            for cell in self._training()
        }
        return self._decided(cells, packed[..., -1].to(dtype))

    def _decided(self, steps: Mapping[int, CellStep | HostStep], active: Tensor) -> Tensor:
        """(K, T) what balancers decide; 0 for cells that have ended or fail here. Without a
        balancer, every task with a label has weight 1.
        """
        if self.first.balancer is None:
            return active
        weights = list(torch.zeros_like(active))
        for cell, step in steps.items():
            try:
                weights[cell] = _weights(self.trainers[cell], step)
            except Exception as error:
                self.errors[cell] = error
        return torch.stack(weights)

    def follow(self, step: StackedStep, decided: Tensor) -> None:
        """Add the gradients of decisions (K, T), and count the step in."""
        share = 1 / self.settings.accumulate
        grads = step.gradients(decided * share, self._private(decided, share))
        for name, grad in grads.items():
            parameter = self.stack.parameters[name]
            grad = grad.contiguous()
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        counted = torch.stack([step.losses, decided, torch.ones_like(decided)])
        self._sums += torch.where(step.active, counted, 0.0)
        for trainer in self.trainers:
            trainer.backward_passes += step.passes

    def _private(self, weights: Tensor, share: float) -> Tensor | None:
        """(K, T) the weights of what a task has for itself; None for the same as elsewhere."""
        balancer = self.first.balancer
        if self.settings.heads == "plain":
            return torch.full_like(weights, share)
        if balancer is not None and balancer.signed:
            return weights.clamp_min(0) * share
        return None

    def _losses(self, losses: Tensor, index: int) -> Tensor:
        """(K, T) losses with their factors, and 0 for tasks that are not due."""
        if self.settings.task_weights:
            losses = losses * self.first.loss_factors
        due = self.first.schedule.due(index)
        return losses if due is None else torch.where(due, losses, 0.0)

    def next_rows(self) -> tuple[Tensor, Tensor | None]:
        """The row numbers of the next batch of every cell, one after another, and their factors."""
        taken = [trainer.stream.next_rows() for trainer in self.trainers]
        factors = [weights for _, weights in taken if weights is not None]
        return torch.cat([rows for rows, _ in taken]), torch.cat(factors) if factors else None

    def take(
        self, rows: Tensor, weights: Tensor | None = None, room: Mapping[str, int] | None = None
    ) -> Batch:
        """The rows of K batches, one after another, gathered as one.

        Args:
            rows: (K * B,) row numbers.
            weights: (K * B,) factors on the weights of these rows, or None.
            room: By bag feature, how many ids each of the batches is to have; None for as many as
                the largest of them has.
        """
        train, cells = self.first.train, len(self.trainers)
        if room is None:
            room = train.count_ids(rows, cells)
        of_all = {name: cells * count for name, count in room.items()}
        return unflatten(train.take(rows, weights, of_all), cells)

    # --- parameters

    def _relative_learning_rates(self) -> list[tuple[Tensor, Tensor]]:
        """The parameters whose learning rate is not that of the first cell in all of them, each
        with the factors (K, 1, ...) on it.
        """
        peaks: list[dict[int, float]] = [
            {id(value): group["peak"] for group in groups for value in group["params"]}
            for groups in (trainer.optimizer.param_groups for trainer in self.trainers)
        ]
        rates = []
        for name, parameter in self.stack.parameters.items():
            if not parameter.requires_grad:
                continue
            members = [trainer.model.get_parameter(name) for trainer in self.trainers]
            of_cells = [peak[id(value)] for peak, value in zip(peaks, members, strict=True)]
            factors = parameter.new_tensor(of_cells) / of_cells[0]
            if (factors != 1).any():
                rates.append((parameter.detach(), _by_cell(factors, parameter)))
        return rates

    @torch.no_grad()
    def move(self) -> None:
        """Move the parameters, those of some cells or tasks faster or slower than the optimiser,
        whose step is proportional to its learning rate, whatever the rule.
        """
        if self.settings.clip_norm is not None:
            self._clip(self.settings.clip_norm)
        for trainer in self.trainers:
            trainer.schedule.before_step()
        before = [parameter.clone() for parameter, _ in self._rates]
        self.optimizer.step()
        for (parameter, factors), start in zip(self._rates, before, strict=True):
            parameter.copy_(torch.lerp(start, parameter, factors.expand_as(parameter)))
        for trainer in self.trainers:
            trainer.schedule.after_step()

    def _clip(self, max_norm: float) -> None:
        """Shorten the whole gradient of each cell to a norm of at most ``max_norm``."""
        grads = [value.grad for value in self.stack.parameters.values() if value.grad is not None]
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)  # (K,)
        factors = (max_norm / (norms + 1e-6)).clamp_max(1.0)
        for grad in grads:
            grad.mul_(_by_cell(factors, grad))

    # --- the start

    def _try_out(self) -> None:
        """Compute the losses of a batch once, and take back what that has moved.

        Raises:
            ValueError: A part of the model does not work in a stack.
        """
        rows = torch.arange(self.settings.batch_size) % len(self.first.train)
        batch = self.take(rows.repeat(len(self.stack)))
        try:
            self.stack.losses_again(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"the model does not work in a stack: {reason}") from error


def _by_cell(values: Tensor, stacked: Tensor) -> Tensor:
    """Values (K,) in a shape that multiplies a stacked tensor (K, ...)."""
    return values.view(-1, *[1] * (stacked.dim() - 1))


def _weights(trainer: Trainer, step: CellStep | HostStep) -> Tensor:
    """(T,) what a cell's balancer decides."""
    assert trainer.balancer is not None
    decision = trainer.balancer.decide(cast(Step, step))
    if isinstance(decision, SharedGradient):
        raise MtlkitError("Stacked cells take weights, not a direction.", "--set stack=1")
    return decision


def _form(trainer: Trainer) -> tuple[object, ...]:
    """What all trainers of a stack have in common."""
    shapes = [(name, value.shape) for name, value in trainer.model.named_parameters()]
    return type(trainer.model), tuple(shapes), trainer.total_steps
