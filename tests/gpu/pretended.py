"""A GPU that is not there: numbers live on the CPU, and Python sees them on ``cuda:0``.

A tensor that is moved to the pretended GPU becomes a :class:`PretendedTensor`. Operations compute
on what it holds, as a CPU would. What a GPU would refuse is refused: tensors of both devices in one
operation, and ``.numpy()``. What costs a GPU time is counted, with the line of the package that
asked for it:

- operations, each a kernel that is launched or more;
- waits: the host needs a number (``.cpu()``, ``.item()``, a mask of unknown count);
- copies of host memory to the device.

What it cannot see: kernels that give other numbers than those of the CPU, or the same in another
order; streams and races; memory; Triton, CUDA graphs, the driver; what ``vmap`` computes (stacked
cells); how many kernels one operation launches; operations of libraries that do not go through the
dispatcher of PyTorch. Autograd's threads of a real GPU are not there either.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda:0")
MEMORY = 80 << 30

VIEWS = frozenset(
    {"view", "_unsafe_view", "expand", "t", "transpose", "permute", "select", "slice", "split"}
    | {"split_with_sizes", "unsqueeze", "squeeze", "unbind", "detach", "alias", "as_strided"}
    | {"_reshape_alias", "diagonal", "unfold", "lift_fresh", "narrow", "view_as", "empty"}
    | {"empty_like", "new_empty", "empty_strided", "new_empty_strided", "chunk", "movedim"}
    | {"_indices", "_values", "is_coalesced", "_nnz", "dense_dim", "sparse_dim", "is_same_size"}
)
"""Operations that launch nothing."""

WAITS = frozenset(
    {"_local_scalar_dense", "equal", "nonzero", "_unique2", "unique_dim", "masked_select"}
    | {"is_nonzero", "item", "bincount"}
)
"""Operations whose result the host must know."""

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COALESCE = 8  # operations that coalescing a sparse tensor takes, about


class MixedDevicesError(RuntimeError):
    """Tensors of two devices meet in one operation."""


@dataclass
class Counts:
    """What was asked of the pretended GPU.

    Args:
        operations: Name to how often it ran.
        waits: What was waited for, and where, to how often.
        copies: The same of what was copied to the device.
    """

    operations: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        for counter in (self.operations, self.waits, self.copies):
            counter.clear()

    @property
    def totals(self) -> tuple[int, int, int]:
        """Operations, waits and copies."""
        return self.operations.total(), self.waits.total(), self.copies.total()


COUNTS = Counts()


def _asked_at() -> str:
    """The lines of the package that asked for what is counted, the innermost first."""
    frame = sys._getframe(2)
    lines: list[str] = []
    while frame is not None and len(lines) < 2:
        _, found, file = frame.f_code.co_filename.rpartition("/mtlkit/")
        if found and "/tests/" not in frame.f_code.co_filename:
            lines.append(f"{file}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "autograd"


def _wait(what: str) -> None:
    COUNTS.waits[f"{what} at {_asked_at()}"] += 1


def _copy(what: str) -> None:
    COUNTS.copies[f"{what} at {_asked_at()}"] += 1


class PretendedTensor(torch.Tensor):
    """A tensor that says it is on the GPU.

    Attributes:
        inner: The numbers, on the CPU.
    """

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> PretendedTensor:
        with no_dispatch():
            if inner.layout == torch.sparse_coo:
                shell = torch.empty(inner.shape, dtype=inner.dtype, device="meta")
            else:
                shell = torch.empty_strided(
                    inner.shape, inner.stride(), dtype=inner.dtype, device="meta"
                )
            return torch.Tensor._make_subclass(
                cls, shell, requires_grad, dispatch_device=False, device_for_backend_keys=CUDA
            )

    def __init__(self, inner: torch.Tensor, requires_grad: bool = False) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    # what it says of itself

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_sparse = property(lambda self: self.inner.is_sparse)
    layout = property(lambda self: self.inner.layout)

    def get_device(self) -> int:
        return 0

    def record_stream(self, stream: Any) -> None:
        pass

    def data_ptr(self) -> int:
        return 0

    def __repr__(self, **how: Any) -> str:
        return f"PretendedTensor({self.inner!r})"

    # what does not go through the dispatcher

    def numpy(self, **how: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    def tolist(self) -> Any:
        _wait("tolist")
        return self.inner.tolist()

    def coalesce(self) -> PretendedTensor:
        if not self.inner.is_coalesced():
            _wait("coalesce")
            COUNTS.operations["coalesce"] += COALESCE
        return PretendedTensor(self.inner.coalesce())

    def indices(self) -> PretendedTensor:
        return PretendedTensor(self.inner.indices())

    def values(self) -> PretendedTensor:
        return PretendedTensor(self.inner.values())

    def __getitem__(self, key: Any) -> Any:
        return torch.Tensor.__getitem__(self, _lists_on_device(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, _lists_on_device(key), value)


def _lists_on_device(key: Any) -> Any:
    """An index whose lists are tensors, as PyTorch makes them."""
    if isinstance(key, tuple):
        return tuple(_lists_on_device(part) for part in key)
    if isinstance(key, list):
        _copy("list of indices")
        return PretendedTensor(torch.tensor(key))
    return key


def _inside(values: Any) -> Any:
    return tree_map_only(PretendedTensor, lambda tensor: tensor.inner, values)


def _pretended(values: Any) -> Any:
    return tree_map_only(
        torch.Tensor,
        lambda value: value if isinstance(value, PretendedTensor) else PretendedTensor(value),
        values,
    )


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: on the CPU if it is of the CPU, else as the GPU would take it."""
    name = func._schema.name.partition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
    on_host = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]
    assert not any(tensor.is_meta for tensor in on_host), f"a shell without numbers in {func}"

    # an operation of the host alone
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    makes_device_tensor = target is not None and target.type in ("cuda", "meta")
    if not on_device and not makes_device_tensor:
        return func(*args, **kwargs)
    inner_args, inner_kwargs = _inside(args), _inside(kwargs)
    if target is not None:
        inner_kwargs["device"] = torch.device("cpu")

    # ways from one device to the other
    if name == "_to_copy":
        return _to_copy(func, args[0], target, inner_args, inner_kwargs)
    if name == "copy_":
        return _copy_into(func, args, inner_args, inner_kwargs)
    if name == "_pin_memory":
        return args[0]

    _check_devices(func, name, args, on_device, on_host)
    _count(name, args, kwargs)

    # the shell of a view that is changed in place is changed as well
    if torch.Tag.inplace_view in func.tags:
        func(*inner_args, **inner_kwargs)
        with no_dispatch():
            func(*args, **kwargs)
        return args[0]

    result = func(*inner_args, **inner_kwargs)
    if name in ("_local_scalar_dense", "equal"):
        return result
    if func._schema.is_mutable:
        # what was changed in place keeps its identity
        shells = {id(tensor.inner): tensor for tensor in on_device}
        return tree_map_only(
            torch.Tensor, lambda value: shells.get(id(value), _pretended(value)), result
        )
    return _pretended(result)


