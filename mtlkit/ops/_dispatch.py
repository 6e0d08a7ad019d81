"""The one place that decides between a compiled kernel and the plain PyTorch form beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.float64)

_plain_only: ContextVar[bool] = ContextVar("plain_only", default=False)


def use_kernel(*tensors: Tensor) -> bool:
    """Whether a compiled kernel may serve these tensors.

    It may on the CPU, where all tensors are of one type that kernels have, and where neither
    ``torch.compile`` nor autocast nor :func:`plain_operations` asks for PyTorch's own operations.
    """
    # first of all: while compiling nothing else may be asked
    if torch.compiler.is_compiling():
        return False
    if _plain_only.get() or torch.is_autocast_enabled("cpu"):
        return False
    first = tensors[0]
    if first.dtype not in KERNEL_DTYPES:
        return False
    return all(tensor.is_cpu and tensor.dtype == first.dtype for tensor in tensors)


def launches(tensor: Tensor) -> bool:
    """Whether operations on a tensor are launched one by one, so that few are better than fast
    ones: on a GPU, where no compiler puts them together.
    """
    return not torch.compiler.is_compiling() and tensor.is_cuda


@contextmanager
def plain_operations() -> Iterator[None]:
    """Take the plain form of every operation, as when its matrix products are counted."""
    token = _plain_only.set(True)
    try:
        yield
    finally:
        _plain_only.reset(token)
