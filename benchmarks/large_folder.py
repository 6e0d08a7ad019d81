"""How long mtlkit takes over a folder of 10,000 runs: ``bench --dry-run`` and ``report``.

    python benchmarks/large_folder.py DIR [--seeds 52] [--rounds 3]

The grid is 5 architectures x 38 balancers and the single-task reference, 191 rows of a table, on
generated data. One run of each row's architecture is trained; every other cell gets a record and
probes of the same shape, with its own key and numbers moved by chance. Both commands then run on
one core, as a person would call them. DIR is kept, so that a second call measures at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mtlkit.data.sources import prepare
from mtlkit.grid.engines.local import LocalEngine
from mtlkit.grid.grid_settings import GridSettings, read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.records import Cell, RunRecord
from mtlkit.store import RECORD, ResultStore

GRID = """
dataset: synthetic
models: [shared-bottom, mmoe, cgc, ple, adatt]
balancers: [uniform, 'scalarization[n=9]', rlw, gls, stch, uwl, dwa, famo, gradnorm, metabalance,
  'metabalance[mode=A]', 'metabalance[mode=B]', mgda, 'mgda[normalize=none]', 'mgda[normalize=l2]',
  pareto, pcgrad, gradvac, cagrad, imtl-l, imtl-g, nash, aligned, upgrad, dualproj, config, fairgrad,
  db-mtl, moco, excessmtl, sdmgrad]
references: [single-task]
training: {epochs: 0.3}
"""
NOISE = 0.002
"""Standard deviation of what is added to each metric of a trained run."""
GOALS = {"dry run": 1.5, "report": 12.0}
"""Seconds."""
LARGEST_PAGE = 4e6
"""Bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=52)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    grid_file = make_folder(arguments.folder, arguments.seeds)
    results = arguments.folder / "results"
    data = ["--data-dir", str(arguments.folder / "data")]
    commands = {
        "dry run": ["bench", str(grid_file), "--dry-run", *data],
        "report": ["report", str(results)],
    }
    print(f"{sum(1 for _ in results.rglob(RECORD))} records, load {os.getloadavg()[0]:.1f}")
    for name, command in commands.items():
        seconds = [run_time(command) for _ in range(arguments.rounds)]
        listed = ", ".join(f"{second:.2f}" for second in seconds)
        print(f"{name}: {min(seconds):.2f} s, goal {GOALS[name]:g} s (all rounds: {listed})")
    size = (results / "report" / "index.html").stat().st_size
    print(f"page: {size / 1e6:.2f} MB, goal {LARGEST_PAGE / 1e6:g} MB")


# --- the folder


def make_folder(folder: Path, seeds: int) -> Path:
    """Write grid, data and results where they are missing; return the file of the grid."""
    folder.mkdir(parents=True, exist_ok=True)
    grid_file = folder / "grid.yaml"
    grid_file.write_text(f"{GRID}seeds: {seeds}\nout: {folder / 'results'}\n")
    settings = read_grid(grid_file, {}, ["jobs=1"])
    (folder / "data").mkdir(exist_ok=True)
    cells = plan(settings, folder / "data")

    # one trained run of each architecture
    trained = {cell.model: cell for cell in reversed(cells)}
    store = ResultStore(settings.out)
    store.make()
    to_train = [cell for cell in trained.values() if store.get(cell) is None]
    list(LocalEngine(store, folder / "data", settings.execution).run(to_train))

    for cell in cells:
        if not (store.folder(cell) / RECORD).exists():
            write_like(store, cell, trained[cell.model])
    return grid_file


def plan(settings: GridSettings, home: Path) -> list[Cell]:
    """All cells of the grid."""
    source, dataset = prepare(str(settings.dataset), home)
    made = make_plan(settings, source, dataset, ResultStore(settings.out))
    return [planned.cell for planned in made.cells]


def write_like(store: ResultStore, cell: Cell, trained: Cell) -> None:
    """Write record and probes of a cell after those of a trained one."""
    record = store.get(trained)
    assert record is not None
    random = np.random.default_rng(int(cell.key[:12], 16))
    plain = record.model_dump(mode="json")
    plain |= {"key": cell.key, "group": cell.group, "cell": cell.model_dump(mode="json")}
    _move_metrics(plain["metrics"], random)
    arrays = ResultStore.arrays(store.folder(trained), "probes")
    probes = {"probes": _moved_probes(arrays, random)} if "weights" in arrays else None
    store.save(RunRecord.model_validate(plain), probes)


def _move_metrics(metrics: dict[str, dict[str, dict[str, object]]], random: np.random.Generator):
    for scores in metrics.values():
        for score in scores.values():
            for name, value in score.items():
                if isinstance(value, float):
                    score[name] = value + random.normal(0, NOISE)


def _moved_probes(
    arrays: dict[str, np.ndarray], random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Probes with task weights that wander, and cosines and gates that differ by seed."""
    moved = dict(arrays)
    moved["weights"] = arrays["weights"] * np.exp(
        np.cumsum(random.normal(0, 0.1, arrays["weights"].shape), axis=0)
    )
    for name, array in arrays.items():
        if name == "gradient_cosine":
            moved[name] = np.clip(array + random.normal(0, 0.05, array.shape), -1, 1)
        if name.startswith("gate/") and name.endswith("/mean"):
            weights = array * np.exp(random.normal(0, 0.5, array.shape[-1:]))
            moved[name] = weights / weights.sum(axis=-1, keepdims=True)
    return moved


# --- the measurement


def run_time(command: list[str]) -> float:
    """Seconds that an mtlkit command takes on one core."""
    one_core = {"preexec_fn": lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mtlkit", *command],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **one_core,
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
