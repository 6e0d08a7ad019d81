"""What every worker needs and no cell changes; workers are forked from a process that imported it.

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

    # the first optimiser of a process would import it, which takes seconds
    importlib.import_module("torch._dynamo")

    for registry in REGISTRIES.values():
        package = importlib.import_module(f"mtlkit.{registry.folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")

    # readies numba's compiler: a worker's first kernel then only has to come out of its cache
    _nothing()


with suppress(Exception):
    _load()

# The workers' garbage collector leaves alone what is imported here, so it does not write to these
# pages of memory either, and they stay shared.
gc.collect()
gc.freeze()
