"""Checkpoints: the state of a run in the middle, from which a stopped one goes on."""

from __future__ import annotations

import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mtlkit._version import __version__
from mtlkit.files import reason_of, replacing
from mtlkit.settings import read_interval

FORMAT = 1


class Checkpoints:
    """Where the state of a run is written, and when.

    Args:
        file: The file; each checkpoint takes the place of the one before.
        key: Of the cell: the checkpoint of another is refused.
        every: ``10m``, or a share of the run such as ``0.1``.
        tell: Told once that none can be written.
    """

    def __init__(
        self, file: Path, key: str, every: str, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.file, self.key, self.tell = file, key, tell
        self.seconds, self.share = read_interval(every)
        self.asked = False
        self._failed = False
        self._terminate: Callable[[], None] = lambda: None

    @contextmanager
    def watch(self, steps: int, total_steps: int) -> Iterator[None]:
        """A run of ``total_steps`` steps, ``steps`` of them done, goes on in here. SIGTERM no
        longer ends it at once: :meth:`due` becomes true, and :meth:`save` passes the signal on.
        """
        self._interval = total_steps if self.share is None else max(1, self.share * total_steps)
        self._settle(steps)
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread alone
            return

        before = signal.signal(signal.SIGTERM, self._ask)

        def terminate() -> None:
            signal.signal(signal.SIGTERM, before)
            signal.raise_signal(signal.SIGTERM)

        self._terminate = terminate
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def due(self, steps: int) -> bool:
        """Whether a checkpoint should be written after so many steps."""
        if self.asked or self.seconds is None:
            return self.asked or steps >= self._next_step
        return time.monotonic() >= self._next_time

    def save(self, steps: int, state: dict[str, Any]) -> None:
        """Write the state after so many steps, in one step; then let SIGTERM take its course."""
        saved = {"format": FORMAT, "version": __version__, "key": self.key, "state": state}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as handle:
                torch.save(saved, handle)
        except (OSError, RuntimeError) as error:  # of torch, which wraps a full disk
            reason = reason_of(error) if isinstance(error, OSError) else str(error).split("\n")[0]
            if not self._failed:
                self.tell(f"no checkpoint could be written: {reason}")
            self._failed = True
        self._settle(steps)
        if self.asked:
            self._terminate()

    def load(self) -> dict[str, Any] | None:
        """The state that was written last; None if there is none.

        Raises:
            ValueError: The file is damaged, or that of another run or version.
        """
        if not self.file.is_file():
            return None
        try:
            # PyTorch reads numbers without their checksum
            with zipfile.ZipFile(self.file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} differs")
            saved = torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:  # damage has many names
            raise ValueError("it is damaged") from error
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise ValueError("it is of another format")
        if saved.get("key") != self.key:
            raise ValueError("it is that of another run")
        if saved.get("version") != __version__:
            raise ValueError(f"it was written by mtlkit {saved.get('version')}")
        return dict(saved["state"])

    def _settle(self, steps: int) -> None:
        """Say when the next one is due."""
        self._next_step = (steps // self._interval + 1) * self._interval
        self._next_time = time.monotonic() + (self.seconds or 0)

    def _ask(self, *signal_and_frame: object) -> None:
        self.asked = True
