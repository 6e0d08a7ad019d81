"""Several trainings in one process that take turns, a window of steps at a time.

A window of each is timed in every round, so that a machine that slows down slows all of them, and
nothing of a training is rebuilt between rounds. Only the one whose turn it is runs; the others
wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

Pause = Callable[[float], None]
"""Called by a training at the end of a window with the seconds that it has trained for so far."""


class _Runner:
    """A training in a thread of its own, which runs only between ``turn`` and the next pause."""

    def __init__(self, run: Callable[[Pause], None]) -> None:
        self.windows: list[float] = []
        self.error: BaseException | None = None
        self.done = False
        self._run = run
        self._seconds_before = 0.0

        # The turn passes to the training by the first, and back from it by the second.
        self._to_training = threading.Semaphore(0)
        self._from_training = threading.Semaphore(0)
        threading.Thread(target=self._train, daemon=True).start()

    def turn(self) -> None:
        """Let it run until its window ends."""
        self._to_training.release()
        self._from_training.acquire()
        if self.error is not None:
            raise self.error

    def _train(self) -> None:
        self._to_training.acquire()
        try:
            self._run(self._pause)
        except BaseException as error:  # raised again in the thread that gave the turn
            self.error = error
        self.done = True
        self._from_training.release()

    def _pause(self, seconds: float) -> None:
        self.windows.append(seconds - self._seconds_before)
        self._seconds_before = seconds
        self._from_training.release()
        self._to_training.acquire()


def take_turns(runs: Mapping[str, Callable[[Pause], None]]) -> dict[str, list[float]]:
    """Seconds of each training's windows; the first, in which everything is warmed up, is left out.

    Args:
        runs: Name to a training, all of them with as many windows.
    """
    runners = {name: _Runner(run) for name, run in runs.items()}
    order = list(runners.values())
    while any(not runner.done for runner in order):
        for runner in order:
            if not runner.done:
                runner.turn()
        order.reverse()  # so that none always runs after the same other one
    return {name: runner.windows[1:] for name, runner in runners.items()}
