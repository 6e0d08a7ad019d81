"""Solver time of every Gram-based balancer, in CPU time, for T = 2, 4, 8 and 64 and for Grams of
every difficulty.

    python benchmarks/balancer_solvers.py [--out solvers.md]

The families are those of the law tests: gradients that agree, conflict, are collinear, opposing,
near duplicates or scaled from 1 to 1e6, in few dimensions and in many. A cell is the median of the
calls on a family, and the worst family is what counts. One thread; a warm-up call comes first.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.data.types import Task
from mtlkit.registry import BALANCERS

COUNTS = (2, 4, 8, 64)
LIMITS = {2: 1.0, 4: 1.0, 8: 1.0, 64: 20.0}  # milliseconds
CASES = {
    "mgda": [{}, {"normalize": "none"}],
    "pareto": [{}, {"solver": "paper"}],
    "fairgrad": [{}, {"alpha": 10.0}],
}


def families(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """(T, P) gradients of every kind."""
    few, many = rng.standard_normal((count, count)), rng.standard_normal((count, 1000))
    line = rng.standard_normal(count)
    return {
        "few dimensions": few,
        "many dimensions": many,
        "agreeing": np.abs(few) + 0.1,
        "conflicting": few - 0.98 * few.mean(0),
        "collinear": np.arange(1.0, count + 1)[:, None] * line,
        "opposing": (-1.0) ** np.arange(count)[:, None] * np.arange(1.0, count + 1)[:, None] * line,
        "near duplicates": line + 1e-7 * few,
        "badly scaled": np.logspace(0, 6, count)[:, None] * few,
    }


def milliseconds(balancer: GramBalancer, problem: GramProblem, calls: int) -> float:
    """Median CPU time of a call."""
    taken = []
    balancer.solve(problem)
    for _ in range(calls):
        began = time.thread_time()
        balancer.solve(problem)
        taken.append(1000 * (time.thread_time() - began))
    return float(np.median(taken))


def rows(calls: int) -> list[tuple[str, dict[int, tuple[float, str]]]]:
    """A balancer and, for each number of tasks, the time on its worst family and which that is."""
    found = []
    for name in BALANCERS.names():
        kind = BALANCERS.load(name)
        if not issubclass(kind, GramBalancer):
            continue
        for options in CASES.get(name, [{}]):
            shown = ",".join(
                f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in options.items()
            )
            times = {}
            for count in COUNTS:
                tasks = [Task(name=f"t{t}") for t in range(count)]
                balancer = kind(tasks, kind.Options(**options))
                worst = (0.0, "")
                for family, jacobian in families(count, np.random.default_rng(count)).items():
                    gram = jacobian @ jacobian.T
                    problem = GramProblem(gram, np.ones(count), np.arange(count), (0,))
                    worst = max(worst, (milliseconds(balancer, problem, calls), family))
                times[count] = worst
            found.append((f"{name}[{shown}]" if shown else name, times))
    return found


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=15, help="calls a family")
    parser.add_argument("--out", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "Milliseconds a step, median call on the worst family (bold: above 1 ms up to T = 8, or 20 ms at T = 64)",
        "",
        f"| balancer | {' | '.join(f'T={count}' for count in COUNTS)} |",
        f"|---{'|---:' * len(COUNTS)}|",
    ]
    for name, times in rows(arguments.calls):
        cells = [
            f"{'**' if times[c][0] > LIMITS[c] else ''}{times[c][0]:.3f}{'**' if times[c][0] > LIMITS[c] else ''} "
            f"({times[c][1]})"
            for c in COUNTS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
