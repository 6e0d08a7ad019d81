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
        epochs: (P,).
        tasks: T names.
        parts: K names; the first stands for everything shared.
        cosine: (S, P, K, T, T).
        weights: (S, P, T).
        gates: GateUsage name, such as ``level-1/income``, to its use.
        lengths: (S,) number of points of each run.
        ablation: Level, such as ``level-1``, to what its experts are good for.
    """

    epochs: np.ndarray
    tasks: tuple[str, ...]
    parts: tuple[str, ...]
    cosine: np.ndarray
    weights: np.ndarray
    gates: dict[str, GateUsage]
    lengths: np.ndarray
    ablation: dict[str, Ablation] = field(default_factory=dict)

    def last(self, values: np.ndarray) -> np.ndarray:
        """The mean over seeds of each run's last point, of values (S, P, ...)."""
        return mean_over(values[np.arange(len(self.lengths)), self.lengths - 1], axis=0)

    @property
    def has_cosines(self) -> bool:
        return len(self.tasks) > 1 and bool(np.isfinite(self.cosine).any())


def mean_over(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN, without a warning, where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def load_probes(frames: Frames, block: Block) -> dict[str, Probes]:
    """Probes of every group of a block that has some."""
    found = {}
    runs = frames.runs[(frames.runs["block"] == block.id) & (frames.runs["status"] == "ok")]
    for group in block.groups:
        folders = runs[runs["group"] == group.id].sort_values("seed")["folder"]
        arrays = [named for named in map(_read, folders) if named]
        if arrays:
            found[group.id] = _stack(arrays)
    return found


def _read(folder: Path) -> dict[str, np.ndarray]:
    try:
        named = ResultStore.arrays(folder, "probes")
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    complete = {"epochs", "tasks", "parts", "gradient_cosine", "weights"} <= named.keys()
    return named if complete and len(named["epochs"]) else {}


def _stack(runs: Sequence[dict[str, np.ndarray]]) -> Probes:
    first = runs[0]
    names = [name[5:-5] for name in first if name.startswith("gate/") and name.endswith("/mean")]
    gates = {
        name: GateUsage(
            _pad([run[f"gate/{name}/mean"] for run in runs]),
            _pad([run[f"gate/{name}/entropy"] for run in runs]),
            tuple(map(str, first[f"gate/{name}/experts"])),
        )
        for name in names
        if all(f"gate/{name}/mean" in run for run in runs)
    }
    return Probes(
        epochs=max((run["epochs"] for run in runs), key=len),
        tasks=tuple(map(str, first["tasks"])),
        parts=tuple(map(str, first["parts"])),
        cosine=_pad([run["gradient_cosine"] for run in runs]),
        weights=_pad([run["weights"] for run in runs]),
        gates=gates,
        lengths=np.array([len(run["epochs"]) for run in runs]),
        ablation=_ablation(runs),
    )


def _ablation(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, Ablation]:
    """Of the runs that recorded it."""
    own = [run for run in runs if "ablation/level-1" in run]
    levels = (
        sorted(name for name in own[0] if name.startswith("ablation/") and name.count("/") == 1)
        if own
        else []
    )
    return {
        name.partition("/")[2]: Ablation(
            np.stack([run[name] for run in own]), tuple(map(str, own[0][f"{name}/experts"]))
        )
        for name in levels
    }


def _pad(arrays: Sequence[np.ndarray]) -> np.ndarray:
    longest = max(len(array) for array in arrays)
    padded = np.full((len(arrays), longest, *arrays[0].shape[1:]), np.nan)
    for index, array in enumerate(arrays):
        padded[index, : len(array)] = array
    return padded
