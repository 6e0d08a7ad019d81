"""What is recorded beside the scores, under any balancer: gradient cosines, gate usage, task
weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mtlkit.training.step import LoopStep

SHARED = "shared"


class ProbeLog:
    """Collects a row at each evaluation point and turns them into named arrays.

    Args:
        tasks: Task names.
        gate_experts: Gate name to the names of the experts it mixes.
    """

    def __init__(self, tasks: tuple[str, ...], gate_experts: dict[str, tuple[str, ...]]) -> None:
        self.tasks = tasks
        self.gate_experts = gate_experts
        self.parts: list[str] = []
        self.rows: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, value: np.ndarray | Tensor | float) -> None:
        """Append one value to a series."""
        array = (
            value.detach().float().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        )
        self.rows.setdefault(name, []).append(array.astype(np.float32))

    def add_gradients(self, step: LoopStep) -> None:
        """Record norms and pairwise cosines of the task gradients, over all shared parameters and
        by module.
        """
        sharing = step.sharing
        items = sharing.scope("all")
        if not items:
            return
        self.parts = [SHARED, *dict.fromkeys(item.part for item in items)]
        rows, places = step.jacobian("all").double(), step.jacobian_columns("all")
        by_part = {
            part: torch.zeros(len(rows), len(rows), dtype=torch.float64) for part in self.parts
        }
        for item in items:
            own = rows[:, places[item.name]]
            product = (own @ own.T).cpu()
            by_part[item.part] += product
            by_part[SHARED] += product
        grams = torch.stack([by_part[part] for part in self.parts])  # (K, T, T)
        norms = grams.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        scale = norms[:, :, None] * norms[:, None, :]
        self.add("gradient_cosine", torch.where(scale > 0, grams / scale, torch.nan).clamp(-1, 1))
        self.add("gradient_norm", norms)

    def add_gates(self, means: dict[str, Tensor], entropies: dict[str, Tensor]) -> None:
        """Record mean weights (E,) and mean entropy, in nats, of each gate."""
        for name, mean in means.items():
            self.add(f"gate/{name}/mean", mean)
            self.add(f"gate/{name}/entropy", entropies[name])

    def arrays(self) -> dict[str, np.ndarray]:
        """All series, stacked along a first axis of evaluation points."""
        out = {name: np.stack(values) for name, values in self.rows.items()}
        out["tasks"] = np.array(self.tasks)
        out["parts"] = np.array(self.parts, dtype=np.str_)
        for name, experts in self.gate_experts.items():
            if f"gate/{name}/mean" in out:
                out[f"gate/{name}/experts"] = np.array(experts)
        return out
