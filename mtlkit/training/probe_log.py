"""What is recorded besides the scores of any run: gradient cosines, gates, task weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlkit.training.step import LoopStep

SHARED = "shared"  # stands for all shared parameters together, next to the modules


class ProbeLog:
    """Collects a row at each evaluation point and turns them into named arrays.

    Args:
        gate_experts: Gate name to the names of the experts it mixes.

    Attributes:
        whole: Makes inner products (T, T) over the rows of a parameter that are here, by its name,
            those over all.
    """

    def __init__(self, tasks: tuple[str, ...], gate_experts: dict[str, tuple[str, ...]]) -> None:
        self.tasks = tasks
        self.gate_experts = gate_experts
        self.modules: list[str] = []
        self.series: dict[str, list[np.ndarray]] = {}
        self.whole: Callable[[str, Tensor], Tensor] = lambda name, gramian: gramian

    def add(self, name: str, value: np.ndarray | Tensor | float) -> None:
        """Append one value to a series."""
        if isinstance(value, Tensor):
            value = value.detach().float().cpu().numpy()
        self.series.setdefault(name, []).append(np.asarray(value).astype(np.float32))

    def add_gradients(self, step: LoopStep) -> None:
        """Record norms (K, T) and pairwise cosines (K, T, T) of the T task gradients, over all
        shared parameters and by module; K counts both.
        """
        shared_slices = step.sharing.scope("all")
        if not shared_slices:
            return

        # Add up the inner products of the gradients, parameter by parameter.
        self.modules = [SHARED, *dict.fromkeys(sliced.part for sliced in shared_slices)]
        jacobian = step.jacobian("all").double()  # (T, P)
        columns = step.jacobian_columns("all")
        task_count = len(jacobian)
        gramians = {
            module: torch.zeros(task_count, task_count, dtype=torch.float64)
            for module in self.modules
        }
        for sliced in shared_slices:
            parameter_jacobian = jacobian[:, columns[sliced.name]]
            gramian = self.whole(sliced.name, (parameter_jacobian @ parameter_jacobian.T).cpu())
            gramians[sliced.part] += gramian
            gramians[SHARED] += gramian

        # The cosine with a gradient of length 0 is not defined.
        stacked = torch.stack([gramians[module] for module in self.modules])  # (K, T, T)
        norms = stacked.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()  # (K, T)
        norm_products = norms[:, :, None] * norms[:, None, :]
        cosines = torch.where(norm_products > 0, stacked / norm_products, torch.nan)
        self.add("gradient_cosine", cosines.clamp(-1, 1))
        self.add("gradient_norm", norms)

    def add_gates(self, means: dict[str, Tensor], entropies: dict[str, Tensor]) -> None:
        """Record mean weights (E,) and mean entropy, in nats, of each gate."""
        for name, mean in means.items():
            self.add(f"gate/{name}/mean", mean)
            self.add(f"gate/{name}/entropy", entropies[name])

    def state_dict(self) -> dict[str, Any]:
        """All series so far, as lists of tensors."""
        series = {
            name: [torch.from_numpy(value) for value in values]
            for name, values in self.series.items()
        }
        return {"modules": list(self.modules), "series": series}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.modules = list(state["modules"])
        self.series = {
            name: [value.numpy() for value in values] for name, values in state["series"].items()
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """All series, stacked along a first axis of evaluation points, and the names of axes."""
        arrays = {name: np.stack(values) for name, values in self.series.items()}
        arrays["tasks"] = np.array(self.tasks)
        arrays["parts"] = np.array(self.modules, dtype=np.str_)
        for name, experts in self.gate_experts.items():
            if f"gate/{name}/mean" in arrays:
                arrays[f"gate/{name}/experts"] = np.array(experts)
        return arrays
