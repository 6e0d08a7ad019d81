"""What every worker needs and no cell changes. Workers are forked from a process that has imported
this module once.

Nothing in here may start a thread or touch a GPU: neither survives a fork. What fails to load is
left to the workers, where it fails again and becomes a record.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil
from contextlib import suppress

import numba

from mtlkit.registry import REGISTRIES


@numba.njit(cache=True)
def _nothing() -> int:
    return 0


def _load() -> None:
    importlib.import_module("mtlkit.grid.run_cell")
    importlib.import_module(
        "torch._dynamo"
    )  # the first optimiser of a process would import it: seconds
    for registry in REGISTRIES.values():
        package = importlib.import_module(f"mtlkit.{registry.folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    _nothing()  # readies numba's compiler, so that a worker's first kernel only has to come out of its cache


with suppress(Exception):
    _load()
gc.collect()
gc.freeze()  # the workers' collector leaves alone what is imported here, and so do its writes: the pages stay shared
