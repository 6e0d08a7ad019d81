import subprocess
import sys

import pytest

import mtlkit
from mtlkit.cli import app as application
from mtlkit.errors import MissingError, MtlkitError, UsageError


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help(cli, arguments):
    result = cli(*arguments)
    assert result.code == 0
    for command in ("fetch", "bench", "report", "list", "info"):
        assert command in result.out
    assert "mtlkit bench" in result.out
    assert result.err == ""


@pytest.mark.parametrize("command", ["fetch", "bench", "report", "list", "info"])
def test_help_of_commands(cli, command):
    result = cli(command, "--help")
    assert result.code == 0
    assert f"Usage: mtlkit {command}" in result.out


def test_version(cli):
    assert cli("--version").out == f"mtlkit {mtlkit.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["nope"], "No such command 'nope'.", "mtlkit --help"),
        (["bench", "--nope"], "No such option: --nope", "mtlkit bench --help"),
        (["bench", "--epochs", "many"], "Invalid value for '--epochs'", "mtlkit bench --help"),
        (["bench", "--set"], "Option '--set' requires an argument.", "mtlkit --help"),
        (["list"], "Missing argument 'kind'", "mtlkit list --help"),
        (
            ["list", "colours"],
            "Invalid value for 'kind': 'colours' is not one of",
            "mtlkit list --help",
        ),
        (["list", "models", "zz*"], "No model matches 'zz*'.", "mtlkit list models"),
        (["info", "mmoee"], "Nothing is called 'mmoee'. Did you mean mmoe", "mtlkit info mmoe"),
        (["info", "MMoE"], "Nothing is called 'MMoE'. Did you mean mmoe?", "mtlkit info mmoe"),
        (["info", "qqqqqq"], "Nothing is called 'qqqqqq'.", "mtlkit list models"),
        (
            ["fetch", "censu"],
            "There is no dataset called 'censu'. Did you mean census?",
            "mtlkit list datasets",
        ),
        (
            ["fetch", "synthetic[rows=4]"],
            "The option 'rows' of the data set synthetic cannot be 4",
            "its options are",
        ),
        (
            ["bench", "nofile.yaml"],
            "Cannot read nofile.yaml: No such file or directory.",
            "mtlkit bench --print-config",
        ),
        (
            ["bench", "--set", "lr=0"],
            "The option 'training.lr' of the grid cannot be 0",
            "mtlkit bench --print-config",
        ),
        (
            ["bench", "--device", "tpu"],
            "The option 'execution.device' of the grid cannot be 'tpu'",
            "mtlkit bench",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_usage_errors(cli, arguments, message, hint):
    result = cli(*arguments)
    assert result.code == 2
    assert result.out == ""
    first, empty, second = result.err.splitlines()
    assert first.startswith(f"error: {message}")
    assert first.endswith((".", "?"))
    assert empty == ""
    assert second.startswith(f"hint: {hint}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "FOLDER"],
        [
            "bench",
            "--dry-run",
            "-d",
            "synthetic[rows=8,d=2]",
            "--device",
            "cuda:99",
            "--data-dir",
            "FOLDER",
        ],
        ["fetch", "census", "--from", "FOLDER", "--data-dir", "FOLDER/data"],
        ["fetch", "synthetic[rows=8,d=2]", "--data-dir", "FOLDER/file/data"],
    ],
    ids=" ".join,
)
def test_what_is_missing(cli, tmp_path, arguments):
    (tmp_path / "file").write_text("")
    result = cli(*(word.replace("FOLDER", str(tmp_path)) for word in arguments))
    assert result.code == 3, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    message, hint = result.err.split("\n\nhint: ")
    assert message.startswith("error: ")
    assert hint.strip()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MtlkitError("It broke."), 1, "error: It broke.\n"),
        (UsageError("Wrong.", "mtlkit x"), 2, "error: Wrong.\n\nhint: mtlkit x\n"),
        (MissingError("Gone.", "mtlkit y"), 3, "error: Gone.\n\nhint: mtlkit y\n"),
        (KeyboardInterrupt(), 130, None),
    ],
    ids=["mtlkit", "usage", "missing", "interrupt"],
)
def test_exit_codes(cli, monkeypatch, error, code, text):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("mtlkit.registry.Registry.names", fail)
    result = cli("list", "models")
    assert result.code == code
    assert result.out == ""
    assert result.err == (result.err if text is None else text)
    assert "Traceback" not in result.err


def test_what_nobody_foresaw_is_not_hidden(cli, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("mtlkit.registry.Registry.names", fail)
    with pytest.raises(ZeroDivisionError):
        cli("list", "models")


def test_errors_as_text():
    assert str(UsageError("One.", "two")) == "One.\n\nhint: two"
    assert str(UsageError("One.")) == "One."
    assert {kind.exit_code for kind in (MtlkitError, UsageError, MissingError)} == {1, 2, 3}
    assert application.INTERRUPTED == 130


def test_the_module_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "mtlkit", "list", "zz"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: Invalid value for 'kind'")
    assert "Traceback" not in run.stderr


def test_a_reader_that_leaves_is_no_error():
    line = f"{sys.executable} -m mtlkit list balancers --json | head -c 1"
    run = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True)
    assert run.stdout == "["
    assert "Traceback" not in run.stderr
    assert "Exception" not in run.stderr
