"""Advice: which models and balancers to try first on a data set, why, and how sure that is.

``RULES`` is all of it, to be read as a table: where the condition holds of the facts, a method gets
points, and the reason stands beside. A pair is as good as its model and its balancer together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mtlkit.report.frame import Frames
from mtlkit.report.probe_frames import load_probes
from mtlkit.report.summary import summarise

PICKS = 3
PROBED = ("shared-bottom", "mmoe")
"""Models of the probe grid, beside single-task; both under uniform weights."""


@dataclass(frozen=True)
class Facts:
    """What is known of a data set after the probe grid; NaN where that is unknown."""

    rows: int  # of train
    tasks: int  # their number
    kinds: int  # their distinct kinds
    funnel: bool  # whether they are steps of a user's path
    correlation: float  # largest correlation of two labels, as an absolute value
    # Gain of shared-bottom over single-task on validation (delta m), in percent.
    sharing: float = math.nan
    gates: float = math.nan  # the same of mmoe over shared-bottom
    # Largest share of points at which the gradients of two tasks have a negative cosine.
    conflict: float = math.nan

    def with_probe(self, frames: Frames) -> Facts:
        """The same facts, and what a probe grid says: on validation, for test rows come later."""
        metrics = frames.metrics
        validation = metrics[metrics["split"] == "validation"].assign(split="test")
        [block] = frames.blocks
        summary = summarise(replace(frames, metrics=validation), block)
        gains = {row.group.resolved["model"]["name"]: 100 * row.gain.mean for row in summary.rows}
        shared, gated = (gains.get(model, math.nan) for model in PROBED)
        conflicts = [
            float(probes.conflicts[0].max())
            for probes in load_probes(frames, block).by_group.values()
            if probes.has_cosines
        ]
        conflict = max(conflicts, default=math.nan)
        return replace(self, sharing=shared, gates=gated - shared, conflict=conflict)


@dataclass(frozen=True)
class AdviceRule:
    """When a method gets points, and why."""

    kind: str  # model or balancer
    name: str  # the method
    points: float  # how much it gains by the rule
    holds: Callable[[Facts], bool]  # whether the rule applies
    why: str  # the reason, with the facts as fields
    source: str  # where it was published
    sure: str  # ``well supported``, ``disputed`` or ``our measurements``


CARUANA, MMOE, PLE = (
    *("doi:10.1023/A:1007379606734", "doi:10.1145/3219819.3220007"),
    "doi:10.1145/3383313.3412236",
)
KURIN, KENDALL, PCGRAD = "arXiv:2201.04122", "arXiv:1705.07115", "arXiv:2001.06782"
OURS = "results/reference/datasets"

# fmt: off
RULES = (
    AdviceRule("model", "shared-bottom", 2, lambda f: True,
               "the fewest parameters, and the baseline of all others", CARUANA, "well supported"),
    AdviceRule("model", "shared-bottom", 1, lambda f: f.rows < 100_000,
               "{rows:,} rows: experts have little to learn from", OURS, "our measurements"),
    AdviceRule("model", "mmoe", 1, lambda f: f.correlation < 0.5,
               "labels correlate by {correlation:.2f} at most: a gate a task lets them differ",
               MMOE, "disputed"),
    AdviceRule("model", "mmoe", 1, lambda f: f.gates > 0,
               "in the probe mmoe is {gates:+.1f} points of Δm from shared-bottom", MMOE,
               "our measurements"),
    AdviceRule("model", "ple", 1.5, lambda f: f.sharing < 0,
               "sharing everything costs {sharing:+.1f} points of Δm in the probe: tasks need "
               "experts of their own", PLE, "disputed"),
    AdviceRule("model", "cross-stitch", 1, lambda f: f.sharing < -5,
               "sharing everything costs {sharing:+.1f} points of Δm: nearly separate networks",
               "arXiv:1604.03539", "our measurements"),
    AdviceRule("model", "esmm", 3, lambda f: f.funnel,
               "labels are steps of a path: conversions are trained on all rows",
               "arXiv:1804.07931", "well supported"),
    AdviceRule("model", "aitm", 2, lambda f: f.funnel,
               "labels are steps of a path: each receives from the one before", "arXiv:2105.08489",
               "disputed"),
    AdviceRule("balancer", "uniform", 1, lambda f: True,
               "tuned alike, hardly any balancer is better than the plain sum", KURIN,
               "well supported"),
    AdviceRule("balancer", "uwl", 1.5, lambda f: True,
               "one learned number a task, nearly free; best on 4 of 6 tables of ours", KENDALL,
               "our measurements"),
    AdviceRule("balancer", "uwl", 1, lambda f: f.kinds > 1,
               "losses of {kinds} kinds have different sizes", KENDALL, "well supported"),
    AdviceRule("balancer", "pcgrad", 2, lambda f: f.conflict > 0.5,
               "gradients of two tasks conflict at {conflict:.0%} of the points of the probe",
               PCGRAD, "disputed"),
)
# fmt: on


@dataclass(frozen=True)
class Advice:
    """What to try first."""

    pairs: tuple[tuple[str, str], ...]  # models with balancers, the first ones first
    reasons: tuple[tuple[AdviceRule, str], ...]  # method to the rules that hold of it


def advise(facts: Facts) -> Advice:
    """The pairs of most points, equal ones in the order of the rules; and the rules that hold."""
    reasons = tuple((rule, rule.why.format(**vars(facts))) for rule in RULES if rule.holds(facts))
    points: dict[str, dict[str, float]] = {"model": {}, "balancer": {}}
    for rule, _ in reasons:
        of_kind = points[rule.kind]
        of_kind[rule.name] = of_kind.get(rule.name, 0) + rule.points
    pairs = [(model, balancer) for model in points["model"] for balancer in points["balancer"]]
    pairs.sort(key=lambda pair: -points["model"][pair[0]] - points["balancer"][pair[1]])
    return Advice(tuple(pairs[:PICKS]), reasons)
