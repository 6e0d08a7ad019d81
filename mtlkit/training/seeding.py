"""Randomness by named source: what one source draws never shifts what another one draws."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Source = Literal["init", "shuffle", "dropout", "balancer", "fresh", "probe", "validation"]


def seed_for(seed: int, source: Source) -> int:
    """A 63-bit seed for one source of a run's randomness.

    The balancer's name does not enter it, so runs under different balancers are paired.
    """
    digest = hashlib.sha256(f"{seed}/{source}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, source: Source) -> torch.Generator:
    """A CPU generator for one source."""
    return torch.Generator().manual_seed(seed_for(seed, source))
