"""How a cell computes: deterministic algorithms, and the precision of products on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Read by cuBLAS when CUDA starts; deterministic products need a fixed workspace."""


@contextmanager
def numerics(training: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """What the settings ``deterministic`` and ``matmul`` mean, as long as a cell runs; afterwards
    the process is as it was, also if the cell fails.

    It is entered before anything asks for CUDA.

    Args:
        training: Training settings as plain values.
        device: Of the cell; ``matmul`` means something on a GPU alone.
    """
    deterministic = bool(training.get("deterministic", False))
    tf32 = training.get("matmul", "fp32") == "tf32" and device.type == "cuda"
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.benchmark, cudnn.deterministic
    precision = torch.get_float32_matmul_precision()
    workspace = os.environ.get(WORKSPACE)
    try:
        if deterministic:
            os.environ.setdefault(WORKSPACE, ":4096:8")
            torch.use_deterministic_algorithms(True)
            cudnn.benchmark, cudnn.deterministic = False, True
        if tf32:
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        if deterministic:
            torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
            cudnn.benchmark, cudnn.deterministic = flags
            if workspace is None:
                os.environ.pop(WORKSPACE, None)
        if tf32:
            torch.set_float32_matmul_precision(precision)
