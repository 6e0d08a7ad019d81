"""What was recorded inside the runs of one group, stacked over seeds: cosines, norms, gates,
weights.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtlkit.report.blocks import Block
from mtlkit.report.frame import Frames
from mtlkit.store import ResultStore

REQUIRED = {"epochs", "tasks", "parts", "gradient_cosine", "weights"}
"""Arrays without which a file of probes is of no use."""


@dataclass(frozen=True)
class GateUsage:
    """Use of experts by one gate.

    Args:
        mean: (S, P, E) mean weight of each expert.
        entropy: (S, P) mean entropy in nats.
        experts: Names of the E experts that the gate sees.
    """

    mean: np.ndarray
    entropy: np.ndarray
    experts: tuple[str, ...]


@dataclass(frozen=True)
class Ablation:
    """What the experts of one level are good for.

    Args:
        change: (S, E, T) change of each task's primary metric on validation when an expert's output
            is taken to be 0.
        experts: Names of the E experts.
    """

    change: np.ndarray
    experts: tuple[str, ...]


@dataclass(frozen=True)
class Probes:
    """Probes of S runs, padded with NaN to the longest run of P points.

    Args:
        epochs: (P,) epochs at the evaluation points.
        tasks: T names.
        modules: K names of modules of the model; the first stands for everything shared.
        cosine: (S, P, K, T, T) cosines between the tasks' gradients.
        weights: (S, P, T) task weights.
        gates: Gate, such as ``level-1/income``, to its use of experts.
        lengths: (S,) number of points of each run.
        ablation: Level, such as ``level-1``, to what its experts are good for.
    """

    epochs: np.ndarray
    tasks: tuple[str, ...]
    modules: tuple[str, ...]
    cosine: np.ndarray
    weights: np.ndarray
    gates: dict[str, GateUsage]
    lengths: np.ndarray
    ablation: dict[str, Ablation] = field(default_factory=dict)

    def last(self, values: np.ndarray) -> np.ndarray:
        """The mean over seeds of each run's last point, of values (S, P, ...)."""
        runs = np.arange(len(self.lengths))
        return mean_over(values[runs, self.lengths - 1], axis=0)

    @property
    def has_cosines(self) -> bool:
        """Whether there are two tasks or more, and some cosine between them is defined."""
        return len(self.tasks) > 1 and bool(np.isfinite(self.cosine).any())


def mean_over(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN, without a warning, where nothing is."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def load_probes(frames: Frames, block: Block) -> dict[str, Probes]:
    """Group id to probes, for every group of a block that has some."""
    finished = (frames.runs["block"] == block.id) & (frames.runs["status"] == "ok")
    runs = frames.runs[finished]
    by_group = {}
    for group in block.groups:
        folders = runs[runs["group"] == group.id].sort_values("seed")["folder"]
        probed = [arrays for arrays in map(_read, folders) if arrays]
        if probed:
            by_group[group.id] = _stack(probed)
    return by_group


def _read(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of one run by name; empty where there are none, or not those that are needed."""
    try:
        arrays = ResultStore.arrays(folder, "probes")
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    complete = arrays.keys() >= REQUIRED and len(arrays["epochs"]) > 0
    return arrays if complete else {}


def _stack(runs: Sequence[dict[str, np.ndarray]]) -> Probes:
    first = runs[0]
    return Probes(
        epochs=max((run["epochs"] for run in runs), key=len),
        tasks=_names(first["tasks"]),
        modules=_names(first["parts"]),
        cosine=_pad([run["gradient_cosine"] for run in runs]),
        weights=_pad([run["weights"] for run in runs]),
        gates=_gates(runs),
        lengths=np.array([len(run["epochs"]) for run in runs]),
        ablation=_ablation(runs),
    )


def _gates(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, GateUsage]:
    """The gates that all runs recorded, from arrays such as ``gate/level-1/income/mean``."""
    gates = {}
    for array in runs[0]:
        if not (array.startswith("gate/") and array.endswith("/mean")):
            continue
        if all(array in run for run in runs):
            gate = array.removesuffix("/mean")
            gates[gate.removeprefix("gate/")] = GateUsage(
                mean=_pad([run[array] for run in runs]),
                entropy=_pad([run[f"{gate}/entropy"] for run in runs]),
                experts=_names(runs[0][f"{gate}/experts"]),
            )
    return gates


def _ablation(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, Ablation]:
    """The ablations of the runs that recorded one, from arrays such as ``ablation/level-1``."""
    ablated = [run for run in runs if "ablation/level-1" in run]
    if not ablated:
        return {}

    # ``ablation/level-1`` holds changes; ``ablation/level-1/experts``, one name deeper, does not.
    first = ablated[0]
    arrays = [name for name in first if name.startswith("ablation/") and name.count("/") == 1]
    levels = {}
    for array in sorted(arrays):
        change = np.stack([run[array] for run in ablated])  # (S, E, T)
        level = array.removeprefix("ablation/")
        levels[level] = Ablation(change, _names(first[f"{array}/experts"]))
    return levels


def _names(array: np.ndarray) -> tuple[str, ...]:
    return tuple(map(str, array))


def _pad(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """(S, P, ...) of arrays (P, ...) of different lengths, NaN after the end of each."""
    longest = max(len(array) for array in arrays)
    padded = np.full((len(arrays), longest, *arrays[0].shape[1:]), np.nan)
    for run, array in enumerate(arrays):
        padded[run, : len(array)] = array
    return padded
