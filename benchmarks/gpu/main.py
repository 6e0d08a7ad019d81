"""The command line of ``benchmarks/gpu.py``: sections one after another, within a budget."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from .common import ROOT, Job, Row

SECTIONS = {
    "env": ("checks", 25),
    "smoke": ("checks", 70),
    "parity": ("parity", 100),
    "syncs": ("checks", 25),
    "speed": ("rates", 110),
    "stack": ("rates", 75),
    "peers": ("rates", 60),
    "memory": ("checks", 25),
    "precision": ("rates", 40),
    "grid": ("rates", 70),
}
"""Section to its module and its part of the time; what one leaves goes to those after it."""
HEAD = "| what | figure | mark | |\n|---|---|---|---|"


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 1 if a check has failed."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for tests/ and speed/
    parser = argparse.ArgumentParser(prog="gpu.py", description="Checks of mtlkit on a GPU.")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, cpu or pretended")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--data-dir", type=Path, help="default: $MTLKIT_DATA, else ./datasets")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        name, job = options.work
        work(name, Job(**json.loads(job)))
        return

    names = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}; they are {', '.join(SECTIONS)}")
    from mtlkit.data.data_home import data_home

    job = Job(options.device, str(data_home(options.data_dir).resolve()))
    results = Results(options.out)
    run(names, job, options.budget, results)
    verdicts = [row.passed for rows in results.sections.values() for row in rows]
    passed, failed, unjudged = (verdicts.count(verdict) for verdict in (True, False, None))
    print(f"\n{passed} passed, {failed} failed, {unjudged} not judged")
    sys.exit(1 if failed else 0)


class Results:
    """The rows so far, printed and written as they come: ``gpu.json``, and ``gpu.log`` of what the
    processes of the sections say.
    """

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.file, self.log = out / "gpu.json", out / "gpu.log"
        self.log.write_text("", encoding="utf-8")
        self.sections: dict[str, list[Row]] = {}

    def add(self, section: str, row: Row) -> None:
        """Take note of a row; the file is whole at any moment."""
        if section not in self.sections:
            print(f"\n### {section}\n\n{HEAD}")
        self.sections.setdefault(section, []).append(row)
        print(row.text(), flush=True)
        plain = {name: [asdict(one) for one in rows] for name, rows in self.sections.items()}
        waiting = self.file.with_suffix(".part")
        waiting.write_text(json.dumps(plain, indent=1, default=str), encoding="utf-8")
        waiting.replace(self.file)


def run(names: Sequence[str], job: Job, budget: float, results: Results) -> None:
    """Run sections one after another; each has its share of what is left of the budget."""
    deadline = time.monotonic() + budget
    # all processes import what they need now, and wait for their turn
    children = {name: Child(command_of(name, job), results.log) for name in names}
    try:
        for place, name in enumerate(names):
            children[name].wait_until_ready(deadline)
            parts = [SECTIONS[later][1] for later in names[place:]]
            began = time.monotonic()
            share = max(deadline - began, 0) * parts[0] / sum(parts)
            for row in children[name].rows(share):
                results.add(name, row)
            results.add(name, Row("seconds of this section", time.monotonic() - began))
    finally:
        for child in children.values():
            child.end()


def command_of(section: str, job: Job) -> list[str]:
    script = str(ROOT / "benchmarks" / "gpu.py")
    return [sys.executable, script, "--work", section, json.dumps(asdict(job))]


class Child:
    """The process of a section. It says when it is ready, and prints a line of JSON a row."""

    def __init__(self, command: list[str], log: Path) -> None:
        pipe = subprocess.PIPE
        with log.open("a", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=errors,
                text=True,
                start_new_session=True,  # so that what it starts ends with it
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def wait_until_ready(self, deadline: float) -> None:
        """Its imports do not count as its time."""
        with contextlib.suppress(queue.Empty):
            line = self._lines.get(timeout=max(deadline - time.monotonic(), 0))
            if line != "ready\n":  # it has died: whoever reads its rows is told
                self._lines.put(line)

    def rows(self, seconds: float) -> Iterator[Row]:
        """Let it begin, and yield its rows; after its time, one that says so."""
        deadline = time.monotonic() + seconds
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it may have died; then its output ends
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        try:
            while line := self._lines.get(timeout=max(deadline - time.monotonic(), 0)):
                if line.startswith("{"):
                    yield Row(**json.loads(line))
        except queue.Empty:
            self.end()
            yield Row("the rest of this section", f"stopped after {seconds:.0f} s", "in time")
            return
        if code := self.process.wait():
            yield Row("the process of this section", f"exit code {code}, see gpu.log", "0", False)

    def end(self) -> None:
        """End it, and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def work(section: str, job: Job) -> None:
    """In the process of a section: wait for the turn, then print its rows."""
    output, sys.stdout = sys.stdout, sys.stderr  # what others print is no row
    module = importlib.import_module(f"gpu.{SECTIONS[section][0]}")
    print("ready", file=output, flush=True)
    if sys.stdin.readline():
        for row in rows_of(getattr(module, section)(job)):
            print(row.line(), file=output, flush=True)


def rows_of(checks: Iterator[partial[Iterator[Row]]]) -> Iterator[Row]:
    """The rows of a section's checks; one that raises is a row with its reason."""
    while True:
        what = "the rest of this section"
        try:
            check = next(checks)
            named = [str(value) for value in check.args if isinstance(value, (str, int))]
            what = " ".join([check.func.__name__, *named])
            yield from check()
        except StopIteration:
            return
        except Exception as error:
            traceback.print_exc()
            reason = str(error).strip().partition("\n")[0]
            yield Row(what, f"{type(error).__name__}: {reason}", "it runs", False)
