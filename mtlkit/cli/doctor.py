"""``mtlkit doctor``: look at what mtlkit needs, and say how to mend what is missing."""

from __future__ import annotations

import json as json_module
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from mtlkit.cli.tables import DataDirFlag
from mtlkit.errors import one_line

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
"""Where it is beside the package, in a checkout."""
LEAST_DISK = 2 << 30
LEAST_MEMORY = 2 << 30
DEVELOPERS = {"test", "parity", "dev"}  # extras that no user needs
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))

State = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Check:
    """What was looked at; ``note`` is no obstacle, ``bad`` is one; ``fix`` says what to do."""

    name: str
    state: State
    message: str
    fix: str = ""


def doctor(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where results would go.")] = Path(
        "results"
    ),
    data_dir: DataDirFlag = None,
    json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check packages, PyTorch, GPU, memory, disks, data sets and the cache of kernels.

    Each line says what was found, and how to mend it. Nothing is changed. The exit code is 1 if
    something must be mended.
    """
    from mtlkit.data.data_home import data_home
    from mtlkit.store import printable

    home = data_home(data_dir)
    groups: dict[str, Callable[[], Iterator[Check]]] = {
        "packages": _packages,
        "torch": _torch,
        "kernels": _kernels,
        "machine": _machine,
        "results": lambda: _folder("results", out, "--out DIR"),
        "data": lambda: _folder("data", home, "--data-dir DIR"),
        "data sets": lambda: _datasets(home),
    }
    checks = [check for name, group in groups.items() for check in _without_errors(name, group)]
    if json:
        typer.echo(json_module.dumps([asdict(check) for check in checks], indent=1))
    else:
        for check in checks:
            fix = f"; {check.fix}" if check.fix else ""
            typer.echo(printable(f"{check.state:<4} {check.name}: {check.message}{fix}"))
    raise typer.Exit(any(check.state == "bad" for check in checks))


def _without_errors(name: str, group: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of a group; one that fails itself is a finding."""
    try:
        yield from group()
    except Exception as error:
        message = f"cannot be checked: {type(error).__name__}: {one_line(error)}"
        yield Check(name, "bad", message, "mend what this names, and run mtlkit doctor again")


# --- packages


