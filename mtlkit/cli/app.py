"""The command line: which commands there are, and how errors are printed."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from mtlkit._version import __version__
from mtlkit.cli.bench import bench
from mtlkit.cli.catalogue import info, list_entries
from mtlkit.cli.fetch import fetch
from mtlkit.cli.report import report
from mtlkit.errors import MissingError, MtlkitError, UsageError, one_line

PROGRAM = "mtlkit"
INTERRUPTED = 130

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


def main() -> None:
    """Run a command. Errors are one sentence and a hint on stderr, with the exit code of their
    kind.
    """
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
    except (typer.Abort, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, e.g. `mtlkit list models | head -1`
        _write_no_more()
        code = 0
    except OSError as error:
        _print_error(*_told(error))
        _write_no_more()
        code = MissingError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


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
    """What was typed; ``--help`` if nothing was.

    Raises:
        UsageError: An argument is empty. As a path it would mean the folder one is in.
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
