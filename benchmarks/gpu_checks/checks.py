"""What a GPU is and what ``mtlkit bench`` does there: versions, good and bad cells, waits, memory."""

from __future__ import annotations

import importlib.util
import platform
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from mtlkit.grid.machine import gpu_driver
from mtlkit.registry import BALANCERS
from mtlkit.training import batches
from tests.gpu import test_steps
from tests.gpu.pretended import COUNTS

from .common import Job, Row, Site, bench, census_site, opened, run_steps, seconds_of

Checks = Iterator[partial[Iterator[Row]]]
NEEDED = ("pydantic", "numba", "pyarrow", "scipy", "typer", "rich", "jinja2", "httpx", "isal")
SHOWN = ("torch", "triton", "numpy", "numba", "pydantic", "torch-rechub", "fuxictr")
BROKEN = '''"""Reads outside of a table: on a GPU, what breaks a whole process."""
import torch

from mtlkit.models.mmoe import MMoE


class Broken(MMoE):
    def forward(self, batch):
        outside = torch.full((2,), 9, device=batch.labels.device)
        batch.labels = batch.labels + torch.zeros(3, device=outside.device)[outside].sum()
        return super().forward(batch)
'''
SMALL = ("-d", "synthetic[rows=4000,d=8]", "--epochs", "1", "--seeds", "1", "--jobs", "2")


def env(job: Job) -> Checks:
    """Versions, what is missing, and the ceilings of the device."""
    yield partial(_versions, job)
    with opened(job) as device:
        yield partial(_copies_and_launches, device, job.size(2**29, 2**16))
        for precision in ("fp32", "tf32", "bf16"):
            yield partial(_product, precision, device, job.size(8192, 64))


def _versions(job: Job) -> Iterator[Row]:
    found = {"python": platform.python_version()}
    for package in SHOWN:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not there"
    yield Row("versions", found)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    yield Row("missing of what mtlkit needs", ", ".join(missing) or "nothing")
    if job.on_gpu:
        about = torch.cuda.get_device_properties(job.device)
        described = {"driver": gpu_driver(), "CUDA": torch.version.cuda}
        described |= {"cuDNN": torch.backends.cudnn.version()}
        yield Row(f"{about.name}, {about.total_memory / 2**30:.0f} GiB", described)


def _copies_and_launches(device: Any, count: int) -> Iterator[Row]:
    source, target = torch.randn(2, count, device=device)
    seconds = seconds_of(lambda: target.copy_(source), device, 10)
    yield Row("copy on the device, GB/s read and written", 8 * count / seconds / 1e9)
    one = torch.zeros(1, device=device)
    yield Row("a launch, us", seconds_of(lambda: one.add_(1), device, 1000) * 1e6)


def _product(precision: str, device: Any, size: int) -> Iterator[Row]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        seconds = seconds_of(lambda: left @ right, device, 5, warm=2)
    finally:
        torch.set_float32_matmul_precision("highest")
    yield Row(f"product of {size} x {size}, {precision}, TFLOP/s", 2 * size**3 / seconds / 1e12)


def smoke(job: Job) -> Checks:
    """Good cells are ok, on the device; a bad one is recorded with a reason."""
    for device in (job.device, "cuda") if job.on_gpu else ("cpu",):
        yield partial(_cells, device, job)


def _cells(device: str, job: Job) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder, "broken.py")
        plugin.write_text(BROKEN, encoding="utf-8")
        methods = ("--models", f"{plugin},mmoe,ple", "--balancers", "uniform,pcgrad")
        seconds, records = bench(job, Path(folder, "out"), device, *SMALL, *methods)
    ok = [record.environment["device_type"] for record in records if record.ok]
    errors = [record.error.message.partition("\n")[0] for record in records if record.error]
    figure = {"ok": len(ok), "seconds": seconds, "errors": "; ".join(errors)}
    passed = ok == 4 * [device.partition(":")[0]] and len(errors) == 2 and all(errors)
    what = f"--device {device} --jobs 2, with two cells that read outside of a table"
    yield Row(what, figure, "4 ok, 2 failed with a reason", passed)


def syncs(job: Job) -> Checks:
    """Waits of a step, beside the table that the pretended device is held to."""
    with opened(replace(job, device=job.size(job.device, "pretended"))) as device:
        for name in job.size(BALANCERS.names(), ["uniform", "uwl", "pcgrad"]):
            yield partial(_waits, name, device, job.on_gpu)


def _waits(balancer: str, device: Any, is_real: bool) -> Iterator[Row]:
    _, allowed, copies = test_steps.PER_STEP[balancer]
    made = test_steps.build("mmoe[experts=2,hidden=4,tower=3,embedding=2]", balancer, device)
    test_steps.run_steps(made, 0, test_steps.STEPS)
    if is_real:  # PyTorch tells of each wait; a copy from memory that is not pinned is one
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            made._train_step(test_steps.STEPS, made.window)
        torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchronizing CUDA" in str(warning.message) for warning in told)
        allowed += copies
    else:
        COUNTS.clear()
        test_steps.run_steps(made, test_steps.STEPS, 1)
        waits = COUNTS.totals[1]
    yield Row(f"waits of a step, {balancer}", waits, f"<= {allowed}", waits <= allowed)


def memory(job: Job) -> Checks:
    """What a cell takes, rows that do not fit on the device, and a device that is full."""
    with census_site(replace(job, device=job.size(job.device, "pretended"))) as site:
        yield partial(_rows_on_the_host, site)
        if job.on_gpu:
            yield partial(_full, site)


def _rows_on_the_host(site: Site) -> Iterator[Row]:
    def losses() -> list[float]:
        made = site.trainer(optimizer="sgd")
        run_steps(made, 3)
        return made.window.losses()

    there = losses()
    peak = torch.cuda.max_memory_allocated(site.device) / 2**20
    yield Row(f"{site.name}: peak of a cell with all rows, batch {site.batch}, MiB", peak)
    with mock.patch.object(batches, "_room_on", return_value=0):
        sent = losses()
    gap = max(abs(one / other - 1) for one, other in zip(sent, there, strict=True))
    yield Row("losses, rows sent from the host / on the device, less 1", gap, "1e-5", gap <= 1e-5)


def _full(site: Site) -> Iterator[Row]:
    """A training that finds no memory says so, and the next one in the process goes on."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002, site.device)
    try:
        run_steps(site.trainer("mmoe[hidden=4096]"), 1)
        reason = "nothing was raised"
    except torch.OutOfMemoryError as error:
        reason = type(error).__name__
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, site.device)
    torch.cuda.empty_cache()
    run_steps(site.trainer(), 1)
    yield Row("a training on a full GPU", reason, "OutOfMemoryError", "OutOfMemory" in reason)
