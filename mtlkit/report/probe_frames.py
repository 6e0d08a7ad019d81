"""What was recorded inside the runs of one group, stacked over seeds: cosines, norms, gates,
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtlkit.record_check import LARGEST, UnreadableError
from mtlkit.report.blocks import Block
from mtlkit.report.frame import Frames
from mtlkit.store import ResultStore, Unreadable, printable

REQUIRED = {"epochs", "tasks", "parts", "gradient_cosine", "weights"}
"""Arrays without which a file of probes is of no use."""
LIMIT = 256 * 2**20
"""Bytes of the largest probes of a run that are read, unpacked; real ones have some thousand."""


@dataclass(frozen=True)
class GateUsage:
    """Use of experts by one gate."""

    mean: np.ndarray  # (S, P, E) mean weight of each expert
    entropy: np.ndarray  # (S, P) mean entropy in nats
    experts: tuple[str, ...]  # names of the E experts that the gate sees


@dataclass(frozen=True)
class Ablation:
    """What the experts of one level are good for."""

    # (S, E, T) change of each task's primary metric on validation when an expert's output is taken
    # to be 0; NaN for a run that recorded none.
    change: np.ndarray
    experts: tuple[str, ...]  # names of the E experts


@dataclass(frozen=True)
class Probes:
    """Probes of S runs, padded with NaN to the longest run of P points."""

    epochs: np.ndarray  # (P,) epochs at the evaluation points
    tasks: tuple[str, ...]  # T names
    # K names of modules of the model; the first stands for everything shared.
    modules: tuple[str, ...]
    cosine: np.ndarray  # (S, P, K, T, T) cosines between the tasks' gradients
    weights: np.ndarray  # (S, P, T) task weights
    gates: dict[str, GateUsage]  # gate, such as ``level-1/income``, to its use of experts
    lengths: np.ndarray  # (S,) number of points of each run
    # Level, such as ``level-1``, to what its experts are good for.
    ablation: dict[str, Ablation] = field(default_factory=dict)

    def last_of_each_run(self, values: np.ndarray) -> np.ndarray:
        """(S, ...) what values (S, P, ...) are at each run's last point."""
        runs = np.arange(len(self.lengths))
        return values[runs, self.lengths - 1]

    def last(self, values: np.ndarray) -> np.ndarray:
        """The mean over seeds of each run's last point, of values (S, P, ...)."""
        return mean_over(self.last_of_each_run(values), axis=0)

    @property
    def has_cosines(self) -> bool:
        """Whether there are two tasks or more, and some cosine between them is defined."""
        return len(self.tasks) > 1 and bool(np.isfinite(self.cosine).any())

    @property
    def pair_cosines(self) -> np.ndarray:
        """(S, P, K, pairs) cosines of each two tasks, in the order of ``np.triu_indices``."""
        one, other = np.triu_indices(len(self.tasks), 1)
        return self.cosine[..., one, other]

    @property
    def conflicts(self) -> np.ndarray:
        """(K, pairs) share of points at which the cosine of two tasks is negative, of those that
        have one; 0 where none has.
        """
        return np.nan_to_num(negative_share(self.pair_cosines, axis=(0, 1)))


