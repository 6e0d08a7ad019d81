"""All that decides how a model is trained, besides the model, its balancer and the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.warm_start import WarmStart


@dataclass(frozen=True)
class TrainingSetup:
    """How a model is trained."""

    settings: TrainingSettings  # what moves the numbers
    # How the run is carried out: batch size of scoring, what is recorded and kept.
    execution: ExecutionSettings
    seed: int  # source of the batch order, of dropout and of the balancer's randomness
    device: torch.device  # where to train
    warm_start: WarmStart | None = None  # weights to start from, or None
