"""The one training loop. It knows no model and no balancer by name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlkit.balancers.base import Balancer, Direction
from mtlkit.config import ExecutionSettings, TrainingSettings
from mtlkit.data.schema import SPLITS, Dataset
from mtlkit.models.base import Architecture, Batch
from mtlkit.training.batches import DeviceSplit, probe_rows, row_stream
from mtlkit.training.optimizers import build_optimizer, learning_rate_factor, set_learning_rate
from mtlkit.training.probes import ProbeLog
from mtlkit.training.reach import Reach, owner_active, owner_losses
from mtlkit.training.result import DivergedError, FitResult
from mtlkit.training.scoring import Scores, autocast, metrics, score
from mtlkit.training.seeding import generator, seed_for
from mtlkit.training.selection import Best, check_task_names, selection_value
from mtlkit.training.step import LoopStep

PROBE_ROWS = 512
PROBE_POSITIVES = 64


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

    Raises:
        UsageError: A setting names a task that does not exist.
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
    ) -> None:
        self.device, self.settings, self.execution, self.seed = device, settings, execution, seed
        self.schema = dataset.schema
        self.tasks = dataset.schema.task_names
        check_task_names(settings, self.tasks)
        self.splits = {name: DeviceSplit.load(dataset.splits[name], device) for name in SPLITS}
        self.model = model.to(device)
        self.balancer = balancer.to(device) if balancer is not None else None
        rows, weights = probe_rows(
            dataset.splits["train"], dataset.schema, PROBE_ROWS, PROBE_POSITIVES, seed_for(0, "probe")
        )
        self.probe_batch = self.splits["train"].take(
            torch.from_numpy(rows).to(device), torch.from_numpy(weights).to(device)
        )
        self.reach = Reach(self.model, self.probe_batch)
        if settings.scope == "representation" and balancer is not None:
            self.model.embedding.foldable = False  # so that x exists to be differentiated by
        self.optimizer = build_optimizer(self.model, settings)
        self.task_weights = torch.tensor([settings.task_weights.get(t, 1.0) for t in self.tasks], device=device)
        n_rows = len(self.splits["train"])
        self.total = max(1, round(settings.epochs * n_rows / (settings.batch_size * settings.accumulate)))
        self.steps_per_epoch = n_rows / (settings.batch_size * settings.accumulate)
        self.stream = row_stream(n_rows, settings.batch_size, generator(seed, "shuffle"), device)
        self.fresh_random = generator(seed, "fresh")
        self.fresh = row_stream(n_rows, settings.batch_size, self.fresh_random, device)
        self.bests = [Best(group) for group in self.reach.components()]
        self.probes = ProbeLog(self.tasks, model.gate_experts)
        self.curve: list[dict[str, Any]] = []
        self.timing = {"train_seconds": 0.0, "evaluation_seconds": 0.0, "probe_seconds": 0.0}
        self.backward_passes = 0
        self.warnings = [f"no task reaches {name}" for name in self.reach.unreached]

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
        window = _Window(len(self.tasks), self.device)
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
                window = _Window(len(self.tasks), self.device)
                mark = time.perf_counter()
        return self._finish(began, done)

    def _points(self) -> set[int]:
        """The steps after which to evaluate: at least ``evaluations``, one an epoch if there are more epochs."""
        count = min(self.total, max(self.settings.evaluations, math.ceil(self.settings.epochs)))
        return {round(self.total * (i + 1) / count) for i in range(count)}

    def _train_step(self, index: int, window: _Window) -> None:
        set_learning_rate(self.optimizer, learning_rate_factor(self.settings, index, self.total))
        self.optimizer.zero_grad(set_to_none=True)
        callbacks: list[tuple[Batch, list[Callable[[Tensor], None]]]] = []
        for _ in range(self.settings.accumulate):
            batch = self.splits["train"].take(next(self.stream))
            step = self._step(batch, index)
            decision: Tensor | Direction
            if self.balancer is None:
                decision = step.active.to(step.losses.dtype)
            else:
                decision = self.balancer(step)
            weights = step.apply(decision, self.settings.heads, 1 / self.settings.accumulate)
            window.add(step, weights)
            self.backward_passes += step.all_backward_passes()
            if step.callbacks:
                callbacks.append((batch, step.callbacks))
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        for batch, functions in callbacks:
            losses = self._losses_again(batch)
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
        seed = seed_for(self.seed, "balancer")
        return LoopStep(
            self.reach,
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
        """The step of an independent batch, which leaves the dropout of the run's own batches as it is."""
        batch = self.splits["train"].take(next(self.fresh))
        with self._random_state_kept():
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.fresh_random)))
            return self._step(batch, index)

    def _losses_again(self, batch: Batch) -> Tensor:
        """(T,) losses on a batch that was just trained on, without moving random state or norm statistics."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers() if value.is_floating_point()}
        with torch.no_grad(), self._random_state_kept():
            losses = self._step(batch, 0).losses
        for name, value in self.model.named_buffers():
            if name in buffers:
                value.copy_(buffers[name])
        return losses

    def _evaluate(self, step: int, window: _Window) -> None:
        train_loss = window.losses()
        broken = [name for name, loss in zip(self.tasks, train_loss, strict=True) if loss is None]
        if broken:
            raise DivergedError(step, broken)
        began = time.perf_counter()
        scores = score(self.model, self.splits["validation"], self.execution.eval_batch_size, self.settings.precision)
        broken = [
            name for name, loss in zip(self.tasks, scores.losses.tolist(), strict=True) if not math.isfinite(loss)
        ]
        if broken:  # the last steps broke the model; ranks of NaN are no ranks
            raise DivergedError(step, broken)
        found = metrics(self.model, scores, self.splits["validation"])
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
            tasks = {self.tasks[t]: self.schema.tasks[t] for t in best.tasks}
            value = selection_value(self.settings, tasks, found, float(scores.losses[best.tasks].sum()))
            if value > best.value:
                best.value, best.point = value, point
                best.state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self._synchronize()
        self.timing["evaluation_seconds"] += time.perf_counter() - began
        if self.execution.probes:
            began = time.perf_counter()
            self._probe(step, scores, window)
            self._synchronize()
            self.timing["probe_seconds"] += time.perf_counter() - began

    def _probe(self, step: int, scores: Scores, window: _Window) -> None:
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
        for best in self.bests:
            self.model.load_state_dict(best.state)
            test = self.splits["test"]
            scores = score(self.model, test, self.execution.eval_batch_size, self.settings.precision)
            found = metrics(self.model, scores, test)
            point = self.curve[best.point]
            for t in best.tasks:
                name = self.tasks[t]
                result.metrics["validation"][name] = point["validation"][name]
                result.metrics["test"][name] = found[name]
                result.best[name] = {key: point[key] for key in ("point", "step", "epoch")} | {"value": best.value}
                if self.execution.save_scores:
                    result.scores |= _score_arrays(name, t, scores, test)
        self._synchronize()
        now = time.perf_counter()
        self.timing["evaluation_seconds"] += now - started
        self.timing["total_seconds"] = now - began
        if self.execution.probes:
            result.probes = self.probes.arrays()
        result.cost = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "embedding_parameters": sum(i.parameter.numel() for i in self.reach.slices if i.is_embedding),
            "steps": done,
            "train_rows_per_second": rows / max(self.timing["train_seconds"], 1e-9),
            "backward_passes_per_step": self.backward_passes / (done * self.settings.accumulate),
        }
        return result

    def _random_state_kept(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Window:
    """Means between two evaluation points, kept on the device."""

    def __init__(self, tasks: int, device: torch.device) -> None:
        self.loss_sum = torch.zeros(tasks, device=device)
        self.weight_sum = torch.zeros(tasks, device=device)
        self.count = torch.zeros(tasks, device=device)

    def add(self, step: LoopStep, weights: Tensor) -> None:
        self.loss_sum += torch.where(step.active, step.losses, 0.0)
        self.weight_sum += torch.where(step.active, weights, 0.0)
        self.count += step.active

    def losses(self) -> list[float | None]:
        """Mean loss of each task; 0 for one that was never active, None when not finite."""
        means = (self.loss_sum / self.count.clamp_min(1)).tolist()
        return [mean if math.isfinite(mean) else None for mean in means]

    def weights(self) -> Tensor:
        """(T,) mean weight while active; NaN for a task that never was."""
        return torch.where(self.count > 0, self.weight_sum / self.count, torch.nan)


def _score_arrays(name: str, column: int, scores: Scores, split: DeviceSplit) -> dict[str, np.ndarray]:
    out = {
        f"score/{name}": scores.logits[name].float().cpu().numpy(),
        f"label/{name}": split.all.labels[:, column].cpu().numpy(),
    }
    if split.all.observed is not None:
        out[f"observed/{name}"] = split.all.observed[:, column].cpu().numpy()
    return out