def negative_share(cosines: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The share of negative ones among what is not NaN; NaN where nothing is known."""
    known = np.isfinite(cosines).sum(axis)
    return np.where(known > 0, (cosines < 0).sum(axis) / np.maximum(known, 1), np.nan)


def mean_over(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN, without a warning, where nothing is."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class BlockProbes:
    """What was recorded inside the runs of one block."""

    by_group: dict[str, Probes]  # group id to probes, for every group that has some
    unreadable: tuple[Unreadable, ...]  # files of probes that were left out, with the reasons


def load_probes(frames: Frames, block: Block) -> BlockProbes:
    """Read the probes of all finished runs of a block; a damaged file costs that run's alone."""
    finished = (frames.runs["block"] == block.id) & (frames.runs["status"] == "ok")
    runs = frames.runs[finished]
    by_group = {}
    unreadable = []
    for group in block.groups:
        folders = runs[runs["group"] == group.id].sort_values("seed")["folder"]
        probed: list[dict[str, np.ndarray]] = []
        for folder in folders:
            try:
                arrays = _read(folder)
                if arrays and probed:
                    _check_alike(arrays, probed[0])
            except UnreadableError as error:
                unreadable.append(Unreadable(folder / "probes.npz", str(error)))
                continue
            if arrays:
                probed.append(arrays)
        if probed:
            by_group[group.id] = _stack(probed)
    return BlockProbes(by_group, tuple(unreadable))


def _read(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of one run by name; empty where there are none, or not those that are needed. An
    :class:`UnreadableError` if the file is damaged, or its arrays do not fit together.
    """
    arrays = ResultStore.arrays(folder, "probes", LIMIT)
    if not arrays.keys() >= REQUIRED:
        return {}
    points = arrays["epochs"].size
    tasks = arrays["tasks"].size
    modules = arrays["parts"].size
    if points == 0:
        return {}

    _check_names(arrays, "tasks", tasks)
    _check_names(arrays, "parts", modules)
    _check_numbers(arrays, "epochs", (points,))
    _check_numbers(arrays, "weights", (points, tasks))
    _check_numbers(arrays, "gradient_cosine", (points, modules, tasks, tasks))

    # every gate has three arrays, every level of an ablation two
    for name in arrays:
        if name.startswith("gate/") and name.endswith("/mean"):
            gate = name.removesuffix("/mean")
            experts = arrays[name].shape[-1] if arrays[name].ndim else 0
            _check_names(arrays, f"{gate}/experts", experts)
            _check_numbers(arrays, name, (points, experts))
            _check_numbers(arrays, f"{gate}/entropy", (points,))
        elif _is_ablation(name):
            experts = arrays[name].shape[0] if arrays[name].ndim else 0
            _check_names(arrays, f"{name}/experts", experts)
            _check_numbers(arrays, name, (experts, tasks))
    return arrays


def _check_numbers(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> None:
    """Raise an :class:`UnreadableError` unless an array has this shape and holds sane numbers."""
    _check_shape(arrays, name, shape)
    values = arrays[name]
    if values.dtype.kind not in "fiu":
        raise UnreadableError(f"{name} holds no numbers")
    largest = np.abs(values.astype(np.float64)).max(initial=0.0, where=~np.isnan(values))
    if largest > LARGEST:
        raise UnreadableError(f"{name} holds numbers beyond {LARGEST:g}")


def _check_names(arrays: dict[str, np.ndarray], name: str, count: int) -> None:
    """Raise an :class:`UnreadableError` unless an array holds so many names."""
    _check_shape(arrays, name, (count,))
    if arrays[name].dtype.kind != "U":
        raise UnreadableError(f"{name} holds no names")


def _check_shape(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> None:
    if name not in arrays:
        raise UnreadableError(f"{name} is missing")
    if arrays[name].shape != shape:
        raise UnreadableError(f"{name} has shape {arrays[name].shape}, not {shape}")


def _check_alike(arrays: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> None:
    """Raise an :class:`UnreadableError` unless all names are those of the group's first run."""
    for name in arrays.keys() & first.keys():
        is_names = name in {"tasks", "parts"} or name.endswith("/experts")
        if is_names and not np.array_equal(arrays[name], first[name]):
            raise UnreadableError(f"{name} are other ones than in the first run of its group")


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
            gates[printable(gate.removeprefix("gate/"))] = GateUsage(
                mean=_pad([run[array] for run in runs]),
                entropy=_pad([run[f"{gate}/entropy"] for run in runs]),
                experts=_names(runs[0][f"{gate}/experts"]),
            )
    return gates


def _ablation(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, Ablation]:
    """The ablations that some run recorded, from arrays such as ``ablation/level-1``."""
    arrays = {name for run in runs for name in run if _is_ablation(name)}
    levels = {}
    for array in sorted(arrays):
        ablated = next(run for run in runs if array in run)
        missing = np.full(ablated[array].shape, np.nan)
        change = np.stack([run.get(array, missing) for run in runs])  # (S, E, T)
        level = array.removeprefix("ablation/")
        levels[level] = Ablation(change, _names(ablated[f"{array}/experts"]))
    return levels


def _is_ablation(array: str) -> bool:
    """Whether an array holds changes, as ``ablation/level-1`` does; ``ablation/level-1/experts``
    holds names.
    """
    return array.startswith("ablation/") and array.count("/") == 1


def _names(array: np.ndarray) -> tuple[str, ...]:
    return tuple(printable(str(name)) for name in array)


def _pad(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """(S, P, ...) of arrays (P, ...) of different lengths, NaN after the end of each."""
    longest = max(len(array) for array in arrays)
    padded = np.full((len(arrays), longest, *arrays[0].shape[1:]), np.nan)
    for run, array in enumerate(arrays):
        padded[run, : len(array)] = array
    return padded
