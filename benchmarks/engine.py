"""What an engine costs beside its cells: cells of one second each, against the ideal.

Each cell is a plugin that sleeps for its second, so it also has a process of its own: the dearest
kind. The time until the first cell has started is told apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from mtlkit.data.sources import prepare
from mtlkit.grid.engines import make_engine
from mtlkit.grid.engines.processes import start_early
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

DATA = "synthetic[rows=200,d=4]"
SLEEPS = '''"""Sleeps for a second in its first step."""

import time

from mtlkit import Balancer


class Sleeps(Balancer):
    def forward(self, step):
        if step.index == 0:
            time.sleep(1)
        return step.active.to(step.losses.dtype)
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--engine", default="local", choices=("local", "ray"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.engine, arguments.cells, arguments.slots)


def measure(folder: Path, engine_name: str, count: int, slots: int) -> None:
    plugin = folder / "sleeps.py"
    plugin.write_text(SLEEPS, encoding="utf-8")
    flags = {"dataset": DATA, "models": "shared-bottom", "balancers": [str(plugin)]}
    grid = read_grid(None, flags | {"references": [], "seeds": count}, ["epochs=1"])
    store = ResultStore(folder / "results")
    store.make()
    cells = make_plan(grid, *prepare(DATA, folder / "data"), store).to_run

    execution = ExecutionSettings(engine=engine_name, device="cpu", jobs=slots)
    engine = make_engine(store, folder / "data", execution)
    if engine_name == "local":
        start_early("cpu")
    began = time.monotonic()
    ends = []
    for record in engine.run(cells):
        assert record.ok, record.error
        ends.append(time.monotonic() - began)

    ideal = count / slots
    print(f"{engine_name}: {count} cells on {slots} slots in {ends[-1]:.1f} s, ideal {ideal:g} s")
    print(f"first cell after {ends[0]:.1f} s; from there {(ends[-1] - ends[0]) / (ideal - 1):.3f}x")


if __name__ == "__main__":
    main()
