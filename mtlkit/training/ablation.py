"""What each expert is good for: the change of every task's metric when its output is 0."""

from __future__ import annotations

import numpy as np

from mtlkit.metrics.definitions import PRIMARY_METRIC
from mtlkit.models._architecture import Architecture
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.scoring import metrics, score_split


def ablate(
    model: Architecture, split: DeviceSplit, batch_size: int, precision: str
) -> dict[str, np.ndarray]:
    """Score a split once as it is and once without each expert.

    Args:
        model: With a level of experts (``MoELayer``) or several; one without has no ablation.

    Returns:
        ``ablation/level-<n>``: (E, T) float32, the change of each task's primary metric, NaN where
            there is none; and
        ``ablation/level-<n>/experts``: (E,) their names.
    """
    tasks = model.tasks
    layers = model.moe_layers
    if not layers:
        return {}

    def primary_metrics() -> np.ndarray:
        """(T,) of the model as it is now."""
        by_task = metrics(model.schema, score_split(model, split, batch_size, precision), split)
        primary = [by_task[task.name].get(PRIMARY_METRIC[task.kind]) for task in tasks]
        return np.array([np.nan if value is None else value for value in primary])

    ablation: dict[str, np.ndarray] = {}
    whole = primary_metrics()
    for layer in layers:
        changes = []
        for expert in range(len(layer.expert_names)):
            with layer.ablate(expert):
                changes.append(primary_metrics() - whole)
        ablation[f"ablation/level-{layer.level}"] = np.stack(changes).astype(np.float32)
        ablation[f"ablation/level-{layer.level}/experts"] = np.array(layer.expert_names)
    return ablation
