"""The trainer's step, phase by phase, over the same public pieces."""

from __future__ import annotations

import time
from typing import Any

PHASES = ("gather", "look up", "forward", "backward", "optimiser", "rest")
WARM_UP = 3


def timed_steps(
    dataset: Any, width: int, batch: int, steps: int, warm: int = WARM_UP
) -> dict[str, list[float]]:
    """Milliseconds of each phase of each step, after some warm-up steps.

    ``gather`` takes the batch's columns. ``look up`` is the forward pass below the model's first
    layer where the embedded rows are made at all; where the first layer is folded into a small
    vocabulary it is part of ``forward``. ``rest`` is a whole step of the trainer less the phases:
    learning rate, sums of losses and weights, bookkeeping; it is not measured here. ``sum`` is all
    of the phases.
    """
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from . import models

    windows = models.Windows(1, steps + warm, batch)
    settings = models.settings(dataset, windows)
    uniform = models.balancer("uniform", dataset.schema)
    model = models.mmoe(dataset.schema, width)
    trainer = Trainer(
        model, uniform, dataset, TrainingSetup(settings, models.EXECUTION, 0, models.CPU)
    )

    # The look-up happens within the forward pass of the model, so a hook times it.
    look_ups: list[float] = []

    def time_look_up(module: Any, inputs: Any, embedded: Any) -> None:
        began = time.process_time()
        if not model.embedding.foldable_groups():
            embedded.tensor()
        look_ups.append(time.process_time() - began)

    hook = model.embedding.register_forward_hook(time_look_up)
    by_phase: dict[str, list[float]] = {phase: [] for phase in (*PHASES[:-1], "sum")}
    for step in range(steps + warm):
        look_ups.clear()
        seconds = _timed_step(trainer)
        seconds["look up"] = look_ups[0]
        seconds["forward"] -= look_ups[0]
        if step >= warm:
            for phase, milliseconds in by_phase.items():
                milliseconds.append(1000 * seconds[phase])
    hook.remove()
    return by_phase


def _timed_step(trainer: Any) -> dict[str, float]:
    """Seconds of one step by phase, the look-up counted within the forward pass."""
    import torch

    # Two stretches belong to the optimiser: clearing the gradients, and its step.
    clock = time.process_time
    start = clock()
    rows = next(trainer.stream)
    gathered = clock()
    trainer.optimizer.zero_grad()
    cleared = clock()
    objectives = trainer.model.objectives(trainer.model(rows), rows)
    total = torch.stack([objective.loss for objective in objectives]).sum()
    forward = clock()
    total.backward()
    backward = clock()
    trainer.optimizer.step()
    done = clock()
    return {
        "gather": gathered - start,
        "forward": forward - cleared,
        "backward": backward - forward,
        "optimiser": done - backward + cleared - gathered,
        "sum": done - start,
    }
