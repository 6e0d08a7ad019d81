"""Where the seconds of a run go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Activity = Literal["train", "evaluation", "probe"]


class RunTimer:
    """Adds up the seconds of a run by activity.

    Args:
        device: Where the work is done. A GPU works behind the host's back, so the timer waits for
            it at the end of an activity.

    Attributes:
        seconds: ``train_seconds``, ``evaluation_seconds`` and ``probe_seconds``; after
            :meth:`stop`, ``total_seconds`` as well.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = {"train_seconds": 0.0, "evaluation_seconds": 0.0, "probe_seconds": 0.0}
        self._began = 0.0

    def start(self) -> None:
        """Start the clock of the whole run."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock of the whole run."""
        self.seconds["total_seconds"] = time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far, those of the whole run included."""
        return {"seconds": dict(self.seconds), "elapsed": time.perf_counter() - self._began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the seconds of :meth:`state_dict`."""
        self.seconds.update(state["seconds"])
        self._began = time.perf_counter() - state["elapsed"]

    @contextmanager
    def measure(self, activity: Activity) -> Iterator[None]:
        """Add the seconds of a ``with`` block to an activity, unless the block raises."""
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[f"{activity}_seconds"] += time.perf_counter() - began
