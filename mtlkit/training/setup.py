"""All that decides how a model is trained, besides the model, its balancer and the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.warm_start import WarmStart


@dataclass(frozen=True)
class TrainingSetup:
    """How a model is trained.

    Args:
        settings: What moves the numbers.
        execution: How the run is carried out: batch size of scoring, what is recorded and kept.
        seed: Source of the batch order, of dropout and of the balancer's randomness.
        device: Where to train.
        warm_start: Weights to start from, or None.
    """

    settings: TrainingSettings
    execution: ExecutionSettings
    seed: int
    device: torch.device
    warm_start: WarmStart | None = None
