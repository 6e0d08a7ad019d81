"""Where cells run: on this machine, or on a cluster; both through the same door."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mtlkit.errors import MissingError, UsageError
from mtlkit.grid.engines.engine import Engine
from mtlkit.grid.engines.team import Place, TeamEngine, launched_place
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

NO_GRAPH = "compile=graph records steps on a GPU, but cells run on the CPU."


def make_engine(store: ResultStore, home: Path, execution: ExecutionSettings) -> Engine:
    """The engine that the settings ask for.

    Raises:
        UsageError: The settings do not fit the engine.
        MissingError: A device, or what the engine needs, is not there.
    """
    place = launched_place()
    if place is not None or execution.processes > 1:
        _check_processes(execution, place)
    elif execution.shard_rows is not None:
        message = "shard_rows spreads tables over the processes of a cell, which has one."
        raise UsageError(message, "--processes 2")
    if execution.engine == "ray":
        if execution.stack not in ("auto", 1):
            raise UsageError("The engine ray runs cells one by one.", "--set stack=1")
        if execution.compile == "graph" and execution.device == "cpu":
            raise UsageError(NO_GRAPH, "--set compile=off")
        from mtlkit.grid.engines.ray import RayEngine

        return RayEngine(store, home, execution)
    for name in ("address", "gpus_per_cell"):
        if getattr(execution, name) is not None:
            raise UsageError(
                f"{name} is a setting of the engine ray, but cells run on the engine local.",
                "mtlkit bench --engine ray",
            )
    from mtlkit.grid.engines.local import LocalEngine
    from mtlkit.grid.machine import resolve_devices, visible_gpus

    device = resolve_devices(execution.device)[0]
    if execution.compile == "graph" and device.type == "cpu":
        raise UsageError(NO_GRAPH, "--set compile=off")
    if place is not None:
        return TeamEngine(store, home, execution, place)
    gpus = len(visible_gpus())
    if device.type == "cuda" and execution.processes > max(1, gpus):
        raise MissingError(
            f"{execution.processes} processes need a GPU each, and {gpus} are here.",
            f"mtlkit bench --processes {gpus}",
        )
    return LocalEngine(store, home, execution)


def _check_processes(execution: ExecutionSettings, place: Place | None) -> None:
    """Look that cells can run over several processes; ``place`` is that of a launcher.

    Raises:
        UsageError: They cannot.
        MissingError: What shards tables is not installed.
    """
    if execution.engine == "ray":
        raise UsageError(
            "The engine ray runs each cell in one process.", "mtlkit bench --engine local"
        )
    if execution.compile == "graph":
        raise UsageError("compile=graph records the steps of one process.", "--set compile=off")
    if execution.stack not in ("auto", 1):
        raise UsageError("Cells that are stacked are trained by one process.", "--set stack=1")
    if execution.shard_rows is not None:
        for name in ("checkpoint_every", "init_from", "save_weights"):
            if getattr(execution, name) not in (None, "none"):
                message = f"{name} asks for whole tables, but with shard_rows no process has one."
                raise UsageError(message, f"leave {name} out, or shard_rows")
        if importlib.util.find_spec("torchrec") is None:
            message = "shard_rows needs TorchRec, which is not installed."
            hint = "pip install 'mtlkit[torchrec]' && pip install --no-deps torchrec==1.8.0"
            raise MissingError(message, hint)
    if place is None:
        return
    if execution.processes not in (1, place.processes):
        raise UsageError(
            f"--processes {execution.processes} does not fit: {place.processes} were started.",
            "leave --processes out: what was started counts",
        )

    # one cell at a time, which nobody watches from outside
    usual = {"jobs": (None, 1), "timeout": (None,)}
    for name, values in usual.items():
        if getattr(execution, name) not in values:
            raise UsageError(
                f"{name} does not fit: the {place.processes} processes that were started train one "
                "cell after another.",
                f"leave {name} out, or start one process: mtlkit bench --processes 2",
            )
