"""What every worker needs and no cell changes; workers are forked from a process that imported it.

Nothing in here may start a thread or touch a GPU: neither survives a fork. What fails to load is
left to the workers, where it fails again and becomes a record.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pkgutil
import signal
import sys
from contextlib import suppress
from types import TracebackType

from mtlkit.registry import BALANCERS, DATASETS, LOSSES, MODELS

PR_SET_PDEATHSIG = 1


def _die_with_driver(signal_number: int) -> None:
    """Have the kernel send this process a signal when the driver dies; 0 for none."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def _tell_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What Python says of an error that nobody caught; but that the driver was interrupted while it
    asked for a worker, so that its request ends too early, is none.
    """
    if not isinstance(error, EOFError):
        sys.__excepthook__(kind, error, trace)


def _nothing() -> int:
    return 0


def _load() -> None:
    importlib.import_module("mtlkit.grid.stacking")
    importlib.import_module("mtlkit.grid.global_state")

    # the first optimiser of a process would import it, which takes seconds
    importlib.import_module("torch._dynamo")

    # the first final scores would import this
    importlib.import_module("pandas")

    # not the baselines: they would bring scikit-learn, which most grids never need
    for registry in (MODELS, BALANCERS, DATASETS, LOSSES):
        package = importlib.import_module(f"mtlkit.{registry.folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")

    # readies numba's compiler: a worker's first kernel then only has to come out of its cache
    numba_module = importlib.import_module("mtlkit.ops._numba")
    numba_module.njit()(_nothing)()


# Imports take seconds, in which nobody looks whether there still is a driver. Later the server does
# that by itself, and must not end with the thread that started it. What is imported is no garbage.
_die_with_driver(signal.SIGKILL)
parent = str(os.getppid())
if os.environ.get("MTLKIT_DRIVER", parent) != parent:
    sys.exit()  # it died before that, as over a name that was mistyped
sys.excepthook = _tell_error
gc.disable()
with suppress(Exception):
    _load()
_die_with_driver(0)

# The workers' garbage collector leaves alone what is imported here, so it does not write to these
# pages of memory either, and they stay shared.
gc.freeze()
gc.enable()
