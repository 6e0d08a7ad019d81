"""Randomness by named source: what one source draws never shifts what another one draws."""

from __future__ import annotations

import hashlib
import random
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch

Source = Literal["init", "shuffle", "dropout", "balancer", "fresh", "probe", "validation", "rows"]


def seed_for(seed: int, source: Source) -> int:
    """A 63-bit seed for one source of a run's randomness.

    The balancer's name does not enter it, so runs under different balancers are paired.
    """
    digest = hashlib.sha256(f"{seed}/{source}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, source: Source) -> torch.Generator:
    """A CPU generator for one source."""
    return torch.Generator().manual_seed(seed_for(seed, source))


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all global sources of random numbers, as tensors and numbers."""
    name, keys, *position = np.random.get_state()  # noqa: NPY002  plugins may draw from it
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *position],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: dict[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    name, keys, *position = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *position))  # noqa: NPY002
    random.setstate(state["python"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def keep_random_state(device: torch.device) -> AbstractContextManager[None]:
    """A context that leaves PyTorch's global random state as it was, on the CPU and on a GPU."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)