def _packages() -> Iterator[Check]:
    """The packages that mtlkit needs, and those of extras."""
    needed, extras = _requirements()
    missing = [name for name in needed if not _has(name)]
    if missing:
        yield Check("packages", "bad", f"missing {', '.join(missing)}", "pip install mtlkit")
    else:
        yield Check("packages", "ok", f"all {len(needed)} are there")
    for extra, names in extras.items():
        missing = [name for name in names if not _has(name)]
        if missing:
            fix = f"if you need it: pip install 'mtlkit[{extra}]'"
            yield Check(f"extra {extra}", "note", f"without {', '.join(missing)}", fix)
        else:
            yield Check(f"extra {extra}", "ok", "installed")


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the packages needed, and of those of each extra, as pyproject.toml declares them."""
    if PROJECT.exists():
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        needed, extras = project["dependencies"], project["optional-dependencies"]
    else:
        needed, extras = [], {}
        for requirement in metadata.requires("mtlkit") or []:
            extra = re.search(r"extra == ['\"]([\w-]+)", requirement)
            (extras.setdefault(extra[1], []) if extra else needed).append(requirement)
    names = {extra: _names(values) for extra, values in extras.items() if extra not in DEVELOPERS}
    return _names(needed), names


def _names(requirements: list[str]) -> list[str]:
    return [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements]


def _has(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


# --- PyTorch, kernels, the machine


def _torch() -> Iterator[Check]:
    try:
        from mtlkit.grid.machine import torch_build, visible_gpus
    except Exception as error:  # a broken library raises anything
        fix = "pip install --force-reinstall torch"
        yield Check("torch", "bad", f"cannot be imported: {one_line(error)}", fix)
        return
    version, cuda = torch_build()
    yield Check("torch", "ok", version)
    gpus = visible_gpus()
    for name, model, free, total in gpus:
        yield Check(name, "ok", f"{model}, {_size(free)} of {_size(total)} free")
    if not gpus and any(path.exists() for path in GPU_DRIVERS):
        built = f"for CUDA {cuda}" if cuda else "without CUDA"
        fix = "install the build of PyTorch for the driver, or use --device cpu"
        yield Check("cuda", "bad", f"there is a GPU, but torch, built {built}, sees none", fix)
    elif not gpus:
        yield Check("cuda", "ok", "no GPU: cells run on the CPU")


def _kernels() -> Iterator[Check]:
    """Whether compiled kernels outlive a process."""
    import numba

    from mtlkit.ops import take_rows

    cached = [value for value in vars(take_rows).values() if hasattr(value, "_cache")]
    folder = Path(getattr(cached[0]._cache, "cache_path", "") or "") if cached else Path()
    fix = "set NUMBA_CACHE_DIR to a folder that you can write to"
    if folder == Path() or (folder.exists() and not os.access(folder, os.W_OK)):
        yield Check("kernels", "note", "no cache: each process compiles them, for seconds", fix)
    else:
        yield Check("kernels", "ok", f"numba {numba.__version__}, cache in {folder}")


def _machine() -> Iterator[Check]:
    """Cores and memory, as the system and the container allow them."""
    from mtlkit.grid.engines.processes import available_cores

    cores = available_cores()
    quota = _cgroup("cpu.max")
    if len(quota) == 2 and quota[0] != "max" and int(quota[0]) / int(quota[1]) < cores:
        allowed = max(1, int(quota[0]) // int(quota[1]))
        message = f"{cores} cores, but this container may use {allowed}"
        yield Check("cores", "note", message, f"mtlkit bench --jobs {allowed}")
    else:
        yield Check("cores", "ok", f"{cores}, as many cells at a time")

    available = _available_memory()
    if available is None:
        yield Check("memory", "ok", "the system does not say how much is free")
    elif available < LEAST_MEMORY:
        fix = "end other programs, or mtlkit bench --jobs 1"
        yield Check("memory", "note", f"only {_size(available)} free", fix)
    else:
        yield Check("memory", "ok", f"{_size(available)} free")


def _available_memory() -> int | None:
    """Bytes; None where nobody can tell."""
    file = Path("/proc/meminfo")
    if not file.exists():
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", file.read_text(encoding="ascii"), re.MULTILINE)
    available = int(match[1]) * 1024 if match else None
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if available is not None and limit and used and limit[0] != "max":
        available = min(available, int(limit[0]) - int(used[0]))
    return available


def _cgroup(name: str) -> list[str]:
    """The words of a file of the container's limits; none outside of one."""
    try:
        return Path("/sys/fs/cgroup", name).read_text(encoding="ascii").split()
    except OSError:
        return []


# --- folders and data


def _folder(name: str, folder: Path, flag: str) -> Iterator[Check]:
    """Whether a folder can be written to, and how much room there is."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Check(name, "bad", f"{folder} cannot be written to", f"choose another with {flag}")
        return
    free = shutil.disk_usage(existing).free
    made = "" if existing == folder.absolute() else ", is made when needed"
    if free < LEAST_DISK:
        fix = f"make room, or choose another disk with {flag}"
        yield Check(name, "note", f"{folder}{made}: only {_size(free)} free", fix)
    else:
        yield Check(name, "ok", f"{folder}{made}: {_size(free)} free")


def _datasets(home: Path) -> Iterator[Check]:
    """Whether the files of prepared data have the sizes that were noted when they were written."""
    from mtlkit.data.storage import MANIFEST, read_manifest

    manifests = sorted(home.glob(f"*/prepared/*/{MANIFEST}")) if home.is_dir() else []
    if not manifests:
        yield Check("data sets", "note", f"none in {home} yet", "mtlkit fetch census")
    for file in manifests:
        folder, name = file.parent, file.parents[2].name
        manifest = read_manifest(folder)
        if manifest is None:
            fix = "it is prepared again when it is used"
            yield Check(f"data set {name}", "note", f"{folder} is of another version", fix)
            continue
        notes = manifest.get("files", {})
        damaged = [key for key, note in notes.items() if _bytes(folder / key) != note["bytes"]]
        if damaged:
            message = f"{folder / damaged[0]} is not what was written"
            yield Check(f"data set {name}", "bad", message, f"remove {folder} and fetch it again")
        else:
            message = f"{len(notes)} files, fingerprint {str(manifest['fingerprint'])[:8]}"
            yield Check(f"data set {name}", "ok", message)


def _bytes(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
