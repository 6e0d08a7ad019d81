import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import mtlkit
from mtlkit.cli import app as application
from mtlkit.errors import MissingError, MtlkitError, UsageError
from tests.data.test_plugin import write_coins
from tests.fakes import fill


def test_brackets_are_seen_in_help():
    # an unescaped one would be taken for markup, and vanish
    for name, command in get_command(application.app).commands.items():
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert not re.search(r"(?<!\\)\[", text), (name, parameter.name)


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
        "report FOLDER",
        "bench --dry-run -d synthetic[rows=8,d=2] --device cuda:99 --data-dir FOLDER",
        "fetch census --from FOLDER --data-dir FOLDER/data",
        "fetch synthetic[rows=8,d=2] --data-dir FOLDER/file/data",
    ],
)
def test_what_is_missing(cli, tmp_path, arguments):
    (tmp_path / "file").write_text("")
    result = cli(*(word.replace("FOLDER", str(tmp_path)) for word in arguments.split()))
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


# --- what a shell hands over

FLAGS_WITH_A_VALUE = {
    "bench": (
        "-d --models --balancers --references --tasks --seeds --epochs --batch-size --lr --patience "
        "--device --jobs --timeout --init-from --freeze --out --data-dir --set"
    ),
    "fetch": (
        "--data-dir --from --protocol --fields --min-count --sample --simulate --max-bad-rows "
        "--url-train --url-test"
    ),
    "report": "--out",
}
EMPTY = [(command, flag) for command, flags in FLAGS_WITH_A_VALUE.items() for flag in flags.split()]


@pytest.mark.parametrize(("command", "flag"), EMPTY)
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_a_flag_with_an_empty_value(cli, tmp_path, monkeypatch, command, flag, form):
    """As a path, nothing is the folder one is in, which a shell variable that is not set does not
    mean.
    """
    monkeypatch.chdir(tmp_path)
    if form == "one word" and not flag.startswith("--"):
        return
    words = [flag, ""] if form == "two words" else [f"{flag}="]
    target = ["synthetic"] if command == "fetch" else []
    result = cli(command, *target, *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: The value of {flag} is empty: it names nothing")
    assert "hint: " in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["bench", "fetch", "report", "info", "list", ""])
