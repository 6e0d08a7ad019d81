"""The command line: which commands there are, and how errors are printed."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any

import typer

from mtlkit._version import __version__
from mtlkit.cli.bench import bench
from mtlkit.cli.catalogue import info, list_entries
from mtlkit.cli.fetch import fetch
from mtlkit.cli.report import report
from mtlkit.errors import MtlkitError

PROGRAM = "mtlkit"
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
app.command()(fetch)
app.command()(bench)
app.command()(report)
app.command("list")(list_entries)
app.command()(info)


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

    Start with [bold]mtlkit bench[/bold]: it fetches Census-Income, runs a small grid and says what
    to type next.
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
    stop = _StopSignals()
    stop.install()
    try:
        # the name is given, for messages say mtlkit also where python -m started it
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False, prog_name=PROGRAM)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if stop.received:
        code = 128 + stop.received[0]
        stop.ignore()
    if code in (INTERRUPTED, TERMINATED):
        print("\ninterrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(message: str, hint: str | None) -> None:
    """The one form in which errors are printed; it goes to stderr."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"\nhint: {hint}", file=sys.stderr)


def _sentence(text: str) -> str:
    """A message of the parser as one line that ends like a sentence."""
    text = " ".join(text.split()).replace("Value error, ", "")
    return text if text.endswith((".", "?", "!")) else f"{text}."
