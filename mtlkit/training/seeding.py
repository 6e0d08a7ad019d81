"""Randomness by named source, so that what one part draws never shifts what another sees."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Source = Literal["init", "shuffle", "dropout", "balancer", "fresh", "probe", "validation"]


def seed_for(seed: int, source: Source) -> int:
    """A 63-bit seed for one source of a run's randomness. The balancer's name is no part of it, so
    runs are paired.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}".encode()).digest()[:8], "big") >> 1


def generator(seed: int, source: Source) -> torch.Generator:
    """A CPU generator for one source."""
    return torch.Generator().manual_seed(seed_for(seed, source))
