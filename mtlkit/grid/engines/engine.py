"""The door of every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mtlkit.records import Cell, RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

Progress = Callable[[Cell, float], None]
"""Called with a cell and the share of it that is done; 0 when it starts."""

Tell = Callable[[str], None]  # called with a sentence for the user


class Engine(ABC):
    """Runs cells and stores what comes of them.

    Attributes:
        stopping: Whether no further cell is started.
    """

    def __init__(self, store: ResultStore, home: Path, execution: ExecutionSettings) -> None:
        self.store = store
        self.home = home
        self.execution = execution
        self.stopping = False

    @abstractmethod
    def run(
        self, cells: Sequence[Cell], progress: Progress = ..., tell: Tell = ...
    ) -> Iterator[RunRecord]:
        """Run cells and yield their records as they finish and are stored, in no particular order.

        Stopping the iteration ends what runs. ``progress`` is told how far each cell is, ``tell``
        of trouble.
        """

    def finish_running(self) -> None:
        """Start no further cell; those that run are finished."""
        self.stopping = True
