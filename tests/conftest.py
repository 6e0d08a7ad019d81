"""What tests of several folders share. Everything heavy is imported on use."""

from __future__ import annotations

import os

# before torch is imported: the models are tiny, and the machine may be busy
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

# Some tests press Ctrl-C. A shell's background job ignores it, and so would pytest and what it
# starts, so the usual reaction is put back.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = "synthetic[rows=200,d=4]"


@dataclass(frozen=True)
class CommandResult:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_cli(*arguments: Any) -> CommandResult:
    """Run ``mtlkit`` in this process."""
    from mtlkit.cli.app import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as around:
        around.enter_context(contextlib.redirect_stdout(out))
        around.enter_context(contextlib.redirect_stderr(err))
        around.enter_context(mock.patch.object(sys, "argv", ["mtlkit", *map(str, arguments)]))
        around.enter_context(mock.patch.dict(os.environ, {"COLUMNS": "200"}))
        for number in (signal.SIGINT, signal.SIGTERM):
            around.callback(signal.signal, number, signal.getsignal(number))
        try:
            main()
        except SystemExit as end:
            return CommandResult(end.code, out.getvalue(), err.getvalue())
    raise AssertionError("main() always exits")


@pytest.fixture(scope="session")
def cli() -> Callable[..., CommandResult]:
    return run_cli


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data home that holds the small synthetic data set."""
    from mtlkit.data.sources import prepare

    home = tmp_path_factory.mktemp("home")
    prepare(DATA, home)
    return home


@pytest.fixture(scope="session")
def plugin() -> Callable[..., str]:
    """Writes a balancer file; returns its path, which is its name."""

    def write(
        folder: Path, name: str, body: str = "return step.active.to(step.losses.dtype)"
    ) -> str:
        lines = "\n        ".join(body.splitlines())
        (folder / name).write_text(
            f'''"""{name}: a balancer of a test."""

import os
import signal
import time
from pathlib import Path

import torch

from mtlkit import Balancer
from mtlkit.balancers._step import SharedGradient


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
    ablation: bool = False,
    warm: Any = None,
    **training: Any,
) -> Any:
    """A trainer on toy data: one epoch in batches of 32 and three evaluation points, unless a test
    asks for others.

    Args:
        dataset: As of ``toy_dataset``.
        model: With options in brackets.
        balancer: With options in brackets, or a function of a step that gives its decision.
        seed: Of the run.
        probes: Whether to record probes.
        ablation: Whether to record what experts are good for.
        warm: Weights to start from.
        **training: Training settings.
    """
    import torch

    from mtlkit import Balancer
    from mtlkit.registry import BALANCERS, MODELS
    from mtlkit.settings import ExecutionSettings, TrainingSettings
    from mtlkit.spec import parse_spec
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    class FromFunction(Balancer):
        scale = "native"  # the function's weights are taken as they are

        def forward(self, step: Any) -> Any:
            return balancer(step)

    spec = parse_spec(model)
    model_class = MODELS.load(spec.name)
    torch.manual_seed(seed)
    network = model_class(dataset.schema, model_class.Options.model_validate(spec.options))

    method = None
    if model_class.shares_parameters and callable(balancer):
        method = FromFunction(dataset.schema.tasks, FromFunction.Options())
    elif model_class.shares_parameters:
        balancer_spec = parse_spec(balancer)
        balancer_class = BALANCERS.load(balancer_spec.name)
        options = balancer_class.Options.model_validate(balancer_spec.options)
        method = balancer_class(dataset.schema.tasks, options)

    quick = {"batch_size": 32, "epochs": 1, "lr": 0.01, "evaluations": 3}
    settings = TrainingSettings.model_validate(quick | training)
    execution = ExecutionSettings(device="cpu", probes=probes or ablation, ablation=ablation)
    setup = TrainingSetup(settings, execution, seed, torch.device("cpu"), warm)
    return Trainer(network, method, dataset, setup)


@pytest.fixture(scope="session")
def trainer() -> Callable[..., Any]:
    return make_trainer


# a balancer's first step: say in which process, and wait while the file `hold` is there
WAITS = """
here = Path(__file__).parent
if step.index == 0:
    (here / "pid.new").write_text(str(os.getpid()))
    (here / "pid.new").rename(here / "pid")
while (here / "hold").exists():
    time.sleep(0.02)
