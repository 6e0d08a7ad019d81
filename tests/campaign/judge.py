"""A bad input, the folders that it may touch, and what must hold of the answer to it."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from mtlkit.data.data_home import VARIABLE
from mtlkit.data.sources import prepare
from mtlkit.errors import MtlkitError
from tests.conftest import DATA, CommandResult, run_cli
from tests.fakes import fill

USAGE, MISSING = 2, 3
"""Exit codes of a wrong command, and of something that is missing or damaged."""

EITHER = (USAGE, MISSING)
"""The exit codes where it is a matter of taste whose fault it is."""

Code = int | tuple[int, ...]
SNAPSHOT = dict[str, bytes | str]


@dataclass(frozen=True)
class Place:
    """The folders of one case, side by side in one folder that is its own.

    Args:
        root: The folder around them.
    """

    root: Path

    @property
    def here(self) -> Path:
        """Where the command is typed."""
        return self.root / "here"

    @property
    def home(self) -> Path:
        """The data home, which holds the small synthetic data set."""
        return self.root / "home"

    @property
    def out(self) -> Path:
        """The results folder."""
        return self.root / "out"

    def snapshot(self) -> SNAPSHOT:
        """Every path outside of home and results, with the bytes of the files."""
        paths = [path for path in self.root.rglob("*") if "__pycache__" not in path.parts]
        return {
            str(path): path.read_bytes() if path.is_file() else ""
            for path in paths
            if not path.is_relative_to(self.home) and not path.is_relative_to(self.out)
        }


class Ground:
    """What the places of many cases are copied from.

    Args:
        folder: An empty folder, in which everything happens.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = 0
        prepare(DATA, folder / "home")
        fill(folder / "out", models=("mmoe",), balancers=("uniform", "uwl"), seeds=(0, 1))

    def place(self, with_results: bool = False) -> Place:
        """The folders of a new case; with the results of a small grid, if those are asked for."""
        self.places += 1
        place = Place(self.folder / f"{self.places}")
        place.here.mkdir(parents=True)
        shutil.copytree(self.folder / "home", place.home)
        if with_results:
            shutil.copytree(self.folder / "out", place.out)
        return place


Act = Callable[[Place], CommandResult]


@dataclass(frozen=True)
class Case:
    """A bad input, and the answer that it should get.

    Args:
        kind: What is bad: a row of the table of the campaign.
        name: What it is, for people.
        act: Gives the input to mtlkit.
        code: The exit code of the answer. 0 stands for input of which a part is bad: the rest is
            dealt with, and a warning names the part.
        word: What the message must name.
        files: File name to content, where the command is typed.
        set_up: What else is done to the folders before.
        with_results: Whether there are results.
    """

    kind: str
    name: str
    act: Act
    code: Code
    word: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    set_up: Callable[[Place], object] | None = None
    with_results: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"

    def complaints(self, ground: Ground) -> list[str]:
        """What does not hold of the answer; nothing where all is well."""
        place = ground.place(self.with_results)
        for name, content in self.files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (place.here / name).write_bytes(data)
        if self.set_up is not None:
            self.set_up(place)

        before = place.snapshot()
        here = contextlib.chdir(place.here)
        with here, mock.patch.dict(os.environ, {VARIABLE: str(place.home)}):
            result = self.act(place)
        wrong = judge_answer(result, self.code, self.word)
        changed = dict(place.snapshot().items() ^ before.items())
        if changed:
            wrong.append(f"changed outside of home and results: {sorted(changed)}")
        if not wrong:
            shutil.rmtree(place.root)
        return wrong


def judge_answer(result: CommandResult, code: Code, word: str) -> list[str]:
    """What does not hold of an answer: exit code, one sentence that names the cause, a hint."""
    wrong = []
    if "Traceback" in result.err or "Traceback" in result.out:
        wrong.append(f"traceback: {result.err.strip().splitlines()[-1]}")
    if result.code not in (code if isinstance(code, tuple) else (code,)):
        wrong.append(f"exit {result.code}, not {code}")

    # errors end with a hint, warnings do without
    message, _, hint = result.err.partition("\n\nhint: ")
    sign = "error: " if code else "could not be read"
    if sign not in message:
        wrong.append(f"no {sign!r} in {result.err[:200]!r}")
    if code and not hint.strip():
        wrong.append("no hint")
    if word not in message:
        wrong.append(f"{word!r} is not named in {message[:400]!r}")
    return wrong


# --- ways to give an input


def command(*arguments: str) -> Act:
    """A command line; ``{home}`` and ``{out}`` stand for those folders."""

    def act(place: Place) -> CommandResult:
        typed = [
            argument.replace("{home}", "../home").replace("{out}", "../out")
            for argument in arguments
        ]
        return guarded(lambda: run_cli(*typed))

    return act


def bench(*arguments: str, dataset: str = DATA) -> Act:
    """The plan of a grid on the small data set."""
    where = ("--data-dir", "{home}", "--out", "{out}", "--dry-run")
    return command("bench", "-d", dataset, *where, *arguments)


def call(function: Callable[[Place], object]) -> Act:
    """A call of a function of ``import mtlkit``, told as the command line would."""

    def act(place: Place) -> CommandResult:
        def run() -> CommandResult:
            try:
                answer = function(place)
            except MtlkitError as error:
                return CommandResult(error.exit_code, "", f"error: {error}")
            return CommandResult(0, repr(answer), "")

        return guarded(run)

    return act


def guarded(run: Callable[[], CommandResult]) -> CommandResult:
    """What a process would end with: an error that nobody catches is a traceback and exit code 1."""
    modules = set(sys.modules)
    err = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(err):
            warnings.simplefilter("always")
            return run()
    except BaseException:
        return CommandResult(1, "", err.getvalue() + traceback.format_exc())
    finally:
        # a plugin of one case is none of the next
        for name in set(sys.modules) - modules:
            if name.startswith("mtlkit_plugin"):
                del sys.modules[name]
