"""The one training loop. It knows no model and no balancer by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import SharedGradient
from mtlkit.data.checks import check_ids
from mtlkit.data.splits import SPLITS, Dataset
from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Objective
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.checkpoints import Checkpoints
from mtlkit.training.evaluation import Evaluator
from mtlkit.training.fast_paths import check_comparable_rows, prepare_model
from mtlkit.training.finish import finish
from mtlkit.training.measures import Measures
from mtlkit.training.optimizers import Optimizers, learning_rate_factor
from mtlkit.training.probe_log import ProbeLog
from mtlkit.training.result import DivergedError, FitResult
from mtlkit.training.running_means import RunningMeans
from mtlkit.training.sampling import probe_batch
from mtlkit.training.scoring import Scores, autocast
from mtlkit.training.seeding import (
    generator,
    keep_random_state,
    random_state,
    seed_for,
    set_random_state,
)
from mtlkit.training.selection import check_task_names
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.step import LoopStep, StepInfo
from mtlkit.training.stratified import StratifiedSampler, stratified_sampler
from mtlkit.training.stream import BatchStream
from mtlkit.training.task_losses import owner_active, owner_losses
from mtlkit.training.task_schedule import TaskSchedule
from mtlkit.training.task_settings import group_names, partners
from mtlkit.training.timing import RunTimer

FITTED_ROWS = 1 << 18  # most training rows that numbers are fitted to


class Trainer:
    """Trains one model under one balancer on one data set.

    A run is built here, done by :meth:`fit`, and turned into its result by
    :func:`mtlkit.training.finish.finish`.

    Args:
        model: A freshly initialised model; it is moved to the device and trained in place.
        balancer: The balancer, or None when the tasks share no parameter.
        dataset: Packed splits.
        setup: Settings, seed, device and initial weights.
        splits: Its splits on the device, if they are there already.

    Attributes:
        graph: What stands in for the plain step, if anything does.
        evaluator_type: What scores the model.
        steps: Optimiser steps done.
        window: Losses and weights since the last evaluation point.

    Raises:
        UsageError: A setting names a task that does not exist, or the balancer, the batches, the
            optimiser or the initial weights do not work with the others.
    """

    evaluator_type: type[Evaluator] = Evaluator

    def __init__(
        self,
        model: Architecture,
        balancer: Balancer | None,
        dataset: Dataset,
        setup: TrainingSetup,
        splits: dict[str, DeviceSplit] | None = None,
    ) -> None:
        settings = setup.settings
        self.settings = settings
        self.execution = setup.execution
        self.seed = setup.seed
        self.device = setup.device
        self.schema = dataset.schema
        self.tasks = model.schema.task_names
        check_task_names(settings, dataset)

        # The data, on the device if there is room.
        if self.device.type == "cuda" and splits is None:
            check_ids(dataset.schema, dataset.splits, "prepare the data set again")
        loss_groups = group_names(self.schema.tasks)
        slots = self.execution.slots_per_gpu
        self.splits = splits or {
            name: DeviceSplit.load(dataset.splits[name], self.device, loss_groups, slots)
            for name in SPLITS
        }
        self.train = self.splits["train"]
        self.probe_batch = probe_batch(dataset, self.train)

        # The length of the run, in optimiser steps.
        rows_per_step = settings.batch_size * settings.accumulate
        self.steps_per_epoch = len(self.train) / rows_per_step
        self.total_steps = settings.steps(len(self.train))

        # The model, and which of its parameters the tasks share.
        self.model = model.to(self.device)
        if self.model.number_embedding is not None:
            self.model.number_embedding.fit(self._fitted_numbers())
        self.balancer = balancer.to(self.device) if balancer is not None else None
        self.sharing = prepare_model(self.model, balancer, settings, self.probe_batch)
        self.warnings = self._doubts(dataset, loss_groups)
        # A shortcut that this model does not allow is told where it would have been taken.
        asks_for_gradients = balancer is not None and balancer.needs != "losses"
        self.notes = self.sharing.refused if asks_for_gradients else []
        if setup.warm_start is not None:
            self.warnings += setup.warm_start.apply(self.model, self.sharing)
        check_comparable_rows(balancer, self.sharing, settings)
        if balancer is not None and balancer.needs == "norms":
            _ = self.sharing.last  # found now: a model that is compiled cannot be copied

        # What moves the parameters. Frozen ones are no longer among the slices.
        sparse = [sliced.name for sliced in self.sharing.parameters if sliced.sparse]
        self.optimizer = Optimizers(self.model, settings, self.model.learning_rates(), sparse)
        self.schedule = TaskSchedule(settings, model.tasks, self.sharing, self.device)
        loss_factors = [settings.task_weights.get(task.label_name, 1.0) for task in model.tasks]
        self.loss_factors = torch.tensor(loss_factors, device=self.device)  # (T,)
        self._all_active = torch.ones(len(self.tasks), dtype=torch.bool, device=self.device)

        # The batches: a stream of the run's own, and one for balancers that ask for a fresh batch.
        self.sampler = self._build_sampler(dataset)
        size, together = settings.batch_size, self._rows_together(dataset, loss_groups)
        shuffle, fresh = generator(self.seed, "shuffle"), generator(self.seed, "fresh")
        self.stream = BatchStream(self.train, self.sampler, size, shuffle, together)
        self.fresh = BatchStream(self.train, self.sampler, size, fresh, together, with_seeds=True)

        # What the run writes down.
        groups = self.sharing.components()
        self.measures = Measures.of(dataset, settings, setup.execution)
        self.evaluator = self.evaluator_type(
            self.model, self.splits, groups, setup, self.total_steps, self.measures
        )
        self.probes = ProbeLog(self.tasks, model.gate_experts)
        self.timer = RunTimer(self.device)
        self.backward_passes = 0

        # How far the run is.
        self.graph: Callable[[Trainer, int, RunningMeans], None] | None = None
        self.steps = 0
        self.window = RunningMeans(len(self.tasks), self.device)

    def _fitted_numbers(self) -> Tensor:
        """(N, D) the numbers of training rows, of every n-th one where there are many."""
        stride = -(-len(self.train) // FITTED_ROWS)
        return self.train.take(torch.arange(0, len(self.train), stride)).dense

    @property
    def compares_at_boundary(self) -> bool:
        """Whether the balancer compares gradients by a tensor inside the model
        (``Output.boundary``), where its tasks part.
        """
        scope_is_representation = self.settings.scope == "representation"
        return self.balancer is not None and scope_is_representation and self.sharing.has_boundary

    def fit(
        self,
        on_point: Callable[[float], None] = lambda done: None,
        checkpoints: Checkpoints | None = None,
    ) -> FitResult:
        """Train, evaluate at evenly spaced points, select on validation, score the test split once.

        After :meth:`load_state_dict` it goes on where that state was taken.

        Args:
            on_point: Called after each evaluation point with the share of steps done.
            checkpoints: Where the state is written in between, and when; None for nowhere.

        Raises:
            DivergedError: A loss is not finite.
        """
        if self.steps == 0:
            self.timer.start()
            self._seed_dropout()
        self.model.train()

        watch: AbstractContextManager[None] = nullcontext()
        if checkpoints is not None:
            watch = checkpoints.watch(self.steps, self.total_steps)
        with closing(self.stream), watch:
            for stop in self.evaluator.points[len(self.evaluator.curve) :]:
                if self.evaluator.stalled():
                    break

                # Train up to the next evaluation point, and see how good the model is.
                self._train_until(stop, checkpoints)
                self._evaluate(stop)
                self.window.clear()
                on_point(stop / self.total_steps)
            # The process may have been told to end after the last checkpoint.
            if checkpoints is not None and checkpoints.asked:
                checkpoints.save(self.steps, self.state_dict())

        return self._finish()

    def _seed_dropout(self) -> None:
        torch.manual_seed(seed_for(self.seed, "dropout"))

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors, numbers and containers of them."""
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        return state | {
            "steps": self.steps,
            "backward_passes": self.backward_passes,
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, for a trainer that was built with the same arguments
        and has not trained.
        """
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        self.steps = state["steps"]
        self.backward_passes = state["backward_passes"]
        set_random_state(self.device, state["random"])

    def _stateful(self) -> dict[str, Any]:
        """The parts of a run that have a state."""
        parts = {
            "model": self.model,
            "balancer": self.balancer,
            "optimizer": self.optimizer,
            "stream": self.stream,
            "fresh": self.fresh,
            "window": self.window,
            "evaluator": self.evaluator,
            "probes": self.probes,
            "timer": self.timer,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _train_until(self, stop: int, checkpoints: Checkpoints | None) -> None:
        """Train until ``stop`` steps are done, and write checkpoints on the way."""
        while self.steps < stop:
            is_due = False
            with self.timer.measure("train"):
                while self.steps < stop and not is_due:
                    self.take_step()
                    is_due = checkpoints is not None and checkpoints.due(self.steps)
            if checkpoints is not None and is_due:
                checkpoints.save(self.steps, self.state_dict())

    def take_step(self) -> None:
        """One optimiser step, by the graph if there is one."""
        if self.graph is None:
            self._train_step(self.steps, self.window)
        else:
            self.graph(self, self.steps, self.window)
        self.steps += 1

    def _train_step(self, index: int, window: RunningMeans) -> None:
        """One optimiser step, of ``accumulate`` batches.

        Args:
            index: Number of steps before this one.
            window: Losses and weights are counted in here.
        """
        self.optimizer.set_learning_rate(
            learning_rate_factor(self.settings, index, self.total_steps)
        )
        self.update(islice(self.stream, self.settings.accumulate), index, window)

    def update(self, batches: Iterable[Batch], index: int, window: RunningMeans) -> None:
        """Move the parameters once, by the gradients of some batches; the arguments are those of
        :meth:`_train_step`.
        """
        self.optimizer.zero_grad()

        # Add up the gradients of the batches.
        callbacks: list[tuple[Batch, list[Callable[[Tensor], None]]]] = []
        for batch in batches:
            step = self._step(batch, index)
            self._add_gradients(step, window)
            if step.callbacks:
                callbacks.append((batch, step.callbacks))

        self.move()

        # Tell the balancers that asked what has become of the losses.
        for batch, functions in callbacks:
            losses = self._losses_again(batch, index)
            for function in functions:
                function(losses)

    def move(self) -> None:
        """Move the parameters, those of some tasks faster or slower than the optimiser does."""
        if self.settings.clip_norm is not None:
            self.optimizer.clip(self.settings.clip_norm)
        self.schedule.before_step()
        self.optimizer.step()
        self.schedule.after_step()

    def _add_gradients(self, step: LoopStep, window: RunningMeans) -> None:
        """Let the balancer decide, and add the gradients of its decision to the parameters."""
        # Without a balancer, every task with a label has weight 1.
        decision: Tensor | SharedGradient
        if self.balancer is None:
            decision = step.active.to(step.losses.dtype)
        else:
            decision = self.balancer.decide(step)
        self.follow(step, decision, window)

    def follow(
        self, step: LoopStep, decision: Tensor | SharedGradient, window: RunningMeans
    ) -> None:
        """Add the gradients of a decision to the parameters, and count the step in."""
        signed = self.balancer is not None and self.balancer.signed
        share = 1 / self.settings.accumulate
        weights = step.apply(decision, self.settings.heads, share, signed)
        window.add(step, weights)
        self.backward_passes += step.all_backward_passes()

    def _step(self, batch: Batch, index: int, step_type: type[LoopStep] = LoopStep) -> LoopStep:
        """The forward pass of a batch, as a balancer sees it."""
        output, losses, active = self._losses(batch, index)
        return step_type(
            self.sharing,
            output,
            losses,
            active,
            self.step_info(index),
            draw=lambda: self._fresh_step(index),
        )

    def step_info(self, index: int) -> StepInfo:
        """Where a step stands in the run, with ``index`` steps before it."""
        seed = seed_for(self.seed, "balancer")
        return StepInfo(index, self.total_steps, seed, self.settings.scope)

    def _losses(self, batch: Batch, index: int) -> tuple[Output, list[Tensor], Tensor]:
        """The forward pass of a batch, and what a step takes from it.

        Returns:
            The output; T scalar losses, attached to the graph, with their factors and 0 for tasks
            that are not due; and (T,) bool, which tasks take part.
        """
        with autocast(self.device, self.settings.precision):
            output = self.model(batch)
        objectives = self._objectives(output, batch)
        losses = owner_losses(objectives, self.tasks)
        if self.settings.task_weights:
            factors = self.loss_factors
            losses = [loss * factor for loss, factor in zip(losses, factors, strict=True)]

        # A task takes part if the batch has a label of it and the task is due in this step.
        active = owner_active(objectives, self.tasks, self._all_active)
        due = self.schedule.due(index)
        if due is not None:
            active = active & due
            losses = [torch.where(on, loss, 0.0) for loss, on in zip(losses, due, strict=True)]
        return output, losses, active

    def _objectives(self, output: Output, batch: Batch) -> list[Objective]:
        return self.model.objectives(output, batch)

    def _fresh_step(self, index: int) -> LoopStep:
        """The step of an independent batch. The dropout of the run's own batches is not moved."""
        batch = next(self.fresh)
        with keep_random_state(self.device):
            torch.manual_seed(self.fresh.seed)
            return self._step(batch, index)

    def _losses_again(self, batch: Batch, index: int) -> Tensor:
        """The losses (T,) on a batch that was just trained on.

        Neither the random state nor the statistics of batch norms are moved.
        """
        statistics = {
            name: value.clone()
            for name, value in self.model.named_buffers()
            if value.is_floating_point()
        }
        with torch.no_grad(), keep_random_state(self.device):
            _, losses, _ = self._losses(batch, index)
        for name, value in self.model.named_buffers():
            if name in statistics:
                value.copy_(statistics[name])
        return torch.stack(losses)

    def _evaluate(self, step: int) -> None:
        """Evaluate and probe the model after ``step`` steps; a :class:`DivergedError` if a loss is
        not finite.
        """
        train_loss = dict(zip(self.tasks, self.window.losses(), strict=True))
        diverged = [name for name, loss in train_loss.items() if loss is None]
        if diverged:
            raise DivergedError(step, diverged)

        with self.timer.measure("evaluation"):
            scores = self.evaluator.evaluate(step, step / self.steps_per_epoch, train_loss)
        if self.execution.probes:
            with self.timer.measure("probe"):
                self._probe(step, scores)

    def _probe(self, step: int, scores: Scores) -> None:
        """Record gate usage, task weights and gradient cosines."""
        self.probes.add("steps", step)
        self.probes.add("epochs", step / self.steps_per_epoch)
        self.probes.add("weights", self.window.weights())
        self.probes.add_gates(scores.gate_mean, scores.gate_entropy)

        # Gradients are compared without dropout, on the same rows at every point.
        self.model.eval()
        self.probes.add_gradients(self._step(self.probe_batch, 0))
        self.model.train()

    def _finish(self) -> FitResult:
        """The result of the run."""
        return finish(self)

    def _rows_together(self, dataset: Dataset, groups: list[str]) -> Tensor | None:
        """(N,) of which group each training row is, where groups come together in batches."""
        if self.settings.batches != "grouped":
            return None
        known = dataset.splits["train"].groups
        name = groups[0] if groups else "session"
        if name not in known:
            raise UsageError(
                f"batches=grouped brings the rows of a {name} together, but {dataset.name} says of "
                f"no row which {name} it belongs to.",
                "--set batches=shuffled",
            )
        return torch.from_numpy(np.unique(known[name], return_inverse=True)[1])

    def _doubts(self, dataset: Dataset, groups: list[str]) -> list[str]:
        """What may be wrong with this model on these rows, a sentence each."""
        # the tower of a task that another one scores is not meant to learn
        is_plain = all(task.scored_by is None for task in self.model.tasks)
        unreached = self.sharing.unreached if is_plain else []
        repeated = self.settings.repeats_rows(len(self.train))
        return [
            *(f"no task reaches {name}" for name in unreached),
            *([repeated] if repeated else []),
            *self._lonely_rows(dataset, groups),
        ]

    def _lonely_rows(self, dataset: Dataset, groups: list[str]) -> list[str]:
        """A warning for each group whose rows hardly ever meet, so that its losses learn little."""
        if self.settings.batches == "grouped":
            return []
        size = self.settings.batch_size
        met = {name: partners(dataset.splits["train"], name, size) for name in groups}
        return [
            f"a row meets {count:.2g} other rows of its {name} in a shuffled batch, so a loss "
            f"within each {name} learns little; choose batches=grouped"
            for name, count in met.items()
            if count < 1
        ]

    def _build_sampler(self, dataset: Dataset) -> StratifiedSampler | None:
        """How batches with rows of every task are drawn; None if all rows are shuffled."""
        if self.settings.batches != "covering":
            return None
        return stratified_sampler(
            dataset.splits["train"], self.schema, self.settings.batch_size, self.settings.cover
        )
