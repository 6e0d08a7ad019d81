"""What each expert is good for: the loss in every task's metric when its output is taken to be 0."""

from __future__ import annotations

import numpy as np

from mtlkit.models._architecture import Architecture
from mtlkit.records import PRIMARY_METRIC
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.scoring import metrics, score


def ablate(
    model: Architecture, split: DeviceSplit, batch_size: int, precision: str
) -> dict[str, np.ndarray]:
    """Score a split once as it is and once without each expert.

    Args:
        model: With ``expert_names`` by level; one without has no ablation.
        split: What to score.
        batch_size: Rows per batch.
        precision: Of the forward pass.

    Returns:
        ``ablation/level-<n>``: (E, T) float32, the change of each task's primary metric, NaN where
            there is none; and
        ``ablation/level-<n>/experts``: (E,) their names.
    """
    tasks = model.tasks

    def values() -> np.ndarray:
        found = metrics(model, score(model, split, batch_size, precision), split)
        primary = (found[task.name].get(PRIMARY_METRIC[task.kind]) for task in tasks)
        return np.array([np.nan if value is None else value for value in primary])

    out: dict[str, np.ndarray] = {}
    whole = values() if model.expert_names else np.zeros(0)
    try:
        for level, names in enumerate(model.expert_names):
            changes = []
            for place in range(len(names)):
                model.left_out = (level, place)
                changes.append(values() - whole)
            out[f"ablation/level-{level + 1}"] = np.stack(changes).astype(np.float32)
            out[f"ablation/level-{level + 1}/experts"] = np.array(names)
    finally:
        model.left_out = None
    return out
