"""The model of all comparisons, and trainings of it that stop after windows of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mtlkit.balancers._base import Balancer
from mtlkit.data.splits import Dataset
from mtlkit.data.types import Schema
from mtlkit.models.mmoe import MMoE
from mtlkit.registry import BALANCERS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training import trainer
from mtlkit.training.trainer import Trainer

from .turns import Pause

EXPERTS, HIDDEN, TOWER = 8, 16, 8
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


def count_cpu_seconds() -> None:
    """Let the trainer time itself by the CPU time of this process, which neighbours on the machine
    do not lengthen.
    """
    trainer.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]


def mmoe(schema: Schema, width: int, seed: int = 0, **more: Any) -> MMoE:
    """Eight experts of one layer of 16, towers of one layer of 8; further options may be given."""
    options = MMoE.Options(
        experts=EXPERTS, hidden=(HIDDEN,), tower=(TOWER,), embedding=width, **more
    )
    torch.manual_seed(seed)
    return MMoE.build(schema, options)


def balancer(name: str, schema: Schema) -> Balancer:
    """A balancer with its default options."""
    kind = BALANCERS.load(name)
    return kind(schema.tasks, kind.Options())


def settings(
    dataset: Dataset, batch: int, windows: int, steps: int, **more: Any
) -> TrainingSettings:
    """A training of some windows of as many steps each, at a constant learning rate of 1e-3."""
    epochs = windows * steps * batch / len(dataset.splits["train"])
    return TrainingSettings(
        epochs=epochs, batch_size=batch, lr=1e-3, schedule="constant", evaluations=windows, **more
    )


def training(
    dataset: Dataset,
    width: int,
    method: str,
    batch: int,
    windows: int,
    steps: int,
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
        width: Of the embeddings.
        method: Name of the balancer.
        batch: Rows a batch.
        windows: To be timed.
        steps: A window.
        foldable: Whether the first layer may be folded into small vocabularies.
        order: (rows of all steps,) what to train on, batch by batch; None for the trainer's own
            shuffle.
        more: Settings.
    """
    own = settings(dataset, batch, windows + 1, steps, **more)

    def run(pause: Pause) -> None:
        model = mmoe(dataset.schema, width)
        model.use(replace(model.fast_paths, fold=foldable))
        device = torch.device("cpu")
        trainer = Trainer(
            model, balancer(method, dataset.schema), dataset, own, EXECUTION, 0, device
        )
        if order is not None:
            trainer.stream = iter(order.split(batch))
        trainer.fit(lambda share: pause(trainer.timing["train_seconds"]))

    return run
