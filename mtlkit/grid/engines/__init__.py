"""Where cells run: on this machine, or on a cluster; both through the same door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from mtlkit.errors import UsageError
from mtlkit.records import Cell, RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

Progress = Callable[[Cell, float], None]
"""Called with a cell and the share of it that is done; 0 when it starts."""

Tell = Callable[[str], None]
"""Called with a sentence for the user."""


class Engine(Protocol):
    """Runs cells and stores what comes of them."""

    def run(
        self, cells: Sequence[Cell], progress: Progress = ..., tell: Tell = ...
    ) -> Iterator[RunRecord]:
        """Run cells and yield their records as they finish and are stored, in no particular order.

        Stopping the iteration ends what runs.
        """

    def finish_running(self) -> None:
        """Start no further cell; those that run are finished."""


def make_engine(store: ResultStore, home: Path, execution: ExecutionSettings) -> Engine:
    """The engine that the settings ask for.

    Raises:
        UsageError: The settings do not fit the engine.
        MissingError: A device, or what the engine needs, is not there.
    """
    if execution.engine == "ray":
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
    return LocalEngine(store, home, execution)
