"""What tests of several folders share. Everything heavy is imported on use."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the models are tiny, and the machine may be busy

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

DATA = "synthetic[rows=200,d=4]"


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_cli(*arguments: Any) -> Said:
    """Run ``mtlkit`` in this process."""
    from mtlkit.cli.app import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as around:
        around.enter_context(contextlib.redirect_stdout(out))
        around.enter_context(contextlib.redirect_stderr(err))
        around.enter_context(mock.patch.object(sys, "argv", ["mtlkit", *map(str, arguments)]))
        around.enter_context(mock.patch.dict(os.environ, {"COLUMNS": "200"}))
        try:
            main()
        except SystemExit as end:
            return Said(end.code, out.getvalue(), err.getvalue())
    raise AssertionError("main() always exits")


@pytest.fixture(scope="session")
def cli() -> Callable[..., Said]:
    return run_cli


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data home that holds the small synthetic data set."""
    from mtlkit.data.sources import ensure

    home = tmp_path_factory.mktemp("home")
    ensure(DATA, home)
    return home


@pytest.fixture(scope="session")
def plugin() -> Callable[..., str]:
    """Writes a balancer file; returns its path, which is its name."""

    def write(folder: Path, name: str, body: str = "return step.active.to(step.losses.dtype)") -> str:
        lines = "\n        ".join(body.splitlines())
        (folder / name).write_text(
            f'''"""{name}: a balancer of a test."""

import os
import signal
import time
from pathlib import Path

import torch

from mtlkit.balancers.base import Balancer


class Plugin(Balancer):
    def forward(self, step):
        {lines}
''',
            encoding="utf-8",
        )
        return str(folder / name)

    return write


def make_trainer(
    dataset: Any,
    model: str = "shared-bottom[bottom=8,tower=4,embedding=3]",
    balancer: Any = "uniform",
    seed: int = 0,
    probes: bool = False,
    **training: Any,
) -> Any:
    """A trainer on toy data: a batch of 32, plain SGD-like settings only where a test asks for them.

    Args:
        dataset: As of ``toy_dataset``.
        model: With options in brackets.
        balancer: With options in brackets, or a function of a step that gives its decision.
        seed: Of the run.
        probes: Whether to record probes.
        **training: Training settings.
    """
    import torch

    from mtlkit.balancers.base import Balancer
    from mtlkit.config import ExecutionSettings, TrainingSettings, parse_spec
    from mtlkit.registry import BALANCERS, MODELS
    from mtlkit.training.loop import Trainer

    class Given(Balancer):
        def forward(self, step: Any) -> Any:
            return balancer(step)

    spec = parse_spec(model)
    kind = MODELS.load(spec.name)
    torch.manual_seed(seed)
    network = kind(dataset.schema, kind.Options.model_validate(spec.options))
    weighing = None
    if kind.shares_parameters and callable(balancer):
        weighing = Given(dataset.schema.tasks, Given.Options())
    elif kind.shares_parameters:
        chosen = parse_spec(balancer)
        method = BALANCERS.load(chosen.name)
        weighing = method(dataset.schema.tasks, method.Options.model_validate(chosen.options))
    settings = TrainingSettings.model_validate({"batch_size": 32, "epochs": 1, "lr": 0.01} | training)
    execution = ExecutionSettings(device="cpu", probes=probes)
    return Trainer(network, weighing, dataset, settings, execution, seed, torch.device("cpu"))


@pytest.fixture(scope="session")
def trainer() -> Callable[..., Any]:
    return make_trainer
