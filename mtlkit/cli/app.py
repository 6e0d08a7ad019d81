"""The command line: which commands there are, and how errors are said."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

import mtlkit
from mtlkit.cli.bench import bench
from mtlkit.cli.catalogue import info, list_entries
from mtlkit.cli.fetch import fetch
from mtlkit.cli.report import report
from mtlkit.errors import MtlkitError

INTERRUPTED = 130
# typer carries its own copy of click or uses the installed one, by version: take the class it uses
CLICK_ERROR: Any = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

app = typer.Typer(
    name="mtlkit",
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
        print(f"mtlkit {mtlkit.__version__}")
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
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except MtlkitError as error:
        _say(error.message, error.hint)
        code = error.exit_code
    except CLICK_ERROR as error:
        context = getattr(error, "ctx", None)
        _say(
            _sentence(error.format_message()),
            f"{context.command_path if context else 'mtlkit'} --help",
        )
        code = error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, e.g. `mtlkit list models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str, hint: str | None) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"\nhint: {hint}", file=sys.stderr)


def _sentence(text: str) -> str:
    text = " ".join(text.split()).replace("Value error, ", "")
    return text if text.endswith((".", "?", "!")) else f"{text}."
