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
    def __init__(self, run: Callable[[Pause], None]) -> None:
        self.windows: list[float] = []
        self.error: BaseException | None = None
        self.done = False
        self._run = run
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._before = 0.0
        self.thread = threading.Thread(target=self._life, daemon=True)
        self.thread.start()

    def turn(self) -> None:
        """Let it run until its window ends."""
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def _life(self) -> None:
        self._go.acquire()
        try:
            self._run(self._pause)
        except BaseException as error:
            self.error = error
        self.done = True
        self._back.release()

    def _pause(self, seconds: float) -> None:
        self.windows.append(seconds - self._before)
        self._before = seconds
        self._back.release()
        self._go.acquire()


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
        order.reverse()
    return {name: runner.windows[1:] for name, runner in runners.items()}
