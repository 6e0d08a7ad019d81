"""What all cells of a process share and none of them may change."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

ENVIRONMENT = ("CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES", "MTLKIT_DATA", "OMP_NUM_THREADS")
"""Variables that libraries read again and again."""


@dataclass(frozen=True)
class GlobalState:
    """Settings of a process on which the numbers of a cell depend, or may depend."""

    grad_mode: bool
    inference_mode: bool
    anomaly_detection: bool
    autocast: bool
    default_dtype: torch.dtype
    default_device: torch.device
    threads: int
    deterministic_algorithms: tuple[bool, bool]
    matmul_precision: str
    cudnn: tuple[bool, bool, bool, bool]
    denormals_are_zero: bool
    numpy_errors: tuple[object, ...]
    working_directory: Path
    environment: tuple[str | None, ...]

    @classmethod
    def now(cls) -> GlobalState:
        """The state of this process."""
        cudnn = torch.backends.cudnn
        smallest = torch.tensor(1e-310, dtype=torch.float64)
        return cls(
            grad_mode=torch.is_grad_enabled(),
            inference_mode=torch.is_inference_mode_enabled(),
            anomaly_detection=torch.is_anomaly_enabled(),
            autocast=torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
            default_dtype=torch.get_default_dtype(),
            default_device=torch.get_default_device(),
            threads=torch.get_num_threads(),
            deterministic_algorithms=(
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            matmul_precision=torch.get_float32_matmul_precision(),
            cudnn=(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
            denormals_are_zero=bool(smallest * 1 == 0),
            numpy_errors=tuple(np.geterr().values()),
            working_directory=Path.cwd(),
            environment=tuple(os.environ.get(name) for name in ENVIRONMENT),
        )

    def changes(self) -> list[str]:
        """What has changed in this process since, in words."""
        current = GlobalState.now()
        return [
            field.name.replace("_", " ")
            for field in fields(self)
            if getattr(self, field.name) != getattr(current, field.name)
        ]


@contextmanager
def same_start() -> Iterator[None]:
    """A cell that runs in here finds the random state and the filters of warnings that any other
    one finds, whatever ran before it.
    """
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  plugins may still draw from it
    random.seed(0)
    with warnings.catch_warnings():
        yield
