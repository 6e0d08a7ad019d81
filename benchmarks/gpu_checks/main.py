"""The command line of ``benchmarks/gpu.py``: sections one after another, within a budget."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from .common import ROOT, Job, Row

SECTIONS = {
    "env": ("checks", 45),  # with the start of Python, during which the others start as well
    "smoke": ("checks", 60),
    "parity": ("parity", 130),
    "syncs": ("checks", 25),
    "speed": ("rates", 110),
    "stack": ("rates", 75),
    "peers": ("rates", 60),
    "memory": ("checks", 25),
    "precision": ("rates", 40),
    "grid": ("rates", 70),
}
"""Section to its module and its part of the time; what one leaves goes to those after it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 1 if a check has failed."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for tests/ and speed/
    parser = argparse.ArgumentParser(prog="gpu.py", description="Checks of mtlkit on a GPU.")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, cpu or pretended")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--data-dir", type=Path, help="default: $MTLKIT_DATA, else ./datasets")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    from mtlkit.data.data_home import data_home

    job = Job(options.device, str(data_home(options.data_dir).resolve()))
    results = Results(options.out)
    if options.work:
        work(options.work, job, results)
        return

    names = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}; they are {', '.join(SECTIONS)}")
    results.clear()
    run(names, job, options.budget, results)
    verdicts = [row["passed"] for rows in results.read().values() for row in rows]
    passed, failed, unjudged = (verdicts.count(verdict) for verdict in (True, False, None))
    print(f"\n{passed} passed, {failed} failed, {unjudged} not judged")
    sys.exit(1 if failed else 0)


class Results:
    """The rows so far, ``gpu.json``; and ``gpu.log``, what the processes of the sections say.

    One process writes at a time, and the file is whole at any moment.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.file, self.log = out, out / "gpu.json", out / "gpu.log"

    def clear(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.file.write_text("{}", encoding="utf-8")
        self.log.write_text("", encoding="utf-8")

    def read(self) -> dict[str, list[dict[str, object]]]:
        return json.loads(self.file.read_text(encoding="utf-8"))

    def add(self, section: str, row: Row) -> None:
        sections = self.read()
        sections.setdefault(section, []).append(asdict(row))
        waiting = self.file.with_suffix(".part")
        waiting.write_text(json.dumps(sections, indent=1, default=str), encoding="utf-8")
        waiting.replace(self.file)
        print(row.text(), file=sys.__stdout__, flush=True)


def run(names: Sequence[str], job: Job, budget: float, results: Results) -> None:
    """Run sections one after another; each has its share of what is left of the budget."""
    deadline = time.monotonic() + budget
    # all processes import what they need now, and wait for their turn
    with results.log.open("a", encoding="utf-8") as log:
        children = {
            name: subprocess.Popen(
                command_of(name, job, results.out),
                stdin=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # so that what it starts ends with it
            )
            for name in names
        }
    try:
        for place, name in enumerate(names):
            parts = [SECTIONS[later][1] for later in names[place:]]
            began = time.monotonic()
            share = max(deadline - began, 0) * parts[0] / sum(parts)
            print(f"\n### {name}\n\n| what | figure | mark | |\n|---|---|---|---|", flush=True)
            try:
                children[name].communicate(b"go\n", timeout=share)
            except subprocess.TimeoutExpired:
                end(children[name])
                results.add(name, Row("the rest", f"stopped after {share:.0f} s"))
            else:
                if code := children[name].returncode:
                    results.add(name, Row("its process", f"exit code {code}", "0", False))
            results.add(name, Row("seconds of this section", time.monotonic() - began))
    finally:
        for child in children.values():
            end(child)


def command_of(section: str, job: Job, out: Path) -> list[str]:
    """What runs a section, as soon as it reads a line."""
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--work", section]
    return [*script, "--device", job.device, "--data-dir", job.data, "--out", str(out)]


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def work(section: str, job: Job, results: Results) -> None:
    """In the process of a section: wait for the turn, then add its rows."""
    import torch

    sys.stdout = sys.stderr  # what others print is no row
    module = importlib.import_module(f"gpu_checks.{SECTIONS[section][0]}")
    if section == "grid" and job.on_gpu:
        module.compile_kernels(job)
    if not job.on_gpu:
        torch.set_num_threads(1)  # as a cell has
    if sys.stdin.readline():
        for row in rows_of(getattr(module, section)(job)):
            results.add(section, row)


def rows_of(checks: Iterator[partial[Iterator[Row]]]) -> Iterator[Row]:
    """The rows of a section's checks; one that raises is a row with its reason."""
    while True:
        what = "the rest"
        try:
            check = next(checks)
            named = [str(value) for value in check.args if isinstance(value, (str, int))]
            what = " ".join([check.func.__name__.strip("_"), *named])
            yield from check()
        except StopIteration:
            return
        except Exception as error:
            traceback.print_exc()
            reason = str(error).strip().partition("\n")[0]
            yield Row(what, f"{type(error).__name__}: {reason}", "it runs", False)
