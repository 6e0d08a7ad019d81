"""The door of every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from mtlkit.records import Cell, RunRecord

Progress = Callable[[Cell, float], None]
"""Called with a cell and the share of it that is done; 0 when it starts."""

Tell = Callable[[str], None]  # called with a sentence for the user


class Engine(Protocol):
    """Runs cells and stores what comes of them."""

    def run(
        self, cells: Sequence[Cell], progress: Progress = ..., tell: Tell = ...
    ) -> Iterator[RunRecord]:
        """Run cells and yield their records as they finish and are stored, in no particular order.

        Stopping the iteration ends what runs. ``progress`` is told how far each cell is, ``tell``
        of trouble.
        """

    def finish_running(self) -> None:
        """Start no further cell; those that run are finished."""
