"""What each expert is good for: the change of every task's metric when its output is taken as 0."""

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
    arrays: dict[str, np.ndarray] = {}
    if not model.expert_names:
        return arrays

    def primary_metrics() -> np.ndarray:
        """The primary metric (T,) of each task, with the experts that are not left out."""
        scores = score(model, split, batch_size, precision)
        by_score = metrics(model, scores, split)
        values = [by_score[task.name].get(PRIMARY_METRIC[task.kind]) for task in model.tasks]
        return np.array([np.nan if value is None else value for value in values])

    with_all_experts = primary_metrics()
    try:
        for level, names in enumerate(model.expert_names):
            changes = []
            for expert in range(len(names)):
                model.left_out = (level, expert)
                changes.append(primary_metrics() - with_all_experts)
            arrays[f"ablation/level-{level + 1}"] = np.stack(changes).astype(np.float32)
            arrays[f"ablation/level-{level + 1}/experts"] = np.array(names)
    finally:
        model.left_out = None
    return arrays
