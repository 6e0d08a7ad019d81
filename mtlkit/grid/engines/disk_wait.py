"""Results that cannot be written now: they are kept, and tried again until there is room."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mtlkit.errors import MissingError
from mtlkit.files import reason_of
from mtlkit.grid.engines.engine import Tell

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before what could not be written is written again; each is twice as long as the last."""


def write_patiently(write: Callable[[], object], fails: Callable[[str], None]) -> None:
    """Write, as often as it takes; ``fails`` hears why each attempt failed, and may end it."""
    pause = FIRST_PAUSE
    while True:
        try:
            write()
            return
        except OSError as error:
            fails(reason_of(error))
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


@dataclass
class DiskWait:
    """How long a grid has waited for room under ``root``, of the seconds that it may."""

    root: Path
    seconds: float
    tell: Tell
    since: float | None = None
    reason: str = ""

    def write(self, write: Callable[[], object]) -> None:
        """Write, as often as it takes; a :class:`MissingError` if that is too long."""
        write_patiently(write, self.lacks_room)
        self.has_room()

    def lacks_room(self, reason: str) -> None:
        """Something cannot be written: tell it once, and :meth:`check`."""
        self.reason = reason
        if self.since is None:
            self.since = time.monotonic()
            self.tell(
                f"Results cannot be written to {self.root}: {reason}. Finished cells wait in "
                f"memory for {self.seconds:g} seconds; make room there."
            )
        self.check()

    def check(self) -> None:
        """Raise a :class:`MissingError` if it has been too long."""
        if self.since is not None and time.monotonic() - self.since >= self.seconds:
            raise MissingError(
                f"Results cannot be written to {self.root}: {self.reason}.",
                "make room there, and run the same command again: what was stored is kept",
            )

    def has_room(self) -> None:
        """All is written."""
        if self.since is not None:
            self.since = None
            self.tell(f"Results can be written to {self.root} again.")
