"""The command line of ``benchmarks/speed.py``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .common import HOME, Section, Setup, say

NAMES = (
    "training",
    "quality",
    "quality_ali",
    "breakdown",
    "roofline",
    "sparse",
    "bags",
    "balancers",
    "evaluation",
    "cells",
)
OUT = HOME.parent / "results" / "speed"
README = HOME / "README.md"
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
"""The tables stand between these marks of the README."""


def section(name: str) -> Section:
    """A section by its name, which is that of its module."""
    return importlib.import_module(f"speed.{name}").SECTION


def main() -> None:
    parser = command_line()
    arguments = parser.parse_args()
    if arguments.work:  # this is a child process that a section started
        name, job = arguments.work
        answer = importlib.import_module(f"speed.{name}").work(json.loads(job))
        print("\n" + json.dumps(answer))
        return

    if arguments.check:
        importlib.import_module("speed.guard").check(store=arguments.publish)
        return

    names = [] if arguments.redraw else [name.strip() for name in arguments.only.split(",")]
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"there is no section {unknown[0]!r}; they are {', '.join(NAMES)}")
    if "balancers" in names and importlib.util.find_spec("torchjd") is None:
        parser.error(
            "section balancers needs torchjd: pip install -c constraints.txt -e '.[parity]'"
        )

    # Each section is written as soon as it is measured.
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "speed.json"
    for name in names:
        measure(section(name), arguments.data_dir, arguments.rounds, file)

    # Tables and chart hold all sections, also those of earlier calls.
    from .chart import draw

    results = read(file)
    text = render(results)
    (arguments.out / "speed.md").write_text(text, encoding="utf-8")
    draw(results["sections"], arguments.out / "speed.png")

    # The terminal shows what was measured now.
    shown = {"sections": {name: results["sections"][name] for name in names}} if names else results
    print(render(shown))
    say(f"wrote speed.json, speed.md and speed.png to {arguments.out}")
    if arguments.publish:
        publish(text, arguments.out / "speed.png")


def command_line() -> argparse.ArgumentParser:
    """The options of the script."""
    parser = argparse.ArgumentParser(
        prog="speed.py",
        description="Speed of mtlkit against its peers, its targets and the hardware.",
    )
    parser.add_argument("--only", default=",".join(NAMES), help=f"sections, of {', '.join(NAMES)}")
    parser.add_argument(
        "--rounds", type=int, help="paired repetitions; default: each section's own"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="the data home; default: $MTLKIT_DATA, else ./datasets"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="where speed.json, speed.md and speed.png go"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="only write table and chart again, from speed.json"
    )
    parser.add_argument(
        "--check", action="store_true", help="only say what got slower than it was; two minutes"
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="also put them into benchmarks/README.md; with --check, store the ratios",
    )
    parser.add_argument("--work", nargs=2, metavar=("SECTION", "JOB"), help=argparse.SUPPRESS)
    return parser


def measure(section: Section, data_dir: Path | None, rounds: int | None, file: Path) -> None:
    """Measure a section; it replaces what the file held of it."""
    from mtlkit.data.data_home import data_home

    setup = Setup(data_home(data_dir).resolve(), rounds or section.rounds, file.parent)
    began, load = time.monotonic(), os.getloadavg()[0]
    records = section.collect(setup)
    results = read(file)
    results["sections"][section.name] = {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began),
        "load": round(load, 2),  # of the machine before it began
        "rounds": setup.rounds,
        "machine": machine(),
        "records": records,
    }
    file.write_text(json.dumps(results, indent=1), encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"sections": {}}


def machine() -> dict[str, Any]:
    """Where and with what a section was measured."""
    import numpy as np
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


def render(results: dict[str, Any]) -> str:
    """Targets, then every section's table, as Markdown."""
    measured = {name: results["sections"][name] for name in NAMES if name in results["sections"]}
    checks = []
    tables = []
    for name, taken in measured.items():
        described = section(name)
        checks += described.checks(taken["records"])
        tables += [f"### {described.title}", "", described.table(taken["records"]), ""]
        tables += [_note(name, taken), ""]

    lines = ["| asked | measured | |", "|---|---|---|", *map(str, checks), ""] if checks else []
    return "\n".join([*lines, *tables])


def _note(name: str, taken: dict[str, Any]) -> str:
    """When, where and how often a section was measured."""
    where = taken["machine"]
    return (
        f"*Section `{name}`, {taken['taken'][:10]}: {taken['rounds']} rounds in "
        f"{taken['seconds']} s, load {taken['load']:g} before. {where['cpu']}, {where['cores']} "
        f"cores, torch {where['torch']}.*"
    )


def publish(text: str, chart: Path) -> None:
    """Put the tables into the marked place of ``benchmarks/README.md``, and the chart beside it."""
    before, mark, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        sys.exit(f"{README} has no place marked {BEGIN} ... {END}")
    shutil.copyfile(chart, HOME / "speed.png")
    picture = "![Speed of mtlkit against its peers](speed.png)"
    README.write_text(f"{before}{BEGIN}\n\n{picture}\n\n{text}\n{END}{after}", encoding="utf-8")