def test_an_empty_argument(cli, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    result = cli(*filter(None, [command]), "")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: An argument is empty")
    assert list(tmp_path.iterdir()) == []


def test_set_takes_an_empty_value(cli):
    """``--set x=`` is no value of x, which some settings have."""
    result = cli("bench", "-d", "synthetic", "--set", "clip_norm=", "--print-config")
    assert result.code == 0
    assert "clip_norm: null" in result.out


LONG = "x" * 5000
ODD_TEXTS = {
    "long": LONG,
    "digits": "9" * 5000,
    "blank": " ",
    "accents": "\u00e9\u00e8",
    "chinese": "\u65e5\u672c",
    "no utf-8": os.fsdecode(b"\xff\xfe"),
    "right to left": "\u202eabc",
    "control": "\x1b[31m",
    "two lines": "a\nb",
    "null": "a\0b",
    "bracket": "a[b",
    "format": "{0}%s",
    "home": "~nobody-of-this-name/x",
    "python": ".py",
    "device": "/dev/zero",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
@pytest.mark.parametrize(
    "words",
    [
        "TEXT",
        "list TEXT",
        "list models TEXT",
        "info TEXT",
        "fetch TEXT",
        "fetch ali-ccp --from TEXT",
        "fetch ali-ccp --protocol TEXT",
        "fetch ali-ccp --url-train TEXT",
        "fetch synthetic --min-count TEXT",
        "report TEXT",
        "report TEXT --json",
        "bench TEXT",
        "bench -d TEXT",
        "bench -d SMALL --models TEXT",
        "bench -d SMALL --balancers TEXT",
        "bench -d SMALL --references TEXT",
        "bench -d SMALL --tasks TEXT",
        "bench -d SMALL --seeds TEXT",
        "bench -d SMALL --epochs TEXT",
        "bench -d SMALL --device TEXT",
        "bench -d SMALL --init-from TEXT",
        "bench -d SMALL --freeze TEXT",
        "bench -d SMALL --set TEXT",
        "bench -d SMALL --set lr=TEXT",
        "bench -d SMALL --set out=TEXT/a\0b",
    ],
)
def test_odd_texts_are_refused_in_words(cli, home, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    arguments = [
        word.replace("TEXT", text).replace("SMALL", "synthetic[rows=200,d=4]")
        for word in words.split()
    ]
    if arguments[0] in {"bench", "fetch"}:
        arguments += ["--data-dir", str(home)]
    result = cli(*arguments)
    assert result.code in {1, 2, 3}, result.out
    assert "Traceback" not in result.err
    assert result.err.startswith("error: ") or "\nerror: " in result.err
    assert "\n\nhint: " in result.err
    assert len(result.err) < 13_000
    assert list(tmp_path.iterdir()) == []


def no_network(*_, **__):
    raise socket.gaierror("Name or service not known")


def test_what_the_system_refuses(cli, tmp_path):
    name = tmp_path / LONG
    result = cli("report", name)
    assert result.code == 3
    assert result.err.startswith(f"error: {name}"[:300])
    assert result.err.endswith(
        " cannot be used: File name too long.\n\nhint: give another file or folder\n"
    )


# --- where the output goes


def shell(line, **environment):
    """Run a line of bash in which ``mtlkit`` is this package."""
    program = f"{shlex.quote(sys.executable)} -m mtlkit"
    return subprocess.run(
        ["bash", "-c", line.replace("mtlkit", program, 1)],
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("mtlkit list models >&-", 0),
        ("mtlkit list models <&- >&- 2>&-", 0),
        ("mtlkit info nothing 2>&-", 2),
        ("mtlkit info nothing 2>&1 >&-", 2),
        ("mtlkit --help >&-", 0),
    ],
)
def test_closed_streams(line, code):
    run = shell(line)
    assert run.returncode == code
    assert b"Traceback" not in run.stdout + run.stderr
    assert b"Exception" not in run.stdout + run.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", ["list models", "info census --json", "--help"])
def test_a_full_disk_behind_stdout(command):
    run = shell(f"mtlkit {command} > /dev/full")
    assert run.returncode == 3
    assert run.stderr.decode().startswith("error: No space left on device.\n\nhint: ")
    assert b"Exception" not in run.stderr


def test_nobody_reads_the_errors():
    run = shell("set -o pipefail; (mtlkit info nothing 2>&1; echo $? >&2) | true")
    assert run.stderr.strip() in {b"2", b"1"}


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "cp1251"])
def test_an_encoding_that_lacks_letters(encoding):
    run = shell("mtlkit info synthetic", PYTHONIOENCODING=encoding, COLUMNS="80")
    assert run.returncode == 0, run.stderr
    letter = "\u00b1".encode(encoding.partition(":")[0], "backslashreplace")
    assert b"-0.002 " + letter + b" 0.005" in run.stdout
    assert run.stderr == b""


def test_json_is_the_same_in_every_encoding():
    run = shell("mtlkit info synthetic --json", PYTHONIOENCODING="ascii")
    assert "-0.002 \u00b1 0.005" in json.loads(run.stdout)["description"]


def test_names_that_are_not_utf_8_can_be_printed(tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.py")
    write_coins(file, 0)
    run = shell(f"mtlkit info '{file}'")
    assert run.returncode == 0, run.stderr
    shown = b" ".join(run.stdout.split())
    assert b"caf\\udce9.py dataset" in shown
    assert json.loads(shell(f"mtlkit info '{file}' --json").stdout)["name"] == str(file)


@pytest.mark.parametrize("width", [20, 80])
@pytest.mark.parametrize("command", ["list datasets", "info synthetic", "bench --help"])
def test_narrow_terminals(command, width):
    run = shell(f"mtlkit {command}", COLUMNS=str(width))
    assert run.returncode == 0
    assert max(len(line) for line in run.stdout.decode().splitlines()) <= width


def test_a_report_without_a_home(tmp_path):
    """Matplotlib says so in two long lines, and goes on with a folder for temporary files."""
    fill(tmp_path / "results", ("mmoe",), ("uniform",), seeds=(0, 1), with_probes=False)
    out = shlex.quote(str(tmp_path / "results"))
    run = shell(f"unset MPLCONFIGDIR XDG_CONFIG_HOME; mtlkit report {out}", HOME="/dev/null/home")
    assert run.returncode == 0
    assert run.stderr.decode().startswith("\nhint: open ")


def test_a_temporary_folder_whose_path_is_too_long_for_a_socket():
    with pytest.raises(OSError) as caught, socket.socket(socket.AF_UNIX) as connection:
        connection.bind("x" * 200)
    message, hint = application._told(caught.value)
    assert "temporary folder is too long" in message
    assert hint.startswith("TMPDIR=")