def _to_copy(func: Any, source: Any, target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``.to``, ``.cpu()`` and ``.cuda()``."""
    if isinstance(source, PretendedTensor):
        if target is not None and target.type == "cpu":
            _wait("copy to the host")
            return func(*args, **kwargs)
        # Python takes the shell to be elsewhere, and asks for a copy where a GPU makes none
        if kwargs.get("dtype") not in (None, source.dtype):
            COUNTS.operations["_to_copy"] += 1
    else:
        _copy("pinned" if kwargs.get("non_blocking") else "pageable")
        kwargs.pop("pin_memory", None)
    return _pretended(func(*args, **kwargs))


def _copy_into(func: Any, args: Any, inner_args: Any, kwargs: dict[str, Any]) -> Any:
    """``target.copy_(source)``."""
    if not isinstance(args[0], PretendedTensor):
        _wait("copy to the host")
    else:
        if not isinstance(args[1], PretendedTensor):
            _copy("copy_")
        COUNTS.operations["copy_"] += 1
    func(*inner_args, **kwargs)
    return args[0]


def _check_devices(
    func: Any, name: str, args: Any, on_device: list[Any], on_host: list[torch.Tensor]
) -> None:
    """Raise where a GPU would: it takes numbers of the host as scalars and as indices alone."""
    large = [tensor for tensor in on_host if tensor.dim() > 0]
    if not (on_device and large):
        return
    if name in INDEXING and isinstance(args[0], PretendedTensor):
        _copy("indices")
        return
    shapes = [tuple(tensor.shape) for tensor in large]
    raise MixedDevicesError(f"{func} got tensors on cuda:0 and on the CPU, of shapes {shapes}")


def _count(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    if name in WAITS:
        _wait(name)
    if name in INDEXING:
        indices = [index for index in args[1] or [] if isinstance(index, torch.Tensor)]
        if any(index.dtype == torch.bool for index in indices):
            _wait("mask as an index")
    if name == "repeat_interleave":
        length_known = len(args) > 1 and isinstance(args[1], int)
        if not length_known and kwargs.get("output_size") is None:
            _wait("repeat_interleave")
    if name not in VIEWS:
        COUNTS.operations[name] += 1


class _Stream:
    """A stream on which everything is done at once."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def record_event(self) -> None:
        pass

    def wait_event(self, event: None) -> None:
        pass


def _submit(pool: ThreadPoolExecutor, action: Any, *args: Any) -> Any:
    """``ThreadPoolExecutor.submit``: the GPU is there in other threads as well."""

    def on_device(*args: Any) -> Any:
        with _Pretend():
            return action(*args)

    return SUBMIT(pool, on_device, *args)


SUBMIT = ThreadPoolExecutor.submit


class _Pretend(TorchDispatchMode):
    """Catches what makes tensors on the device from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """There is one GPU inside of this; yields its device."""
    import torch.amp.autocast_mode
    import torch.cuda.amp.common

    host = torch.random.default_generator
    patches = {
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "pretended",
        "get_device_capability": lambda device=None: (9, 0),
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": nullcontext,
        "synchronize": lambda device=None: _wait("synchronize"),
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "get_rng_state": lambda device=None: host.get_state(),
        "set_rng_state": lambda state, device=None: host.set_state(state),
        "manual_seed_all": lambda seed: None,
    }
    lifted_before = torch._C._only_lift_cpu_tensors()
    overwrote_before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.multiple(torch.cuda, **patches),
            mock.patch.object(ThreadPoolExecutor, "submit", _submit),
            mock.patch.object(torch.Tensor, "pin_memory", lambda self, *args: self),
            mock.patch.object(
                torch.cuda.amp.common, "amp_definitely_not_available", return_value=False
            ),
            _Pretend(),
        ):
            yield CUDA
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted_before)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrote_before)
