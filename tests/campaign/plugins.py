"""Plugins that load, and go wrong at work: their cells fail, and cost no other cell anything."""

from __future__ import annotations

from pathlib import Path

from mtlkit.store import ResultStore
from tests.campaign.processes import Grid
from tests.conftest import CommandResult

KIND = "plugins at work"
LIMIT = "60"
"""Seconds that a cell may take; undisturbed, it takes less than one."""

BALANCER = '''"""{name}: a balancer of a test."""

import os
import signal
import sys

import torch

from mtlkit import Balancer


class Odd(ValueError):
    """An error that cannot be sent, or told."""

    def __init__(self, *needed):
        super().__init__("odd")
        self.function = lambda: None
        self.needed = needed[1]


class Silent(ValueError):
    def __str__(self):
        raise RuntimeError("no words")


class Plugin(Balancer):
    scale = "{scale}"

    def forward(self, step):
        ones = torch.ones(2)
        {body}
'''

BALANCERS = {
    "raises": "raise ValueError('bad luck')",
    "raises-nothing-said": "raise ValueError",
    "raises-end-of-file": "raise EOFError",
    "raises-no-memory": "raise MemoryError",
    "raises-key": "raise KeyError(3)",
    "raises-broken-pipe": "raise BrokenPipeError(32, 'Broken pipe')",
    "raises-no-space": "raise OSError(28, 'No space left on device')",
    "raises-interrupt": "raise KeyboardInterrupt",
    "raises-base": "raise BaseException('odd')",
    "raises-stop": "raise StopIteration",
    "raises-generator-exit": "raise GeneratorExit",
    "raises-surrogate": "raise ValueError('\\ud800')",
    "raises-control": "raise ValueError('a\\x1b[31m\\r\\n\\x00b')",
    "raises-a-book": "raise ValueError('long ' * 200_000)",
    "raises-odd": "raise Odd(1, 2)",
    "raises-silent": "raise Silent",
    "recurs": "return self.forward(step)",
    "exits-0": "sys.exit(0)",
    "exits-3": "sys.exit(3)",
    "leaves-0": "os._exit(0)",
    "leaves-7": "os._exit(7)",
    "kills-itself": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminates-itself": "os.kill(os.getpid(), signal.SIGTERM)",
    "crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
    "aborts": "os.abort()",
    "closes-everything": "os.closerange(3, 200)\n        return ones",
    "none": "return None",
    "word": "return 'even'",
    "number": "return 1.0",
    "list": "return [1.0, 1.0]",
    "scalar": "return torch.tensor(1.0)",
    "one-weight": "return torch.ones(1)",
    "three-weights": "return torch.ones(3)",
    "matrix": "return torch.ones(2, 2)",
    "empty": "return torch.ones(0)",
    "nan": "return ones * float('nan')",
    "endless": "return ones * float('inf')",
    "huge": "return ones * 1e30",
    "booleans": "return torch.ones(2, dtype=torch.bool)",
    "complex": "return torch.ones(2, dtype=torch.complex64)",
}

MODEL = '''"""{name}: a model of a test."""

import torch

from mtlkit import (
    Architecture,
    FieldEmbedding,
    ModelOptions,
    StackedMLP,
    Towers,
)


class Plugin(Architecture):
    class Options(ModelOptions):
        pass

    def __init__(self, {arguments}):
        super().__init__(schema, options)
        {init}
        self.embedding = FieldEmbedding(schema, options)
        self.bottom = StackedMLP(1, self.embedding.width, (8,), options)
        self.towers = Towers(self.tasks, self.bottom.outputs, options)

    def forward(self, batch):
        x = self.embedding(batch)
        h = self.bottom(x).expand(-1, len(self.tasks), -1)
        logits = self.towers(h)
        {body}
        return self.output(logits, x)
'''

ARGUMENTS = "schema, options"
# arguments of __init__, its first line, and the last line of forward
MODELS = {
    "m-init-raises": (ARGUMENTS, "raise ValueError('bad luck')", ""),
    "m-init-exits": (ARGUMENTS, "raise SystemExit(0)", ""),
    "m-init-takes-nothing": ("schema=None, *, options", "", ""),
    "m-init-takes-more": (f"{ARGUMENTS}, more", "", ""),
    "m-raises": (ARGUMENTS, "", "raise ValueError('bad luck')"),
    "m-none": (ARGUMENTS, "", "return None"),
    "m-logits": (ARGUMENTS, "", "return logits"),
    "m-word": (ARGUMENTS, "", "return 'output'"),
    "m-nan": (ARGUMENTS, "", "logits = [v * float('nan') for v in logits]"),
    "m-few": (ARGUMENTS, "", "logits = logits[:1]"),
    "m-short": (ARGUMENTS, "", "logits = [v[:1] for v in logits]"),
    "m-no-gradient": (ARGUMENTS, "", "logits = [v.detach() for v in logits]"),
    "m-integers": (ARGUMENTS, "", "logits = [v.long() for v in logits]"),
}


def write(here: Path) -> tuple[list[str], list[str]]:
    """Write all files; return the names of the models and of the balancers."""
    for name, body in BALANCERS.items():
        text = BALANCER.format(name=name, scale="native", body=body)
        (here / f"{name}.py").write_text(text)
    for name, (arguments, init, body) in MODELS.items():
        text = MODEL.format(name=name, arguments=arguments, init=init, body=body)
        (here / f"{name}.py").write_text(text)
    return [f"./{name}.py" for name in MODELS], [f"./{name}.py" for name in BALANCERS]


def complaints(root: Path) -> dict[str, list[str]]:
    """Plugin to what does not hold of its cell. The good cells stand under their own names."""
    grid = Grid.new(root)
    models, balancers = write(grid.place.here)
    fixed = ("--seeds", "1", "--epochs", "1", "--batch-size", "50", "--device", "cpu")
    where = ("--references", "none", "--out", "../out", "--jobs", "2", "--timeout", LIMIT)
    start = ("bench", "-d", "./coins.py", *fixed, *where)

    # the balancers under one good model, the models under one good balancer
    wrong: dict[str, list[str]] = {}
    good = ["uniform", *balancers, "uwl"]
    for command in (
        (*start, "--models", "shared-bottom", "--balancers", ",".join(good)),
        (*start, "--models", ",".join(["omoe", *models, "mmoe"]), "--balancers", "uniform"),
    ):
        grid.command = command
        result = grid.run()
        name = command[-3].partition(",")[0]
        wrong[f"the grid of {name}"] = judge_grid(result)

    statuses = {}
    for record, _ in ResultStore(grid.place.out).scan():
        for text in (record.cell.model, record.cell.balancer):
            if text.endswith(".py"):
                statuses[text] = (record.status, record.error.message if record.error else "")
    for text in (*models, *balancers):
        status, message = statuses.get(text, ("missing", ""))
        wrong[text] = [] if status == "failed" else [f"its cell is {status}"]
        if status == "failed" and not message:
            wrong[text].append("its error says nothing")
    return wrong


def judge_grid(result: CommandResult | None) -> list[str]:
    """What does not hold of a grid in which cells have failed."""
    if result is None:
        return ["it hangs"]
    wrong = []
    _, sign, traceback = result.err.partition("Traceback")
    if sign:
        wrong.append(f"traceback: {traceback[:1500]}")
    if result.code != 1:
        wrong.append(f"exit {result.code}: {result.err[-500:]!r}")
    return wrong
