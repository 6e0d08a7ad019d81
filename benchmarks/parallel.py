"""One cell over several processes of this machine, against one process, at the same global batch.

For each number of processes: rows a second by the clock; the CPU seconds of a step, of all
processes together and of the busiest one, which bounds the speed where every process has a core of
its own; the bytes that a process gives to PyTorch in a step, to be added up or sent to the shards
of a table; and the memory of the busiest. Runs of one and of several processes take turns, and the
best of each counts: other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mtlkit.data.data_home import data_home
from mtlkit.data.sources import prepare
from mtlkit.grid.engines.team import Place, join
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.grid.run_cell import build_trainer, load_planned_dataset
from mtlkit.records import Cell
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

WARM_UP = 3  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="ali-ccp[simulate=300000]")
    parser.add_argument("--model", default="mmoe")
    parser.add_argument("--balancers", default="uniform,pcgrad")
    parser.add_argument("--batch-size", type=int, default=16384)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-rows", type=int)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    for cell in plan(arguments):
        best: dict[int, dict[str, Any]] = {}
        for _ in range(arguments.rounds):
            for processes in map(int, arguments.processes.split(",")):
                found = measure(cell, processes, arguments)
                before = best.setdefault(processes, found)
                best[processes] = {
                    name: (max if name == "rows_s" else min)(value, before[name])
                    for name, value in found.items()
                }
        show(cell, best)


def plan(arguments: argparse.Namespace) -> list[Cell]:
    """One cell a balancer."""
    flags = {
        "dataset": arguments.dataset,
        "models": arguments.model,
        "balancers": arguments.balancers,
        "references": [],
        "seeds": 1,
    }
    settings = [f"batch_size={arguments.batch_size}", "epochs=10", *arguments.settings]
    grid = read_grid(None, flags, settings)
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore(Path(folder))
        return make_plan(grid, *prepare(arguments.dataset, data_home()), store).to_run


def measure(cell: Cell, processes: int, asked: argparse.Namespace) -> dict[str, float]:
    """Train for some steps; rows a second, and what a step takes."""
    steps = asked.steps
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(processes) as pool:
        arguments = [
            (cell, Place(number, processes, f"file://{folder}/team"), steps, asked.shard_rows)
            for number in range(processes)
        ]
        found = pool.starmap(train, arguments, chunksize=1)
    seconds, cpu, sent, calls, memory = (max(values) for values in zip(*found, strict=True))
    return {
        "rows_s": steps * asked.batch_size / seconds,
        "ms": 1000 * seconds / steps,
        "cpu_ms": 1000 * sum(one[1] for one in found) / steps,
        "busiest_ms": 1000 * cpu / steps,
        "sent": sent / steps,
        "calls": calls / steps,
        "gb": memory / 1e9,
    }


def train(cell: Cell, place: Place, steps: int, shard_rows: int | None) -> tuple[float, ...]:
    """Seconds, CPU seconds, bytes given to collectives, calls of them, and memory of a process."""
    torch.set_num_threads(1)
    if place.processes > 1:
        join(place)
    execution = ExecutionSettings(
        device="cpu",
        processes=place.processes,
        shard_rows=shard_rows if place.processes > 1 else None,
    )
    dataset = load_planned_dataset(cell, data_home())
    trainer = build_trainer(cell, dataset, execution, torch.device("cpu"))
    trainer.model.train()
    trainer._train_until(WARM_UP, None)

    counts = [0, 0]

    def counted(collective: Any, argument: str | int) -> Any:
        def call(*tensors: Any, **named: Any) -> Any:
            tensor = named[argument] if isinstance(argument, str) else tensors[argument]
            parts = [tensor.indices(), tensor.values()] if tensor.is_sparse else [tensor]
            counts[0] += sum(part.nbytes for part in parts)
            counts[1] += 1
            return collective(*tensors, **named)

        return call

    dist.all_reduce = counted(dist.all_reduce, 0)
    dist.all_to_all_single = counted(dist.all_to_all_single, "input")  # row numbers
    vectors = dist._functional_collectives
    vectors.all_to_all_single = counted(vectors.all_to_all_single, 0)
    began, cpu_began = time.perf_counter(), time.process_time()
    trainer._train_until(WARM_UP + steps, None)
    seconds = time.perf_counter() - began, time.process_time() - cpu_began
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return *seconds, *map(float, counts), float(resident)


def show(cell: Cell, best: dict[int, dict[str, float]]) -> None:
    alone = best[min(best)]
    for processes, found in sorted(best.items()):
        print(
            f"{cell.label}, {processes} process(es): {found['rows_s']:,.0f} rows/s, "
            f"{found['ms']:.1f} ms a step ({alone['ms'] / found['ms']:.2f}x); CPU "
            f"{found['cpu_ms']:.1f} ms, busiest {found['busiest_ms']:.1f} ms "
            f"({alone['cpu_ms'] / found['busiest_ms']:.2f}x); {found['sent'] / 1e6:.2f} MB in "
            f"{found['calls']:.0f} calls; {found['gb']:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
