"""Where cells run: on this machine, or on a cluster; both through the same door."""

from __future__ import annotations

from pathlib import Path

from mtlkit.errors import UsageError
from mtlkit.grid.engines.engine import Engine
from mtlkit.grid.engines.team import Place, TeamEngine, launched_place
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore


def make_engine(store: ResultStore, home: Path, execution: ExecutionSettings) -> Engine:
    """The engine that the settings ask for.

    Raises:
        UsageError: The settings do not fit the engine.
        MissingError: A device, or what the engine needs, is not there.
    """
    place = launched_place()
    if place is not None or execution.processes > 1:
        _check_processes(execution, place)
    if execution.engine == "ray":
        if execution.stack not in ("auto", 1):
            raise UsageError("The engine ray runs cells one by one.", "--set stack=1")
        from mtlkit.grid.engines.ray import RayEngine

        return RayEngine(store, home, execution)
    for name in ("address", "gpus_per_cell"):
        if getattr(execution, name) is not None:
            raise UsageError(
                f"{name} is a setting of the engine ray, but cells run on the engine local.",
                "mtlkit bench --engine ray",
            )
    from mtlkit.grid.engines.local import LocalEngine
    from mtlkit.grid.machine import resolve_devices

    resolve_devices(execution.device)
    if place is not None:
        return TeamEngine(store, home, execution, place)
    return LocalEngine(store, home, execution)


def _check_processes(execution: ExecutionSettings, place: Place | None) -> None:
    """Look that cells can run over several processes; ``place`` is that of a launcher.

    Raises:
        UsageError: They cannot.
    """
    if execution.engine == "ray":
        raise UsageError(
            "The engine ray runs each cell in one process.", "mtlkit bench --engine local"
        )
    if place is not None and execution.processes not in (1, place.processes):
        raise UsageError(
            f"--processes {execution.processes} does not fit: {place.processes} were started.",
            "leave --processes out: what was started counts",
        )
