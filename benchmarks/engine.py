"""What an engine costs beside its cells: cells of one second each, against the ideal.

Each cell sleeps for its second in its first step: an ordinary one in a worker that is used again
and again, a plugin in a process of its own. The time until the first cell has ended is told apart,
and so is the CPU time of all processes, which says more on a machine that others use.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

from mtlkit.data.sources import prepare
from mtlkit.grid.engines import make_engine, processes
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

DATA = "synthetic[rows=200,d=4]"
PLUGIN = '''"""Sleeps for a second in its first step."""

import time

from mtlkit import Balancer


class Sleeps(Balancer):
    def forward(self, step):
        if step.index == 0:
            time.sleep(1)
        return step.active.to(step.losses.dtype)
'''
# what workers are forked from: the balancer uniform sleeps, and is no plugin
PRELOAD = """import time

import mtlkit.grid.engines.preload
from mtlkit.balancers.uniform import Uniform

plain_forward = Uniform.forward


def forward(self, step):
    if step.index == 0:
        time.sleep(1)
    return plain_forward(self, step)


Uniform.forward = forward
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--engine", default="local", choices=("local", "ray"))
    parser.add_argument("--kind", default="ordinary", choices=("ordinary", "plugin"))
    arguments = parser.parse_args()
    if arguments.engine == "ray" and arguments.kind == "ordinary":
        parser.error("on Ray only a plugin sleeps: --kind plugin")
    with tempfile.TemporaryDirectory() as folder:
        balancer = make_sleepy(Path(folder), arguments.kind)
        measure(Path(folder), balancer, arguments.engine, arguments.cells, arguments.slots)


def make_sleepy(folder: Path, kind: str) -> str:
    """A balancer that sleeps; its name."""
    if kind == "plugin":
        plugin = folder / "sleeps.py"
        plugin.write_text(PLUGIN, encoding="utf-8")
        return str(plugin)
    (folder / "sleepy_preload.py").write_text(PRELOAD, encoding="utf-8")
    paths = [str(folder), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    processes.PRELOAD = "sleepy_preload"
    return "uniform"


def measure(folder: Path, balancer: str, engine_name: str, count: int, slots: int) -> None:
    flags = {"dataset": DATA, "models": "shared-bottom", "balancers": [balancer]}
    grid = read_grid(None, flags | {"references": [], "seeds": count}, ["epochs=1"])
    store = ResultStore(folder / "results")
    store.make()
    cells = make_plan(grid, *prepare(DATA, folder / "data"), store).to_run

    execution = ExecutionSettings(engine=engine_name, device="cpu", jobs=slots)
    engine = make_engine(store, folder / "data", execution)
    if engine_name == "local":
        processes.start_early("cpu")
    began = time.monotonic()
    ends = []
    for record in engine.run(cells):
        assert record.ok, record.error
        ends.append(time.monotonic() - began)
        if len(ends) == 1 and engine_name == "local":
            cpu_before = cpu_seconds()

    ideal = count / slots
    if engine_name == "local":
        time.sleep(1)  # until the last worker has ended
        cpu = (cpu_seconds() - cpu_before) / (count - 1)
        print(f"a cell costs {cpu * 1e3:.0f} ms of CPU time, in all processes")
    print(f"{engine_name}: {count} cells on {slots} slots in {ends[-1]:.1f} s, ideal {ideal:g} s")
    print(f"first cell after {ends[0]:.1f} s; from there {(ends[-1] - ends[0]) / (ideal - 1):.3f}x")


def cpu_seconds() -> float:
    """CPU time so far of this process, the fork server, and the workers that have ended."""
    server = forkserver._forkserver._forkserver_pid
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # its own in user and system, and those of its children
    return ticks / os.sysconf("SC_CLK_TCK") + time.process_time()


if __name__ == "__main__":
    main()
