"""The one training loop. It knows no model and no balancer by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import SharedGradient
from mtlkit.data.splits import SPLITS, Dataset
from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.evaluation import Evaluator
from mtlkit.training.fast_paths import check_comparable_rows, prepare_model
from mtlkit.training.finish import FinishedRun, finish
from mtlkit.training.measures import Measures
from mtlkit.training.optimizers import Optimizers, learning_rate_factor
from mtlkit.training.probe_log import ProbeLog
from mtlkit.training.result import DivergedError, FitResult
from mtlkit.training.running_means import RunningMeans
from mtlkit.training.sampling import probe_batch, row_stream
from mtlkit.training.scoring import Scores, autocast
from mtlkit.training.seeding import generator, keep_random_state, seed_for
from mtlkit.training.selection import check_task_names
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.step import LoopStep, StepInfo
from mtlkit.training.stratified import StratifiedSampler, stratified_sampler
from mtlkit.training.task_losses import owner_active, owner_losses
from mtlkit.training.task_schedule import TaskSchedule
from mtlkit.training.task_settings import group_names, partners
from mtlkit.training.timing import RunTimer


class Trainer:
    """Trains one model under one balancer on one data set.

    A run is built here, done by :meth:`fit`, and turned into its result by
    :func:`mtlkit.training.finish.finish`.

    Args:
        model: A freshly initialised model; it is moved to the device and trained in place.
        balancer: The balancer, or None when the tasks share no parameter.
        dataset: Packed splits.
        setup: Settings, seed, device and initial weights.

    Raises:
        UsageError: A setting names a task that does not exist, or the balancer, the batches, the
            optimiser or the initial weights do not work with the others.
    """

    def __init__(
        self,
        model: Architecture,
        balancer: Balancer | None,
        dataset: Dataset,
        setup: TrainingSetup,
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
        loss_groups = group_names(self.schema.tasks)
        self.splits = {
            name: DeviceSplit.load(dataset.splits[name], self.device, loss_groups)
            for name in SPLITS
        }
        self.train = self.splits["train"]
        self.probe_batch = probe_batch(dataset, self.train)

        # The length of the run, in optimiser steps.
        rows_per_step = settings.batch_size * settings.accumulate
        self.steps_per_epoch = len(self.train) / rows_per_step
        self.total_steps = max(1, round(settings.epochs * len(self.train) / rows_per_step))

        # The model, and which of its parameters the tasks share.
        self.model = model.to(self.device)
        self.balancer = balancer.to(self.device) if balancer is not None else None
        self.sharing = prepare_model(self.model, balancer, settings, self.probe_batch)
        self.warnings = [f"no task reaches {name}" for name in self.sharing.unreached]
        repeated = settings.repeats_rows(len(self.train))
        if repeated is not None:
            self.warnings.append(repeated)
        self.warnings += self._lonely_rows(dataset, loss_groups)
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

        # The batches: a stream of the run's own, and one for balancers that ask for a fresh batch.
        self.sampler = self._build_sampler(dataset)
        self.fresh_random = generator(self.seed, "fresh")
        together = self._rows_together(dataset, loss_groups)
        self.stream = batch_stream(
            self.train, self.sampler, settings.batch_size, generator(self.seed, "shuffle"), together
        )
        self.fresh = batch_stream(
            self.train, self.sampler, settings.batch_size, self.fresh_random, together
        )

        # What the run writes down.
        groups = self.sharing.components()
        self.measures = Measures.of(dataset, settings, setup.execution)
        self.evaluator = Evaluator(
            self.model, self.splits, groups, setup, self.total_steps, self.measures
        )
        self.probes = ProbeLog(self.tasks, model.gate_experts)
        self.timer = RunTimer(self.device)
        self.backward_passes = 0

    @property
    def compares_at_boundary(self) -> bool:
        """Whether the balancer compares gradients by a tensor inside the model
        (``Output.boundary``), where its tasks part.
        """
        scope_is_representation = self.settings.scope == "representation"
        return self.balancer is not None and scope_is_representation and self.sharing.has_boundary

    def fit(self, on_point: Callable[[float], None] = lambda done: None) -> FitResult:
        """Train, evaluate at evenly spaced points, select on validation, score the test split once.

        Args:
            on_point: Called after each evaluation point with the share of steps done.

        Raises:
            DivergedError: A loss is not finite.
        """
        self.timer.start()
        torch.manual_seed(seed_for(self.seed, "dropout"))
        self.model.train()

        for start, stop in pairwise([0, *self.evaluator.points]):
            # Train up to the next evaluation point.
            window = RunningMeans(len(self.tasks), self.device)
            with self.timer.measure("train"):
                for index in range(start, stop):
                    self._train_step(index, window)

            # See how good the model is, and whether it still gets better.
            self._evaluate(stop, window)
            on_point(stop / self.total_steps)
            if self.evaluator.stalled():
                break

        return self._finish(stop)

    def _train_step(self, index: int, window: RunningMeans) -> None:
        """One optimiser step, of ``accumulate`` batches.

        Args:
            index: Number of steps before this one.
            window: Losses and weights are counted in here.
        """
        self.optimizer.set_learning_rate(
            learning_rate_factor(self.settings, index, self.total_steps)
        )
        self.optimizer.zero_grad()

        # Add up the gradients of the batches.
        callbacks: list[tuple[Batch, list[Callable[[Tensor], None]]]] = []
        for _ in range(self.settings.accumulate):
            batch = next(self.stream)
            step = self._step(batch, index)
            self._add_gradients(step, window)
            if step.callbacks:
                callbacks.append((batch, step.callbacks))

        # Move the parameters, those of some tasks faster or slower than the optimiser does.
        if self.settings.clip_norm is not None:
            self.optimizer.clip(self.settings.clip_norm)
        self.schedule.before_step()
        self.optimizer.step()
        self.schedule.after_step()

        # Tell the balancers that asked what has become of the losses.
        for batch, functions in callbacks:
            losses = self._losses_again(batch, index)
            for function in functions:
                function(losses)

    def _add_gradients(self, step: LoopStep, window: RunningMeans) -> None:
        """Let the balancer decide, and add the gradients of its decision to the parameters."""
        # Without a balancer, every task with a label has weight 1.
        decision: Tensor | SharedGradient = step.active.to(step.losses.dtype)
        signed = False
        if self.balancer is not None:
            decision = self.balancer.decide(step)
            signed = self.balancer.signed

        share = 1 / self.settings.accumulate
        weights = step.apply(decision, self.settings.heads, share, signed)
        window.add(step, weights)
        self.backward_passes += step.all_backward_passes()

    def _step(self, batch: Batch, index: int) -> LoopStep:
        """The forward pass of a batch, as a balancer sees it."""
        output, losses, active = self._losses(batch, index)
        seed = seed_for(self.seed, "balancer")
        return LoopStep(
            self.sharing,
            output,
            losses,
            active,
            StepInfo(index, self.total_steps, seed, self.settings.scope),
            draw=lambda: self._fresh_step(index),
        )

    def _losses(self, batch: Batch, index: int) -> tuple[Output, list[Tensor], Tensor]:
        """The forward pass of a batch, and what a step takes from it.

        Returns:
            The output; T scalar losses, attached to the graph, with their factors and 0 for tasks
            that are not due; and (T,) bool, which tasks take part.
        """
        with autocast(self.device, self.settings.precision):
            output = self.model(batch)
        objectives = self.model.objectives(output, batch)
        losses = owner_losses(objectives, self.tasks)
        if self.settings.task_weights:
            factors = self.loss_factors
            losses = [loss * factor for loss, factor in zip(losses, factors, strict=True)]

        # A task takes part if the batch has a label of it and the task is due in this step.
        active = owner_active(objectives, self.tasks, self.device)
        due = self.schedule.due(index)
        if due is not None:
            active = active & due
            losses = [torch.where(on, loss, 0.0) for loss, on in zip(losses, due, strict=True)]
        return output, losses, active

    def _fresh_step(self, index: int) -> LoopStep:
        """The step of an independent batch. The dropout of the run's own batches is not moved."""
        batch = next(self.fresh)
        with keep_random_state(self.device):
            dropout_seed = int(torch.randint(2**62, (), generator=self.fresh_random))
            torch.manual_seed(dropout_seed)
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

    def _evaluate(self, step: int, window: RunningMeans) -> None:
        """Evaluate and probe the model after ``step`` steps.

        Args:
            step: Steps done.
            window: Losses and weights of the steps since the last point.

        Raises:
            DivergedError: A loss is not finite.
        """
        train_loss = dict(zip(self.tasks, window.losses(), strict=True))
        diverged = [name for name, loss in train_loss.items() if loss is None]
        if diverged:
            raise DivergedError(step, diverged)

        with self.timer.measure("evaluation"):
            scores = self.evaluator.evaluate(step, step / self.steps_per_epoch, train_loss)
        if self.execution.probes:
            with self.timer.measure("probe"):
                self._probe(step, scores, window)

    def _probe(self, step: int, scores: Scores, window: RunningMeans) -> None:
        """Record gate usage, task weights and gradient cosines."""
        self.probes.add("steps", step)
        self.probes.add("epochs", step / self.steps_per_epoch)
        self.probes.add("weights", window.weights())
        self.probes.add_gates(scores.gate_mean, scores.gate_entropy)

        # Gradients are compared without dropout, on the same rows at every point.
        self.model.eval()
        self.probes.add_gradients(self._step(self.probe_batch, 0))
        self.model.train()

    def _finish(self, steps: int) -> FitResult:
        """The result of the run after ``steps`` steps."""
        return finish(
            FinishedRun(
                splits=self.splits,
                measures=self.measures,
                settings=self.settings,
                execution=self.execution,
                sharing=self.sharing,
                sampler=self.sampler,
                evaluator=self.evaluator,
                probes=self.probes,
                timer=self.timer,
                warnings=self.warnings,
                notes=self.notes,
                steps=steps,
                backward_passes=self.backward_passes,
            )
        )

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


def batch_stream(
    split: DeviceSplit,
    sampler: StratifiedSampler | None,
    batch_size: int,
    random: torch.Generator,
    groups: Tensor | None = None,
) -> Iterator[Batch]:
    """Endless training batches, with the order of rows from a generator; rows of one of ``groups``
    (N,) come together.
    """
    device = split.storage_device
    if sampler is None:
        for rows in row_stream(len(split), batch_size, random, device, groups):
            yield split.take(rows)
    else:
        row_weights = torch.from_numpy(sampler.weights).to(device)  # (N,)
        for rows in sampler.stream(random, device):
            yield split.take(rows, row_weights[rows])
