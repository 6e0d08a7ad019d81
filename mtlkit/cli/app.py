"""The command line: which commands there are, and how errors are printed."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from mtlkit._version import __version__
from mtlkit.cli.bench import bench
from mtlkit.cli.catalogue import info, list_entries
from mtlkit.cli.fetch import fetch
from mtlkit.cli.init import init
from mtlkit.cli.report import report
from mtlkit.errors import MtlkitError

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
app.command()(init)
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
    except (typer.Abort, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, e.g. `mtlkit list models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
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
