"""How a model uses its experts: numbers that need no order of them, and one order for all runs.

Experts of one kind are interchangeable: which of them does what is an accident of the seed. So
nothing may be averaged over seeds by their number. Two ways are open. :func:`overlap`,
:func:`effective_number` and :func:`idle_share` give the same value for any order, and are averaged
as they are. A picture of all experts needs them in one order, which :meth:`ExpertLevel.aligned`
finds. It makes runs look more alike than they are, as matched noise also agrees a little.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from mtlkit.report.probe_frames import Probes

IDLE_SHARE = 0.1  # an expert is idle in a gate that gives it less than this part of an equal share
IDLE_LOSS = 1e-4  # an expert is idle for a task that loses less than this of its metric without it
ROUNDS = 2  # times that runs are matched: first with the first run, then with the mean of all


@dataclass(frozen=True)
class ExpertLevel:
    """One level of experts in the S runs of a group, at the end of training."""

    name: str  # such as ``level 1``
    gates: tuple[str, ...]  # names of the L gates
    experts: tuple[str, ...]  # names of the E experts
    weights: np.ndarray  # (S, L, E) mean gate weights, NaN where a gate does not see an expert
    # (S, T, E) what each task's metric loses without an expert, NaN where a run recorded no
    # ablation.
    losses: np.ndarray

    @property
    def has_ablation(self) -> bool:
        return bool(np.isfinite(self.losses).any())

    def aligned(self) -> ExpertLevel:
        """The same runs, with the experts of each in the order in which they are most alike.

        Experts of one kind, such as all shared ones, are exchanged so that the squared distance of
        their gate weights and losses to the mean of all runs is least (an assignment problem).
        """
        largest = np.nanmax(np.abs(self.losses), initial=0.0) or 1.0
        profiles = np.concatenate([self.weights, self.losses / largest], axis=1)  # (S, L + T, E)
        order = _matching(np.nan_to_num(profiles), _kinds(self.experts))  # (S, E)
        return replace(
            self,
            weights=np.take_along_axis(self.weights, order[:, None, :], axis=2),
            losses=np.take_along_axis(self.losses, order[:, None, :], axis=2),
        )


def levels_of(probes: Probes) -> list[ExpertLevel]:
    """The levels of a group of runs, from the input to the towers."""
    by_level: dict[str, list[str]] = {}
    for name in probes.gates:
        by_level.setdefault(split_gate(name)[0], []).append(name)
    names = sorted(by_level.keys() | {name.replace("-", " ") for name in probes.ablation})
    return [_level(probes, name, by_level.get(name, [])) for name in names]


def _level(probes: Probes, level: str, gates: list[str]) -> ExpertLevel:
    ablation = probes.ablation.get(level.replace(" ", "-"))
    seen = {expert for name in gates for expert in probes.gates[name].experts}
    seen |= set(ablation.experts) if ablation else set()
    experts = tuple(sorted(seen, key=_expert_order))

    runs, tasks = len(probes.lengths), len(probes.tasks)
    weights = np.full((runs, len(gates), len(experts)), np.nan)
    for line, name in enumerate(gates):
        gate = probes.gates[name]
        columns = [experts.index(expert) for expert in gate.experts]
        weights[:, line, columns] = probes.last_of_each_run(gate.mean)
    losses = np.full((runs, tasks, len(experts)), np.nan)
    if ablation:
        columns = [experts.index(expert) for expert in ablation.experts]
        losses[:, :, columns] = -ablation.change.transpose(0, 2, 1)
    return ExpertLevel(
        level, tuple(split_gate(name)[1] for name in gates), experts, weights, losses
    )


def split_gate(name: str) -> tuple[str, str]:
    """``level-1/income`` is the gate ``income`` of ``level 1``."""
    level, slash, gate = name.partition("/")
    return (level.replace("-", " "), gate) if slash else ("", name)


# --- numbers that do not depend on the order of experts -------------------------------------------


def shares(values: np.ndarray) -> np.ndarray:
    """(S, L, E) of values that are not negative as shares of their line; NaN for lines of zeros."""
    values = np.nan_to_num(np.maximum(values, 0))
    total = values.sum(axis=-1, keepdims=True)
    return np.where(total > 0, values / np.where(total > 0, total, 1), np.nan)


def overlap(used: np.ndarray) -> np.ndarray:
    """(S,) what two lines of (S, L, E) shares have in common, over all pairs: the sum of the
    smaller shares, which is 1 minus their total variation; NaN for a single line.
    """
    one, other = np.triu_indices(used.shape[1], 1)
    if not len(one):
        return np.full(len(used), np.nan)
    return np.minimum(used[:, one], used[:, other]).sum(axis=-1).mean(axis=-1)


def effective_number(used: np.ndarray) -> np.ndarray:
    """(S,) the exponential of the entropy of (S, L, E) shares, averaged over lines: k for a line
    that uses k experts alike and no other.
    """
    logarithms = np.log(np.where(used > 0, used, 1))
    return np.exp(-(used * logarithms).sum(axis=-1)).mean(axis=-1)


def idle_share(is_idle: np.ndarray) -> np.ndarray:
    """(S,) share of the E experts that are idle in all of their lines, of (S, L, E) bool."""
    return is_idle.all(axis=1).mean(axis=-1)


def idle_in_gates(weights: np.ndarray) -> np.ndarray:
    """(S, L, E) where a gate's weight is below a tenth of the equal share of what it sees; also
    where it does not see the expert.
    """
    seen = np.isfinite(weights).sum(axis=-1, keepdims=True)
    return ~(weights >= IDLE_SHARE / np.maximum(seen, 1))


# --- one order for all runs -----------------------------------------------------------------------


def _matching(profiles: np.ndarray, kinds: list[np.ndarray]) -> np.ndarray:
    """(S, E): for each run, which of its experts takes the place of each.

    Args:
        profiles: (S, R, E) what is known of each expert.
        kinds: Places whose experts may be exchanged.
    """
    runs, _, experts = profiles.shape
    order = np.tile(np.arange(experts), (runs, 1))
    target = profiles[0]
    for _ in range(ROUNDS):
        for places in kinds:
            for run, profile in enumerate(profiles):
                apart = target[:, places, None] - profile[:, None, places]  # (R, k, k)
                _, chosen = linear_sum_assignment((apart**2).sum(axis=0))
                order[run, places] = places[chosen]
        target = np.take_along_axis(profiles, order[:, None, :], axis=2).mean(axis=0)
    return order


def _kinds(experts: tuple[str, ...]) -> list[np.ndarray]:
    """Places of the experts that share a name but for its number, where there are several."""
    by_stem: dict[str, list[int]] = {}
    for place, name in enumerate(experts):
        by_stem.setdefault(_stem_and_number(name)[0], []).append(place)
    return [np.array(places) for places in by_stem.values() if len(places) > 1]


def _expert_order(name: str) -> tuple[bool, str, int]:
    """Shared experts last, numbers as numbers."""
    stem, number = _stem_and_number(name)
    return stem.startswith("shared"), stem, number


def _stem_and_number(name: str) -> tuple[str, int]:
    """``expert 3`` is number 3 of the kind ``expert``."""
    match = re.fullmatch(r"(.*?)\s*(\d+)", name)
    return (match.group(1), int(match.group(2))) if match else (name, 0)
