"""Faults of a Ray cluster and of joined results folders."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from mtlkit.store import RECORD
from tests.campaign.faults import (
    CHANGES,
    DAMAGES,
    ENDS,
    ENDS_OF_TWO,
    FAILED,
    INTERRUPTED,
    KILLED,
    MISSING,
    MOODS,
    OK,
    Fault,
    changed,
    damaged,
    empty,
    fill_up,
    full_for_a_while,
    in_a_mood,
    on_a_disk,
    record_file,
    remount,
    remove,
    runs,
    stop_and_go,
    struck,
    surely,
    to_driver,
    to_worker,
    two_at_once,
)
from tests.campaign.processes import COMMAND, REPOSITORY, Grid, read_process
from tests.conftest import CommandResult, parent

ON_RAY = (*COMMAND, "--engine", "ray")
RAYLET, TASK = b"raylet/raylet", b"ray::run_on_node"
"""How the command lines of processes of Ray begin, or what they hold."""

RAY_SECONDS = 180.0
"""Seconds in which Ray's own processes must notice that their driver was killed: its agents first
try for two minutes to reach the server that has gone.
"""

NODE_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(REPOSITORY),
}
NODE_MEMORY = {"object_store_memory": 80 * 2**20}
CLUSTER_LOCK = threading.Lock()

Act = Callable[[Grid], CommandResult | None]


def on_ray(act: Act) -> Act:
    """The same on a cluster that the command starts; later it is resumed without."""

    def act_there(grid: Grid) -> CommandResult | None:
        grid.command = ON_RAY
        grid.orphan_seconds = RAY_SECONDS
        return act(grid)

    return act_there


def to_ray(name: bytes) -> Callable[[Grid], None]:
    """SIGKILL to the processes of Ray with this name."""

    def strike(grid: Grid) -> None:
        for pid in grid.family():
            if name in read_process(pid, "cmdline"):
                os.kill(pid, signal.SIGKILL)

    return strike


# --- a cluster that many faults share: starting one is dear


@cache
def shared_cluster() -> Any:
    """A head that runs no cells, and two nodes that do; it ends with this process."""
    from ray.cluster_utils import Cluster

    with around_nodes():
        head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head | NODE_MEMORY)
        atexit.register(cluster.shutdown)
        add_node(cluster)
        add_node(cluster)
        return cluster


@contextmanager
def around_nodes() -> Iterator[None]:
    """What a node is started in. Ray would take SIGTERM for itself, and only the main thread may."""
    handler = mock.patch("ray._private.utils.set_sigterm_handler")
    with mock.patch.dict(os.environ, NODE_ENVIRONMENT), handler:
        os.environ.pop("MTLKIT_DATA", None)
        yield


def add_node(cluster: Any) -> None:
    with around_nodes():
        cluster.add_node(num_cpus=2, node_ip_address="127.0.0.1", **NODE_MEMORY)
        cluster.wait_for_nodes()


def shared(act: Act) -> Act:
    """The same on the shared cluster; later it is resumed without."""

    def act_there(grid: Grid) -> CommandResult | None:
        with CLUSTER_LOCK:
            address = shared_cluster().address
        grid.command = (*ON_RAY, "--address", address)
        grid.variables = NODE_ENVIRONMENT  # else Ray takes another address of this machine
        grid.orphan_seconds = RAY_SECONDS
        return act(grid)

    return act_there


def to_task(moment: str, number: int) -> Callable[[Grid], None]:
    """To the process of Ray that waits for the cell that is held."""
    return lambda grid: os.kill(parent(grid.server(moment)), number)


def to_node(moment: str, number: int) -> Callable[[Grid], None]:
    """To all processes of the node on which a cell is held; another node takes its place."""

    def strike(grid: Grid) -> None:
        raylet = parent(parent(grid.server(moment)))
        with CLUSTER_LOCK:
            cluster = shared_cluster()
            (node,) = (node for node in cluster.worker_nodes if raylet_of(node) == raylet)
            cluster.remove_node(node, allow_graceful=number == signal.SIGTERM)
            add_node(cluster)

    return strike


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def shared_faults() -> Iterator[Fault]:
    kind = "shared cluster"
    ends, some = (FAILED, MISSING), (OK, FAILED)
    for moment in ("training", "writing"):
        # the command
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP):
            act = struck(moment, to_driver(number), held=number != signal.SIGINT)
            yield Fault(
                kind, f"{number.name} to the command in {moment}", ENDS[number], shared(act)
            )
        act = struck(moment, surely(to_driver(signal.SIGINT, signal.SIGINT)))
        yield Fault(kind, f"Ctrl-C twice in {moment}", ENDS_OF_TWO, shared(act))

        # a cell, the task around it, and its node
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV):
            act = struck(moment, to_worker(moment, number), held=False)
            yield Fault(kind, f"{number.name} to a cell in {moment}", some, shared(act))
        for number in (signal.SIGTERM, signal.SIGKILL):
            act = struck(moment, to_task(moment, number), held=False)
            yield Fault(kind, f"{number.name} to a task in {moment}", some, shared(act))
            act = struck(moment, to_node(moment, number), held=False)
            yield Fault(kind, f"{number.name} to a node in {moment}", some, shared(act))

        # the results folder
        act = on_a_disk("out", moment, fill_up, empty)
        yield Fault(kind, f"results full from {moment}", ends, shared(act))
        act = struck(moment, remove("out"), held=False)
        yield Fault(kind, f"out is removed in {moment}", (*some, MISSING), shared(act))
        name = f"two grids at once, the second in {moment}"
        yield Fault(kind, name, (OK,), shared(two_at_once(moment)))

    yield Fault(
        kind,
        "a cell is stopped, and continued",
        (OK,),
        shared(struck("training", stop_and_go, held=False)),
    )
    short = on_a_disk("out", "training", full_for_a_while, empty)
    yield Fault(kind, "results full for a while", (OK, *ends), shared(short))
    act = on_a_disk("out", "training", lambda f: remount(f, "ro"), lambda f: remount(f, "rw"))
    yield Fault(kind, "results read-only from training", ends, shared(act))
    for mood in MOODS:
        yield Fault(kind, f"the plugin: {mood}", (FAILED,), shared(in_a_mood(mood)))
    for damage in DAMAGES:
        act = shared(damaged(record_file, damage))
        yield Fault(kind, f"record.json {damage.__name__}", (OK,), act, True)
    for name, change in CHANGES.items():
        yield Fault(kind, name, (OK,), shared(changed(change)), True)


# --- a cluster that the command starts itself


def ray_faults() -> Iterator[Fault]:
    if importlib.util.find_spec("ray") is None:
        return
    once, twice = to_driver(signal.SIGINT), surely(to_driver(signal.SIGINT, signal.SIGINT))
    killed = to_driver(signal.SIGKILL)
    yield from shared_faults()
    for moment in ("training", "writing"):
        # the command
        for name, ends, strike, held in (
            ("Ctrl-C", ENDS[signal.SIGINT], once, False),
            ("Ctrl-C twice", ENDS_OF_TWO, twice, True),
            ("SIGTERM", ENDS[signal.SIGTERM], to_driver(signal.SIGTERM), True),
            ("SIGKILL", (KILLED,), killed, True),
        ):
            act = on_ray(struck(moment, strike, held=held))
            yield Fault("ray cluster", f"{name} to the command in {moment}", ends, act)

        # a cell, the task around it, and the node, without which there is no cluster
        cell = to_worker(moment, signal.SIGKILL)
        lost = (OK, FAILED, MISSING, INTERRUPTED, KILLED, -signal.SIGABRT)
        for name, ends, strike in (
            ("a cell", (OK, FAILED), cell),
            ("a task", (OK,), to_ray(TASK)),
            ("the only node", lost, to_ray(RAYLET)),
        ):
            act = on_ray(struck(moment, strike, held=False))
            yield Fault("ray cluster", f"SIGKILL to {name} in {moment}", ends, act)


def merged(change: Callable[[Grid, Path], object]) -> Act:
    """Merge a changed copy of the results, after half of them were lost."""

    def act(grid: Grid) -> CommandResult | None:
        other = grid.place.root / "other"
        shutil.copytree(grid.place.out, other)
        for folder in runs(grid)[:2]:
            shutil.rmtree(folder)
        change(grid, other)
        grid.note()
        merge = Grid(grid.place, grid.token, ("merge", "../out", "../other"))
        return merge.run()

    return act


def first_record(other: Path) -> Path:
    return sorted(other.rglob(RECORD))[0]


def damaged_there(damage: Callable[[Path], object]) -> Callable[[Grid, Path], object]:
    return lambda grid, other: damage(first_record(other))


def damaged_here(damage: Callable[[Path], object]) -> Callable[[Grid, Path], object]:
    return lambda grid, other: damage(runs(grid)[0] / RECORD)


def change_numbers(grid: Grid, other: Path) -> None:
    for file in other.rglob(RECORD):
        plain: dict[str, Any] = json.loads(file.read_text())
        plain["metrics"]["test"]["heads"]["auc"] = 0.123
        file.write_text(json.dumps(plain))


def merge_faults() -> Iterator[Fault]:
    whole = merged(lambda grid, other: None)
    yield Fault("merge", "half of the results were lost", (OK,), whole, True)
    for damage in DAMAGES:
        for where, change in (("there", damaged_there(damage)), ("here", damaged_here(damage))):
            name = f"record.json {where} {damage.__name__}"
            yield Fault("merge", name, (OK,), merged(change), True)
    yield Fault("merge", "other numbers", (FAILED,), merged(change_numbers), True)


def cluster_faults() -> Iterator[Fault]:
    """All of them."""
    yield from ray_faults()
    yield from merge_faults()
