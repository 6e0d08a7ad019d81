"""CPU time of every Gram-based balancer's solver, for T = 2, 4, 8 and 64.

    python benchmarks/balancer_solvers.py [--out solvers.md]

Gram matrices are of every difficulty. The families are those of the law tests: gradients that agree, conflict, are collinear, opposing,
near duplicates or scaled from 1 to 1e6, in few dimensions and in many. A cell is the median of the
calls on a family, and the worst family is what counts. One thread; a warm-up call comes first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._build import build
from mtlkit.registry import BALANCERS
from mtlkit.spec import Spec

COUNTS = (2, 4, 8, 64)
LIMITS = {2: 1.0, 4: 1.0, 8: 1.0, 64: 20.0}  # milliseconds
CASES = {
    "mgda": [{}, {"normalize": "none"}],
    "pareto": [{}, {"solver": "paper"}],
    "fairgrad": [{}, {"alpha": 10.0}],
}


def families(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """(T, P) gradients of every kind."""
    few = rng.standard_normal((count, count))
    many = rng.standard_normal((count, 1000))
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
    balancer.solve(problem)  # compiles what is not compiled yet
    times = []
    for _ in range(calls):
        began = time.thread_time()
        balancer.solve(problem)
        times.append(1000 * (time.thread_time() - began))
    return float(np.median(times))


def slowest(balancer: GramBalancer, count: int, calls: int) -> tuple[float, str]:
    """The time on the worst family for a number of tasks, and which family that is."""
    times = []
    for family, gradients in families(count, np.random.default_rng(count)).items():
        gram = gradients @ gradients.T
        problem = GramProblem(gram, np.ones(count), np.arange(count), (0,))
        times.append((milliseconds(balancer, problem, calls), family))
    return max(times)


def rows(calls: int) -> Iterator[tuple[str, dict[int, tuple[float, str]]]]:
    """Each Gram-based balancer as typed and, for each number of tasks, its slowest family."""
    for name in BALANCERS.names():
        if not issubclass(BALANCERS.load(name), GramBalancer):
            continue
        for options in CASES.get(name, [{}]):
            times = {}
            for count in COUNTS:
                balancer = build(name, count, **options)
                assert isinstance(balancer, GramBalancer)
                times[count] = slowest(balancer, count, calls)
            yield str(Spec(name, options)), times


def cell(count: int, milliseconds: float, family: str) -> str:
    """One time in the table, bold above the limit."""
    bold = "**" if milliseconds > LIMITS[count] else ""
    return f"{bold}{milliseconds:.3f}{bold} ({family})"


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
        cells = [cell(count, *times[count]) for count in COUNTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