return step.active.to(step.losses.dtype)
"""
BALANCERS = {
    "waits": WAITS.strip(),
    "raises": "raise ValueError('bad luck')",
    "broken": "return SharedGradient(step.jacobian().sum(0) * torch.nan)",
    "exits": "os._exit(7)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}
PATIENCE = 120
BLINK = 0.5
# how a shell starts a background job: it ignores Ctrl-C
IN_BACKGROUND = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]


Files = dict[Path, tuple[bytes, int]]


@dataclass
class Act:
    """One run of a grid that was stopped in its second cell, by a signal.

    Args:
        result: How the command ended.
        before: The results at the signal.
        after: The results when the command and its worker had ended.
        worker_ended: Whether the worker did.
        worker_ignored: Whether the worker left Ctrl-C to the command.
        survived_interrupt: Whether Ctrl-C did nothing to the command.
    """

    result: CommandResult
    before: Files
    after: Files
    worker_ended: bool
    worker_ignored: bool = False
    survived_interrupt: bool = False


@dataclass
class Story:
    """A grid that was interrupted, and one that was killed and run again; see ``story``.

    Args:
        command: What was typed.
        out: The results folder.
        interrupted: Ctrl-C.
        killed: kill -9.
        finished: How the same command ended after that.
        files: The results at the end.
    """

    command: list[str]
    out: Path
    interrupted: Act
    killed: Act
    finished: CommandResult
    files: Files

    @property
    def records(self) -> dict[str, Any]:
        """Balancer to the record of its cell."""
        from mtlkit.store import ResultStore

        return {
            Path(record.cell.balancer).stem: record for record, _ in ResultStore(self.out).scan()
        }

    def folder(self, balancer: str) -> Path:
        from mtlkit.store import ResultStore

        return ResultStore(self.out).folder(self.records[balancer].cell)


@pytest.fixture(scope="session")
def story(
    tmp_path_factory: pytest.TempPathFactory, home: Path, plugin: Callable[..., str]
) -> Story:
    """Seven cells, one at a time. The second one waits, and there the grid is stopped: one is
    killed and one, at the same time, interrupted. The killed one is run again to its end, through
    cells that fail in every way there is.
    """
    killed, interrupted = (
        _Grid(tmp_path_factory.mktemp(name), home, plugin) for name in ("killed", "interrupted")
    )
    process = subprocess.Popen(
        [*IN_BACKGROUND, sys.executable, "-m", "mtlkit", *killed.command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first = _interrupt(interrupted)
    second = _kill(killed, process)
    finished = run_cli(*killed.command)
    return Story(killed.command, killed.out, first, second, finished, files(killed.out))


class _Grid:
    """The command of the grid, and the files by which its waiting cell speaks."""

    def __init__(self, folder: Path, home: Path, plugin: Callable[..., str]) -> None:
        self.hold, self.pid, self.out = (folder / name for name in ("hold", "pid", "results"))
        self.hold.touch()
        paths = {name: plugin(folder, f"{name}.py", body) for name, body in BALANCERS.items()}
        plugins = (paths[name] for name in ("waits", "raises", "broken", "exits"))
        order = ["uniform", *plugins, "uwl", paths["killed"]]
        options = "--references none --seeds 1 --epochs 1 --batch-size 50 --jobs 1 --device cpu"
        self.command = ["bench", "-d", DATA, "--models", "shared-bottom", *options.split()]
        self.command += ["--balancers", ",".join(order)]
        self.command += ["--data-dir", str(home), "--out", str(self.out)]

    @property
    def worker(self) -> int:
        """The process of the waiting cell."""
        return int(self.pid.read_text())


def _interrupt(grid: _Grid) -> Act:
    """Ctrl-C while the second cell waits, sent to the command and to its worker as a terminal does.
    The first one leaves the cell alone, the second one ends it.
    """
    before: Files = {}
    ignored = []
    over = threading.Event()

    def press() -> None:
        wait_for(lambda: grid.pid.exists() or over.is_set())
        if not over.is_set():
            before.update(files(grid.out))
            ignored.append(is_deaf(grid.worker, "SigIgn"))
            os.kill(grid.worker, signal.SIGINT)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(BLINK)
            ignored.append(is_alive(grid.worker))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    result = run_cli(*grid.command)
    over.set()
    finger.join()
    assert before, result.err
    return Act(
        result, before, files(grid.out), wait_for(lambda: not is_alive(grid.worker)), all(ignored)
    )


def _kill(grid: _Grid, process: subprocess.Popen[bytes]) -> Act:
    """kill -9 while the second cell waits. Its worker is an orphan then, and ends, as does the
    process that it was forked from. Before that Ctrl-C is pressed: as a background job of a shell
    the command ignores it.
    """
    wait_for(lambda: grid.pid.exists() or process.poll() is not None)
    assert process.poll() is None, "the command ended by itself"
    before = files(grid.out)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(BLINK)
    survived = process.poll() is None
    process.kill()
    code = process.wait(PATIENCE)
    family = {grid.worker, parent(grid.worker)}
    ended = wait_for(lambda: not any(map(is_alive, family)))
    grid.hold.unlink()
    return Act(
        CommandResult(code, "", ""), before, files(grid.out), ended, survived_interrupt=survived
    )


def files(folder: Path) -> Files:
    """Contents and time of every file in a folder, but for what a running grid says of itself."""
    paths = (
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".grid-")
    )
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether something comes true before patience ends."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def is_deaf(pid: int, field: str) -> bool:
    """Whether a process ignores (``SigIgn``) or blocks (``SigBlk``) Ctrl-C; true where nobody can
    tell.
    """
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return True
    mask = next(
        line.split()[1] for line in status.read_text().splitlines() if line.startswith(f"{field}:")
    )
    return bool(int(mask, 16) >> (signal.SIGINT - 1) & 1)


def parent(pid: int) -> int:
    """The process that a process is a child of; itself where nobody can tell."""
    stat = Path(f"/proc/{pid}/stat")
    return int(stat.read_text().rpartition(")")[2].split()[1]) if stat.exists() else pid


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is no child of ours has no other sign of its end."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
