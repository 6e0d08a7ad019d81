"""The command line: which commands there are, and how errors are printed."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from inspect import getdoc
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from mtlkit._version import __version__
from mtlkit.cli.advise import advise
from mtlkit.cli.bench import bench
from mtlkit.cli.catalogue import info, list_entries
from mtlkit.cli.compare import compare
from mtlkit.cli.diagnose import diagnose
from mtlkit.cli.doctor import doctor
from mtlkit.cli.export import export
from mtlkit.cli.fetch import fetch
from mtlkit.cli.init import init
from mtlkit.cli.merge import merge
from mtlkit.cli.plan import plan
from mtlkit.cli.predict import predict
from mtlkit.cli.report import report
from mtlkit.cli.rerun import rerun
from mtlkit.cli.status import status
from mtlkit.cli.submit import submit
from mtlkit.errors import MissingError, MtlkitError, UsageError, one_line

PROGRAM = "mtlkit"
GARBAGE_EVERY = 50_000
"""New objects after which Python looks for garbage: imports and records keep what they make."""

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

# typer carries its own copy of click or uses the installed one, by version: take the class it uses
CLICK_ERROR: Any = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

app = typer.Typer(
    name=PROGRAM,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(command: Callable[..., None], name: str | None = None, **settings: Any) -> None:
    """Make a function a command. A paragraph of its docstring becomes one line, which is broken as
    the terminal needs it.
    """
    paragraphs = (getdoc(command) or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name, help=text, **settings)(command)


_add(fetch)
_add(init)
_add(bench)
_add(plan, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
_add(status)
_add(merge)
_add(report)
_add(submit)
_add(compare)
_add(diagnose)
_add(advise)
_add(predict)
_add(rerun)
_add(export)
_add(list_entries, "list")
_add(info)
_add(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Benchmark multi-task-learning methods for recommendation: architecture x balancer x seed.

    Start with [bold]mtlkit bench[/bold]: it fetches a data set and runs a small grid.
    """


class _StopSignals:
    """Ctrl-C and SIGTERM: the first one ends a command, the second one does so without grace, and
    later ones disturb neither.

    Attributes:
        received: Their numbers, in the order in which they came.
    """

    def __init__(self) -> None:
        self.received: list[int] = []

    def install(self) -> None:
        """React from now on; what is ignored, such as Ctrl-C in a background job, stays so."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                with suppress(ValueError):  # in a thread that is not the main one
                    signal.signal(number, self._react)

    def ignore(self) -> None:
        """Go on ignoring them until the process has ended: Python itself would not."""
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):
                signal.signal(number, signal.SIG_IGN)

    def _react(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) <= 2:
            raise KeyboardInterrupt


def main() -> None:
    """Run a command. Errors are one sentence and a hint on stderr, with the exit code of their
    kind.
    """
    gc.set_threshold(GARBAGE_EVERY)
    stop = _StopSignals()
    stop.install()
    _ready_streams()
    try:
        # the name is given, for messages say mtlkit also where python -m started it
        code = app(_arguments(), standalone_mode=False, prog_name=PROGRAM)
        # what cannot be written is noticed here, and not when Python has ended already
        sys.stdout.flush()
    except MtlkitError as error:
        _print_error(error.message, error.hint)
        code = error.exit_code
    except CLICK_ERROR as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else PROGRAM
        _print_error(_sentence(error.format_message()), f"{command} --help")
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Abort as error:
        # The parser makes one of EOFError, as if somebody had been asked and said nothing. Nobody
        # is asked here: it is an error like any other.
        if isinstance(error.__cause__, EOFError):
            raise error.__cause__ from None
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, e.g. `mtlkit list models | head -1`
        _write_no_more()
        code = 0
    except OSError as error:
        _print_error(*_told(error))
        _write_no_more()
        code = MissingError.exit_code
    if stop.received:
        code = 128 + stop.received[0]
        stop.ignore()
    if code in (INTERRUPTED, TERMINATED):
        print("\ninterrupted", file=sys.stderr)
    _end(code if isinstance(code, int) else 0)


def _end(code: int) -> NoReturn:
    """End the process. As one of several that train together it ends without tidying up, in which
    threads of PyTorch now and then abort the interpreter.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _ready_streams() -> None:
    """Make the standard streams take any text. Those that are closed lead nowhere: the next file
    that is opened would take their number. Letters that the encoding lacks are escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - never closed
            setattr(sys, name, nowhere)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _write_no_more() -> None:
    """Lead stdout nowhere: what it could not take would be tried again when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _arguments() -> list[str]:
    """What was typed; ``--help`` if nothing was. A :class:`UsageError` for an empty argument: as a
    path it would mean the folder one is in.
    """
    arguments = sys.argv[1:] or ["--help"]
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag = before if before.startswith("-") else ""
        if argument.startswith("--") and argument.endswith("=") and argument.count("=") == 1:
            flag, argument = argument[:-1], ""
        if not argument:
            what = f"The value of {flag}" if flag else "An argument"
            raise UsageError(
                f"{what} is empty: it names nothing, as does a shell variable that is not set.",
                f"{PROGRAM} --help",
            )
    return arguments


def _told(error: OSError) -> tuple[str, str]:
    """A sentence and a hint about what the system refused, such as a name that is too long."""
    reason = one_line(error.strerror or error)
    if reason.startswith("AF_UNIX"):  # the socket of a process lies in the temporary folder
        return f"The path of the temporary folder is too long: {reason}.", "TMPDIR=/tmp mtlkit ..."
    if error.filename is None:
        return f"{reason}.", "make room, or choose other folders with --out and --data-dir"
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{one_line(name)} cannot be used: {reason}.", "give another file or folder"


def _print_error(message: str, hint: str | None) -> None:
    """The one form in which errors are printed; it goes to stderr, if somebody listens there."""
    with suppress(OSError):
        print(f"error: {message}", file=sys.stderr)
        if hint:
            print(f"\nhint: {hint}", file=sys.stderr)


def _sentence(text: str) -> str:
    """A message of the parser as one line that ends like a sentence."""
    text = " ".join(text.split()).replace("Value error, ", "")
    return text if text.endswith((".", "?", "!")) else f"{text}."
