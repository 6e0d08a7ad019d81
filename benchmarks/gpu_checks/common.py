"""What sections share: rows, data, trainers on a device, times of their steps, and the command."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = "mmoe[experts=8,hidden=16,tower=8,embedding=8]"
CENSUS_SHAPE = (9, 52, 47, 17, 3, 7, 24, 15, 5, 10, 2, 3, 6, 8, 6, 6, 51, 38, 8, 10, 9, 10, 3, 4)
"""Vocabularies of rows that stand in for Census-Income where that is not at hand."""


@dataclass(frozen=True)
class Job:
    """What a section is given: ``cuda:0``, ``cpu`` or ``pretended``, and the data home."""

    device: str
    data: str

    @property
    def on_gpu(self) -> bool:
        """Elsewhere everything is small, and neither speed nor metrics are judged."""
        return self.device.startswith("cuda")

    @property
    def cli_device(self) -> str:
        return self.device if self.on_gpu else "cpu"

    def size(self, full: Any, small: Any) -> Any:
        return full if self.on_gpu else small


@dataclass(frozen=True)
class Row:
    """One check.

    Args:
        what: What was looked at.
        figure: What came out: a number, a text, or several of them by name.
        mark: What it must be, in words.
        passed: Whether it is; None for what is not judged.
    """

    what: str
    figure: Any
    mark: str = ""
    passed: bool | None = None

    def text(self) -> str:
        """As a row of a Markdown table."""
        verdict = {True: "passed", False: "**failed**", None: "not judged"}[self.passed]
        return f"| {self.what} | {_text(self.figure)} | {self.mark or '-'} | {verdict} |"


def _text(figure: Any) -> str:
    if isinstance(figure, Mapping):
        return ", ".join(f"{name} {_text(value)}" for name, value in figure.items())
    return f"{figure:.4g}" if isinstance(figure, float) else str(figure).replace("|", "/")


@contextmanager
def opened(job: Job) -> Iterator[Any]:
    """The device of a job; inside, the pretended one is there."""
    import torch

    if job.device != "pretended":
        yield torch.device(job.device)
        return
    from tests.gpu.pretended import pretended_gpu

    with pretended_gpu() as pretended:
        yield pretended


def census(job: Job) -> tuple[str, Any]:
    """Census-Income by its name, or rows of its shape where it cannot be had."""
    from speed.data import CENSUS, ali_shaped, census

    from mtlkit.errors import MtlkitError

    if not job.on_gpu:
        return "small set", ali_shaped(3000, vocabularies=(5, 50))
    try:
        return CENSUS, census(Path(job.data))
    except (MtlkitError, OSError) as error:
        print(f"no Census-Income: {error}", file=sys.stderr)
        return "census-shaped set", ali_shaped(300_000, vocabularies=CENSUS_SHAPE)


@dataclass(frozen=True)
class Site:
    """Rows and the device that they are trained on, in batches of one size."""

    name: str
    data: Any
    device: Any
    batch: int
    on_gpu: bool

    def trainer(self, model: str = MODEL, balancer: str = "uniform", **options: Any) -> Any:
        return trainer(self.data, self.device, model, balancer, batch_size=self.batch, **options)


@contextmanager
def census_site(job: Job) -> Iterator[Site]:
    """Rows like Census-Income on the device of a job."""
    with opened(job) as device:
        yield Site(*census(job), device, job.size(4096, 64), job.on_gpu)


def trainer(
    dataset: Any,
    device: Any,
    model: str,
    balancer: str = "uniform",
    seed: int = 0,
    splits: Any = None,
    compile: str = "off",
    **training: Any,
) -> Any:
    """A trainer as ``mtlkit bench`` builds it, at a constant learning rate."""
    from speed.models import EXECUTION

    from mtlkit.grid.build import make_balancer, make_model
    from mtlkit.grid.run_cell import compile_model
    from mtlkit.settings import TrainingSettings
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    chosen = {"lr": 1e-3, "schedule": "constant", "evaluations": 1} | training
    settings = TrainingSettings(**chosen)
    network = make_model(model, dataset, seed)
    method = make_balancer(balancer, dataset, settings.scope) if network.shares_parameters else None
    execution = EXECUTION.model_copy(update={"compile": compile})
    setup = TrainingSetup(settings, execution, seed, device)
    made = Trainer(network, method, dataset, setup, splits)
    made.model.train()
    compile_model(made)
    failed = [text for text in made.warnings if "compile" in text]
    if failed:
        raise RuntimeError(failed[0])
    return made


def run_steps(made: Any, count: int) -> None:
    for _ in range(count):
        made.take_step()


def seconds_of(run: Callable[[], Any], device: Any, count: int, warm: int = 5) -> float:
    """Seconds of one call: the median over three windows of ``count`` calls, each until the device
    has done what it was given.
    """
    import torch

    windows = []
    for calls in (warm, count, count, count):
        began = time.perf_counter()
        for _ in range(calls):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        windows.append((time.perf_counter() - began) / calls)
    return statistics.median(windows[1:])


def bench(job: Job, out: Path, device: str, *flags: str) -> tuple[float, list[Any]]:
    """Seconds of ``mtlkit bench`` by the clock, and the records that it wrote."""
    from mtlkit.store import ResultStore

    command = [sys.executable, "-m", "mtlkit", "bench", "--device", device, "--out", str(out)]
    command += ["--data-dir", job.data, "--references", "none", *flags]
    began = time.perf_counter()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    print(ended.stdout, ended.stderr, file=sys.stderr)
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"mtlkit bench ended with {ended.returncode}: {ended.stderr.strip()}")
    return seconds, [record for record, _ in ResultStore(out).scan()]
