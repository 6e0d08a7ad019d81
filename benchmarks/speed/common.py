"""What all sections share: fresh processes, statistics of paired runs, targets, tables."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
SCRIPT = HOME / "speed.py"
Record = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """How a section is to be measured.

    Args:
        data: The data home.
        rounds: Paired repetitions.
    """

    data: Path
    rounds: int


@dataclass(frozen=True)
class Check:
    """A target and what came of it.

    Args:
        asked: The target, in words.
        found: The measured value, in words.
        met: Whether it is reached; None where too little was measured to tell.
    """

    asked: str
    found: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: "met", False: "**missed**", None: "not judged"}[self.met]
        return f"| {self.asked} | {self.found} | {verdict} |"


@dataclass(frozen=True)
class Section:
    """One part of the benchmark.

    Args:
        name: For ``--only``.
        title: Heading of its table.
        rounds: Paired repetitions, unless others are asked for.
        collect: Measures; the records are plain JSON.
        table: Markdown of the records.
        checks: Targets and what came of them.
    """

    name: str
    title: str
    rounds: int
    collect: Callable[[Setup], list[Record]]
    table: Callable[[list[Record]], str]
    checks: Callable[[list[Record]], list[Check]] = field(default=lambda records: [])


def child(
    arguments: Sequence[str],
    job: Record,
    python: str = sys.executable,
    threads: int = 1,
    cores: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> Any:
    """Run a script on a job in a fresh process; the last line of JSON that it prints is its answer.

    Args:
        arguments: The script and what comes before the job.
        job: Sent as JSON.
        python: The interpreter.
        threads: Of every pool of threads in the process.
        cores: How many of this process's cores it may use; None for all.
        variables: Of the environment, beside this process's own.
    """
    pools = ("OMP", "MKL", "OPENBLAS", "NUMBA")
    environment = (
        os.environ | {f"{pool}_NUM_THREADS": str(threads) for pool in pools} | dict(variables or {})
    )
    command = [python, *arguments, json.dumps(job)]
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    try:
        if cores is not None and own:
            os.sched_setaffinity(0, own[:cores])  # inherited by the child
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
    finally:
        if cores is not None and own:
            os.sched_setaffinity(0, own)
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{err}")
    return json.loads(next(line for line in reversed(out.splitlines()) if line[:1] in {"{", "["}))


def in_child(section: str, job: Record, **options: Any) -> Any:
    """The answer of a section's ``work`` to a job, in a fresh process with the environment of
    mtlkit's workers.

    A worker trains in its main thread; trainings that take turns have threads, which get memory as
    that one does.
    """
    from mtlkit.grid.engines.local import MEMORY

    return child(
        [str(SCRIPT), "--work", section],
        job,
        variables=MEMORY | {"MALLOC_ARENA_MAX": "1"},
        **options,
    )


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records with these values."""
    return [
        record
        for record in records
        if all(record.get(key) == value for key, value in wanted.items())
    ]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """``median (min-max)``."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Quotients of paired measurements."""
    return [value / other for value, other in zip(values, base, strict=True)]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns after the first are aligned to the right where they hold numbers only."""
    body = [list(row) for row in rows]
    right = [
        all(row[i][:1].isdigit() or row[i] in {"", "-"} for row in body) for i in range(len(head))
    ]
    rule = ["---:" if on else "---" for on in right]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(head), rule, *body])


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")
