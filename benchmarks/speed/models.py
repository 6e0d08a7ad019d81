"""The model of all comparisons, and trainings of it that stop after windows of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mtlkit.balancers._balancer import Balancer
from mtlkit.data.splits import Dataset
from mtlkit.data.types import Schema
from mtlkit.models.mmoe import MMoE
from mtlkit.registry import BALANCERS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training import timing
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.trainer import Trainer

from .turns import Pause

EXPERTS, HIDDEN, TOWER = 8, 16, 8
CPU = torch.device("cpu")
EXECUTION = ExecutionSettings(device="cpu", probes=False, save_scores=False, save_weights=False)
TWINS: dict[str, dict[str, Any]] = {
    "torch-rechub": {
        "norm": "batch",
        "gate_norm": "batch",
        "gate_bias": True,
        "embedding_std": 1e-4,
    },
    "fuxictr": {"numbers": "vector", "init": "xavier", "embedding_std": 1e-4},
}
"""Options with which the model has a peer's layers, and draws its initial parameters from the
peer's distributions.
"""


@dataclass(frozen=True)
class Windows:
    """The timed stretches of a training.

    Args:
        count: How many there are.
        steps: Steps of each.
        batch: Rows of a step.
    """

    count: int
    steps: int
    batch: int

    @property
    def with_warm_up(self) -> Windows:
        """One window more, before those that are timed."""
        return replace(self, count=self.count + 1)


def count_cpu_seconds() -> None:
    """Let the trainer time itself by the CPU time of this process, which neighbours on the machine
    do not lengthen.
    """
    timing.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]


def mmoe(schema: Schema, width: int, seed: int = 0, **more: Any) -> MMoE:
    """Eight experts of one layer of 16, towers of one layer of 8; further options may be given."""
    options = MMoE.Options(
        experts=EXPERTS, hidden=(HIDDEN,), tower=(TOWER,), embedding=width, **more
    )
    torch.manual_seed(seed)
    return MMoE.build(schema, options)


def balancer(name: str, schema: Schema) -> Balancer:
    """A balancer with its default options."""
    balancer_class = BALANCERS.load(name)
    return balancer_class(schema.tasks, balancer_class.Options())


def settings(dataset: Dataset, windows: Windows, **more: Any) -> TrainingSettings:
    """A training of these windows, scored after each, at a constant learning rate of 1e-3."""
    rows = windows.count * windows.steps * windows.batch
    return TrainingSettings(
        epochs=rows / len(dataset.splits["train"]),
        batch_size=windows.batch,
        lr=1e-3,
        schedule="constant",
        evaluations=windows.count,
        **more,
    )


def training(
    dataset: Dataset,
    width: int,
    method: str,
    windows: Windows,
    *,
    foldable: bool = True,
    order: Tensor | None = None,
    **more: Any,
) -> Callable[[Pause], None]:
    """A training through the trainer of ``mtlkit bench`` that pauses after each window; the first
    is a warm-up.

    Args:
        dataset: Its validation and test splits should be small, as they are scored after each
            window.
        width: Width of the embeddings.
        method: Name of the balancer.
        windows: Those to be timed, after the warm-up.
        foldable: Whether the first layer may be folded into small vocabularies.
        order: (rows of all steps,) what to train on, batch by batch; None for the trainer's own
            shuffle.
        more: Settings.
    """
    training_settings = settings(dataset, windows.with_warm_up, **more)

    def run(pause: Pause) -> None:
        model = mmoe(dataset.schema, width)
        model.use(replace(model.fast_paths, fold=foldable))
        weighting = balancer(method, dataset.schema)
        trainer = Trainer(
            model, weighting, dataset, TrainingSetup(training_settings, EXECUTION, 0, CPU)
        )
        if order is not None:
            trainer.stream = (trainer.train.take(rows) for rows in order.split(windows.batch))
        trainer.fit(lambda share: pause(trainer.timer.seconds["train_seconds"]))

    return run
