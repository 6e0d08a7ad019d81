"""The trainer's step, phase by phase, over the same public pieces."""

from __future__ import annotations

import time
from typing import Any

PHASES = ("gather", "look up", "forward", "backward", "optimiser", "rest")


def timed_steps(
    dataset: Any, width: int, batch: int, steps: int, warm: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each phase of each step, after some warm-up steps.

    ``gather`` takes the batch's columns. ``look up`` is the forward pass beneath the model's first
    layer where the embedded rows are made at all; where the first layer is folded into a small
    vocabulary it is part of ``forward``. ``rest`` is a whole step of the trainer less the phases:
    learning rate, sums of losses and weights, bookkeeping.
    """
    import torch

    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from . import models

    settings = models.settings(dataset, batch, 1, steps + warm)
    uniform = models.balancer("uniform", dataset.schema)
    model = models.mmoe(dataset.schema, width)
    setup = TrainingSetup(settings, models.EXECUTION, 0, torch.device("cpu"))
    trainer = Trainer(model, uniform, dataset, setup)
    inputs: list[float] = []

    def mark(module: Any, given: Any, found: Any) -> None:
        began = time.process_time()
        if not model.embedding.foldable_groups():
            found.tensor()
        inputs.append(time.process_time() - began)

    handle = model.embedding.register_forward_hook(mark)
    columns: dict[str, list[float]] = {phase: [] for phase in (*PHASES[:-1], "sum")}
    clock = time.process_time
    for step in range(steps + warm):
        inputs.clear()
        start = clock()
        rows = next(trainer.stream)
        gathered = clock()
        trainer.optimizer.zero_grad()
        cleared = clock()
        losses = [objective.loss for objective in model.objectives(model(rows), rows)]
        total = torch.stack(losses).sum()
        forward = clock()
        total.backward()
        backward = clock()
        trainer.optimizer.step()
        done = clock()
        if step >= warm:
            columns["gather"].append(1000 * (gathered - start))
            columns["look up"].append(1000 * inputs[0])
            columns["forward"].append(1000 * (forward - cleared - inputs[0]))
            columns["backward"].append(1000 * (backward - forward))
            columns["optimiser"].append(1000 * (done - backward + cleared - gathered))
            columns["sum"].append(1000 * (done - start))
    handle.remove()
    return columns
