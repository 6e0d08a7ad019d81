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
THREAD_POOLS = ("OMP", "MKL", "OPENBLAS", "NUMBA")
Record = dict[str, Any]
"""One measurement as plain JSON."""


@dataclass(frozen=True)
class Setup:
    """How a section is to be measured.

    Args:
        data: The data home.
        rounds: Paired repetitions.
        out: Where results go.
    """

    data: Path
    rounds: int
    out: Path


@dataclass(frozen=True)
class Check:
    """A target and what came of it; as text a row of the table of targets.

    Args:
        asked: The target, in words.
        measured: The measured value, in words.
        met: Whether it is reached; None where too little was measured to tell.
    """

    asked: str
    measured: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: "met", False: "**missed**", None: "not judged"}[self.met]
        return f"| {self.asked} | {self.measured} | {verdict} |"


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
        job: The job, sent as JSON.
        python: The interpreter.
        threads: Threads of every pool of the process.
        cores: How many of this process's cores it may use; None for all.
        variables: Environment variables beside this process's own.

    Raises:
        RuntimeError: The script failed.
    """
    environment = dict(os.environ)
    environment |= {f"{pool}_NUM_THREADS": str(threads) for pool in THREAD_POOLS}
    environment |= variables or {}
    command = [python, *arguments, json.dumps(job)]

    # A child inherits the cores of its parent, so the parent gives up some while it starts one.
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    restricted = cores is not None and bool(available)
    try:
        if restricted:
            os.sched_setaffinity(0, available[:cores])
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
    finally:
        if restricted:
            os.sched_setaffinity(0, available)

    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors}")
    answers = [line for line in output.splitlines() if line[:1] in {"{", "["}]
    return json.loads(answers[-1])


def in_child(section: str, job: Record, **options: Any) -> Any:
    """The answer of a section's ``work`` to a job, in a fresh process with the environment of
    mtlkit's workers.

    Args:
        section: Name of the section.
        job: What its ``work`` is called with.
        options: Of :func:`child`.
    """
    from mtlkit.grid.engines.processes import MEMORY

    # A worker of mtlkit trains in its main thread. Trainings that take turns are threads, and with
    # a single arena these get memory as that one does.
    variables = MEMORY | {"MALLOC_ARENA_MAX": "1"}
    return child([str(SCRIPT), "--work", section], job, variables=variables, **options)


def say(text: str) -> None:
    """Print progress, beside the results on standard output."""
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
    return [value / base_value for value, base_value in zip(values, base, strict=True)]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns after the first are aligned to the right where they hold numbers only."""
    body = [list(row) for row in rows]
    rule = []
    for column in range(len(head)):
        numeric = all(row[column][:1].isdigit() or row[column] in {"", "-"} for row in body)
        rule.append("---:" if numeric else "---")
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(head), rule, *body])


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")
