"""The one training loop. It knows no model and no balancer by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlkit.balancers._base import Balancer, SharedGradient
from mtlkit.data.splits import SPLITS, Dataset
from mtlkit.data.types import Score
from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._tables import FastPaths
from mtlkit.models._types import Batch
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.ablation import ablate
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.cost import flops_per_row
from mtlkit.training.optimizers import Optimizers, learning_rate_factor
from mtlkit.training.probe_log import ProbeLog
from mtlkit.training.result import DivergedError, FitResult
from mtlkit.training.running_means import RunningMeans
from mtlkit.training.sampling import probe_rows, row_stream, sample
from mtlkit.training.scoring import Scores, autocast, metrics, own_scores, score, score_arrays
from mtlkit.training.seeding import generator, seed_for
from mtlkit.training.selection import Best, check_task_names, selection_value
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.step import LoopStep
from mtlkit.training.stratified import StratifiedSampler, stratified_sampler
from mtlkit.training.task_losses import owner_active, owner_losses
from mtlkit.training.task_schedule import TaskSchedule
from mtlkit.training.warm_start import WarmStart

PROBE_ROWS = 512
PROBE_POSITIVES = 64
JUDGED_ROWS = 50_000
JUDGED_SHARE = 0.3  # of the rows trained on; a row costs about a quarter of one that is trained on
COUNTED_ROWS = 64  # on which the operations of a forward pass are counted
WEIGHTS_LIMIT = 32 * 2**20  # bytes up to which weights are kept without being asked for
SCORED_ROWS_LIMIT = 2**20  # rows up to which scores are


class Trainer:
    """Trains one model under one balancer on one data set.

    Args:
        model: A freshly initialised model; it is moved to the device and trained in place.
        balancer: The balancer, or None when the tasks share no parameter.
        dataset: Packed splits.
        settings: What moves the numbers.
        execution: What does not, beside the device.
        seed: Source of batch order, dropout and the balancer's randomness.
        device: Where to train.
        warm: Weights to start from, if any.

    Raises:
        UsageError: A setting names a task that does not exist, or the balancer does not work with
            the others.
    """

    def __init__(
        self,
        model: Architecture,
        balancer: Balancer | None,
        dataset: Dataset,
        settings: TrainingSettings,
        execution: ExecutionSettings,
        seed: int,
        device: torch.device,
        warm: WarmStart | None = None,
    ) -> None:
        self.device, self.settings, self.execution, self.seed = device, settings, execution, seed
        self.schema = dataset.schema
        self.tasks = dataset.schema.task_names
        check_task_names(settings, self.schema)
        self.splits = {name: DeviceSplit.load(dataset.splits[name], device) for name in SPLITS}
        self.train = self.splits["train"]
        n_rows = len(self.train)
        self.total = max(
            1, round(settings.epochs * n_rows / (settings.batch_size * settings.accumulate))
        )
        self.steps_per_epoch = n_rows / (settings.batch_size * settings.accumulate)
        self.judged = self.splits["validation"]  # at evaluation points
        chosen = sample(len(self.judged), self._judged_rows(), seed_for(0, "validation"))
        if chosen is not None:
            self.judged = self.judged.part(torch.from_numpy(chosen))
        self.model = model.to(device)
        self.balancer = balancer.to(device) if balancer is not None else None
        rows, weights = probe_rows(
            dataset.splits["train"],
            dataset.schema,
            PROBE_ROWS,
            PROBE_POSITIVES,
            seed_for(0, "probe"),
        )
        self.probe_batch = self.train.take(
            torch.from_numpy(rows), torch.from_numpy(weights).to(self.train.home)
        )
        # a balancer that asks for rows needs the representation as a tensor
        needs_rows = balancer is not None and balancer.needs == "rows"
        self.model.use(FastPaths(fuse=not needs_rows, sparse_from=settings.sparse_rows))
        self.sharing = SharedParameters(self.model, self.probe_batch)
        if settings.scope == "representation" and balancer is not None and not self.sharing.trunk:
            # x must exist to be differentiated by
            self.model.use(replace(self.model.fast_paths, fold=False))
            self.sharing = SharedParameters(self.model, self.probe_batch)
        self.warnings = [f"no task reaches {name}" for name in self.sharing.unreached]
        if warm is not None:
            self.warnings += warm.apply(self.model, self.sharing)
        self.pace = TaskSchedule(settings, self.sharing, device)
        if balancer is not None and "representation" not in balancer.scopes:
            _check_fixed_rows(self.sharing, settings)
        sparse = [item.name for item in self.sharing.slices if item.sparse]
        self.optimizer = Optimizers(self.model, settings, self.model.learning_rates(), sparse)
        self.task_weights = torch.tensor(
            [settings.task_weights.get(t, 1.0) for t in self.tasks], device=device
        )
        self.fresh_random = generator(seed, "fresh")
        self.cover: StratifiedSampler | None = None
        self.importance: Tensor | None = None  # (N,)
        if settings.batches == "covering":
            self.cover = stratified_sampler(
                dataset.splits["train"], dataset.schema, settings.batch_size, settings.cover
            )
            self.importance = torch.from_numpy(self.cover.weights).to(self.train.home)
        self.stream = self._stream(generator(seed, "shuffle"))
        self.fresh = self._stream(self.fresh_random)
        self.bests = [Best(group) for group in self.sharing.components()]
        self.probes = ProbeLog(self.tasks, model.gate_experts)
        self.curve: list[dict[str, Any]] = []
        self.timing = {"train_seconds": 0.0, "evaluation_seconds": 0.0, "probe_seconds": 0.0}
        self.backward_passes = 0

    @property
    def parts_at_representation(self) -> bool:
        """Whether the balancer compares gradients at a place inside the model that it names
        (``Output.boundary``).
        """
        return (
            self.balancer is not None
            and self.settings.scope == "representation"
            and bool(self.sharing.trunk)
        )

    def fit(self, on_point: Callable[[float], None] = lambda done: None) -> FitResult:
        """Train, evaluate at evenly spaced points, select on validation, score the test split once.

        Args:
            on_point: Called with the share of steps done.

        Raises:
            DivergedError: A loss is not finite.
        """
        began = time.perf_counter()
        torch.manual_seed(seed_for(self.seed, "dropout"))
        points = self._points()
        window = RunningMeans(len(self.tasks), self.device)
        self.model.train()
        mark = time.perf_counter()
        done = 0
        for index in range(self.total):
            self._train_step(index, window)
            done = index + 1
            if done in points:
                self._synchronize()
                self.timing["train_seconds"] += time.perf_counter() - mark
                self._evaluate(done, window)
                on_point(done / self.total)
                if self._stalled():
                    break
                window = RunningMeans(len(self.tasks), self.device)
                mark = time.perf_counter()
        return self._finish(began, done)

    def _stream(self, random: torch.Generator) -> Iterator[Tensor]:
        if self.cover is not None:
            return self.cover.stream(random, self.train.home)
        return row_stream(len(self.train), self.settings.batch_size, random, self.train.home)

    def _batch(self, stream: Iterator[Tensor]) -> Batch:
        rows = next(stream)
        return self.train.take(rows, None if self.importance is None else self.importance[rows])

    def _points(self) -> set[int]:
        """The steps after which to evaluate: at least ``evaluations``, one an epoch if there are
        more epochs.
        """
        count = min(self.total, max(self.settings.evaluations, math.ceil(self.settings.epochs)))
        return {round(self.total * (i + 1) / count) for i in range(count)}

    def _judged_rows(self) -> int:
        """Validation rows to score at an evaluation point: scoring stays a small part of the time."""
        if self.settings.validation_rows is not None:
            return self.settings.validation_rows
        return max(
            JUDGED_ROWS,
            int(JUDGED_SHARE * self.settings.epochs * len(self.train) / len(self._points())),
        )

    def _train_step(self, index: int, window: RunningMeans) -> None:
        self.optimizer.set_learning_rate(learning_rate_factor(self.settings, index, self.total))
        self.optimizer.zero_grad()
        callbacks: list[tuple[Batch, list[Callable[[Tensor], None]]]] = []
        for _ in range(self.settings.accumulate):
            batch = self._batch(self.stream)
            step = self._step(batch, index)
            decision: Tensor | SharedGradient = step.active.to(step.losses.dtype)
            signed = False
            if self.balancer is not None:
                decision, signed = self.balancer.decide(step), self.balancer.signed
            weights = step.apply(
                decision, self.settings.heads, 1 / self.settings.accumulate, signed
            )
            window.add(step, weights)
            self.backward_passes += step.all_backward_passes()
            if step.callbacks:
                callbacks.append((batch, step.callbacks))
        if self.settings.clip_norm is not None:
            self.optimizer.clip(self.settings.clip_norm)
        self.pace.before_step()
        self.optimizer.step()
        self.pace.after_step()
        for batch, functions in callbacks:
            losses = self._losses_again(batch, index)
            for function in functions:
                function(losses)

    def _step(self, batch: Batch, index: int) -> LoopStep:
        with autocast(self.device, self.settings.precision):
            output = self.model(batch)
        objectives = self.model.objectives(output, batch)
        losses = owner_losses(objectives, self.tasks)
        if self.settings.task_weights:
            losses = [loss * weight for loss, weight in zip(losses, self.task_weights, strict=True)]
        active = owner_active(objectives, self.tasks, self.device)
        due = self.pace.due(index)
        if due is not None:
            active = active & due
            losses = [torch.where(on, loss, 0.0) for loss, on in zip(losses, due, strict=True)]
        seed = seed_for(self.seed, "balancer")
        return LoopStep(
            self.sharing,
            output,
            losses,
            active,
            index,
            self.total,
            seed,
            self.settings.scope,
            draw=lambda: self._fresh_step(index),
        )

    def _fresh_step(self, index: int) -> LoopStep:
        """The step of an independent batch, which leaves the dropout of the run's own batches as it
        is.
        """
        batch = self._batch(self.fresh)
        with self._random_state_kept():
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.fresh_random)))
            return self._step(batch, index)

    def _losses_again(self, batch: Batch, index: int) -> Tensor:
        """(T,) losses on a batch that was just trained on, without moving random state or norm
        statistics.
        """
        buffers = {
            name: value.clone()
            for name, value in self.model.named_buffers()
            if value.is_floating_point()
        }
        with torch.no_grad(), self._random_state_kept():
            losses = self._step(batch, index).losses
        for name, value in self.model.named_buffers():
            if name in buffers:
                value.copy_(buffers[name])
        return losses

    def _evaluate(self, step: int, window: RunningMeans) -> None:
        train_loss = window.losses()
        broken = [name for name, loss in zip(self.tasks, train_loss, strict=True) if loss is None]
        if broken:
            raise DivergedError(step, broken)
        began = time.perf_counter()
        scores = self._scores(self.judged)
        broken = [
            name
            for name, loss in zip(self.tasks, scores.losses.tolist(), strict=True)
            if not math.isfinite(loss)
        ]
        if broken:  # the last steps broke the model; ranks of NaN are no ranks
            raise DivergedError(step, broken)
        found = metrics(self.model, scores, self.judged)
        point = len(self.curve)
        self.curve.append(
            {
                "point": point,
                "step": step,
                "epoch": round(step / self.steps_per_epoch, 4),
                "train_loss": dict(zip(self.tasks, train_loss, strict=True)),
                "validation": found,
            }
        )
        for best in self.bests:
            tasks = {
                of.name: self.schema.tasks[self.tasks.index(of.task)]
                for of in self._own(best, found)
            }
            value = selection_value(
                self.settings, tasks, found, float(scores.losses[best.tasks].sum())
            )
            if value > best.value:
                best.value, best.point = value, point
                best.state = {
                    name: tensor.clone() for name, tensor in self.model.state_dict().items()
                }
        self._synchronize()
        self.timing["evaluation_seconds"] += time.perf_counter() - began
        if self.execution.probes:
            began = time.perf_counter()
            self._probe(step, scores, window)
            self._synchronize()
            self.timing["probe_seconds"] += time.perf_counter() - began

    def _scores(self, split: DeviceSplit) -> Scores:
        return score(self.model, split, self.execution.eval_batch_size, self.settings.precision)

    def _own(self, best: Best, found: dict[str, dict[str, Any]]) -> list[Score]:
        return own_scores(self.schema, found, [self.tasks[t] for t in best.tasks])

    def _probe(self, step: int, scores: Scores, window: RunningMeans) -> None:
        self.probes.add("steps", step)
        self.probes.add("epochs", step / self.steps_per_epoch)
        self.probes.add("weights", window.weights())
        self.probes.add_gates(scores.gate_mean, scores.gate_entropy)
        self.model.eval()
        self.probes.add_gradients(self._step(self.probe_batch, 0))
        self.model.train()

    def _stalled(self) -> bool:
        patience = self.settings.patience
        last = len(self.curve) - 1
        return patience is not None and all(last - best.point >= patience for best in self.bests)

    def _finish(self, began: float, done: int) -> FitResult:
        rows = done * self.settings.batch_size * self.settings.accumulate
        result = FitResult(self.curve, self.timing, self.warnings)
        started = time.perf_counter()
        validation, test = self.splits["validation"], self.splits["test"]
        ablation: dict[str, np.ndarray] = {}
        kept = {
            name: Scores({}, {}, torch.zeros(0)) for name in ("validation", "test")
        }  # each task at its own point
        # some scores need several points, or not all rows were looked at
        again = (
            len(self.bests) > 1 and self.schema.funnel is not None
        ) or self.judged is not validation
        for best in self.bests:
            self.model.load_state_dict(best.state)
            own = [self.tasks[t] for t in best.tasks]
            scores = self._scores(test)
            kept["test"].take(scores, self.schema, own)
            if again:
                kept["validation"].take(self._scores(validation), self.schema, own)
            found = metrics(self.model, scores, test)
            if self.execution.ablation:
                size, precision = self.execution.eval_batch_size, self.settings.precision
                ablation |= ablate(self.model, self.judged, size, precision)
            point = self.curve[best.point]
            for of in self._own(best, found):
                if of.name in point["validation"]:
                    result.metrics["validation"][of.name] = point["validation"][of.name]
                result.metrics["test"][of.name] = found[of.name]
            for name in own:
                result.best[name] = {key: point[key] for key in ("point", "step", "epoch")} | {
                    "value": best.value
                }
        if again:
            result.metrics["validation"] = metrics(self.model, kept["validation"], validation)
            if len(self.bests) > 1:
                result.metrics["test"] = metrics(self.model, kept["test"], test)
        if self._worth_keeping(self.execution.save_scores, len(test), SCORED_ROWS_LIMIT):
            result.scores = score_arrays(self.schema, kept["test"], test)
        result.weights = self._weights()
        self._synchronize()
        now = time.perf_counter()
        self.timing["evaluation_seconds"] += now - started
        self.timing["total_seconds"] = now - began
        if self.execution.probes:
            result.probes = self.probes.arrays() | ablation
        counted = torch.arange(min(COUNTED_ROWS, len(self.train)))
        result.cost = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "embedding_parameters": sum(
                i.parameter.numel() for i in self.sharing.slices if i.is_embedding
            ),
            "flops_per_row": flops_per_row(self.model, self.train.take(counted)),
            "steps": done,
            "train_rows_per_second": rows / max(self.timing["train_seconds"], 1e-9),
            "backward_passes_per_step": self.backward_passes / (done * self.settings.accumulate),
        }
        if self.cover is not None:
            result.cost["covering"] = self.cover.summary()
        return result

    def _weights(self) -> dict[str, np.ndarray]:
        """Every parameter as it was at the best point of the tasks that it belongs to; empty when
        they are not kept.
        """
        first, *others = (best.state for best in self.bests)
        size = sum(value.numel() * value.element_size() for value in first.values())
        if not self._worth_keeping(self.execution.save_weights, size, WEIGHTS_LIMIT):
            return {}
        for best, state in zip(self.bests[1:], others, strict=True):
            for item in self.sharing.slices:
                own = item.expand(item.reached_by[best.tasks].any(0))
                first[item.name] = torch.where(own, state[item.name], first[item.name])
        return {name: value.cpu().numpy() for name, value in first.items()}

    @staticmethod
    def _worth_keeping(asked: bool | None, size: int, limit: int) -> bool:
        return size <= limit if asked is None else asked

    def _random_state_kept(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _check_fixed_rows(sharing: SharedParameters, settings: TrainingSettings) -> None:
    """Raise a :class:`UsageError` where gradients that a balancer compares would be of other rows
    in each batch.
    """
    large = [item.name for item in sharing.scope(settings.scope) if item.sparse]
    if large:
        raise UsageError(
            f"The balancer compares gradients of several batches, but those of {large[0]} hold the rows of one.",
            "--set scope=dense, or another balancer, or --set sparse_rows=1000000000",
        )
