"""The machine that a cell runs on: its device, what it is called, and its memory."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtlkit._version import __version__
from mtlkit.errors import MissingError

PEAK_FILE = Path("/proc/self/clear_refs")
STATUS_FILE = Path("/proc/self/status")
SCIPY, NUMBA = version("scipy"), version("numba")


def resolve_devices(text: str) -> list[torch.device]:
    """The devices that cells are spread over; ``all`` is every GPU, or the CPU.

    Raises:
        MissingError: A GPU is asked for and there is none.
    """
    if text != "all":
        return [resolve_device(name) for name in text.split(",")]
    return [torch.device("cuda", number) for number in range(_gpus())] or [torch.device("cpu")]


def resolve_device(text: str) -> torch.device:
    """One device; ``auto`` is the first GPU, or the CPU.

    Raises:
        MissingError: A GPU is asked for and there is none.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = text.partition(":")
    count = _gpus()
    # read here, for PyTorch takes number 256 for number 0
    if kind == "cuda" and int(number or 0) >= count:
        reason = f"only {count} found" if count else "none was found"
        raise MissingError(f"There is no GPU {text!r} here: {reason}.", "mtlkit bench --device cpu")
    return torch.device(text)


def _gpus() -> int:
    """How many GPUs PyTorch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def torch_build() -> tuple[str, str | None]:
    """The version of PyTorch, and of the CUDA that it is built for."""
    return torch.__version__, torch.version.cuda


def visible_gpus() -> list[tuple[str, str, int, int]]:
    """Name, model, and bytes free and in all, of each GPU that PyTorch sees."""
    return [
        (f"cuda:{i}", torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i))
        for i in range(_gpus())
    ]


def describe_environment(
    device: torch.device,
    started: datetime,
    compiled: bool,
    compile_seconds: float,
    plugins: Sequence[Path] = (),
) -> dict[str, Any]:
    """Versions, device, kernels and times of a run, as a record holds them.

    Args:
        started: When it began; it ends now.
        plugins: The files from outside the package that took part.
    """
    is_gpu = device.type == "cuda"
    commits = {str(file): git_commit(file.absolute().parent) for file in plugins}
    return {
        "mtlkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": SCIPY,
        "numba": NUMBA,
        "system": platform.system(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if is_gpu else _cpu_name(),
        "device_type": device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if is_gpu else None,
        "cudnn": torch.backends.cudnn.version() if is_gpu else None,
        "driver": gpu_driver() if is_gpu else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "git_commit": git_commit(Path.cwd()),
        "plugin_commits": {file: commit for file, commit in commits.items() if commit},
        "compiled": compiled,
        "compile_seconds": compile_seconds,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@lru_cache(maxsize=1)
def gpu_driver() -> str | None:
    """The version of the driver of the GPUs; None where it cannot be asked."""
    answer = _answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return answer.splitlines()[0] if answer else None


@lru_cache(maxsize=16)
def git_commit(folder: Path) -> str | None:
    """The commit that the repository around a folder is at; None where there is none.

    Files that were changed since are not looked for: that would run what a repository sets up.
    """
    # no git, or no repository: no answer
    return _answer(["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"]) or None


def _answer(command: list[str]) -> str:
    """What a short command of the system prints; nothing where it fails or is not there."""
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _cpu_name() -> str:
    """What the maker calls the processor; Python's own answer is often empty on Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def reset_peak_memory(device: torch.device) -> None:
    """Forget the memory that earlier cells of this process took."""
    if device.type == "cuda":
        torch.cuda.init()  # before that there is nothing to reset, which is an error
        torch.cuda.reset_peak_memory_stats(device)
    elif PEAK_FILE.exists():
        # Linux sets the high-water mark back on writing 5; sandboxes may forbid it
        with suppress(OSError):
            PEAK_FILE.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device on a GPU, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)

    # Linux: this mark can be set back, unlike that of getrusage
    if STATUS_FILE.exists():
        for line in STATUS_FILE.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                kibibytes = int(line.split()[1])
                return kibibytes * 1024

    # macOS counts bytes, others kibibytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
