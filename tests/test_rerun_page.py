"""The page on reruns goes as shown."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT, marked_blocks

PAGE = ROOT / "docs" / "rerun.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the results of the page's first commands."""
    folder = tmp_path_factory.mktemp("page")
    for command in commands(""):
        ended = run(command, folder)
        assert ended.returncode == 0, ended.stderr
        if "rerun" in command:
            assert ended.stdout == "same digits: all metrics are the same to the last digit\n"
    return folder


def commands(argument):
    blocks = [code for own, code in marked_blocks(PAGE, "run") if own == argument]
    return [line for code in blocks for line in code.splitlines()]


def run(command, folder):
    program = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", command)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(folder / "data")}
    return subprocess.run(
        ["bash", "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_its_commands_go_as_shown(folder):
    assert len(commands("")) == 3
    assert len(list(folder.glob("results/*/*/*/*/record.json"))) == 3


@pytest.mark.slow
def test_its_export_goes_as_shown(folder):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is an extra")
    (command,) = commands("tensorboard")
    ended = run(command, folder)
    assert ended.returncode == 0, ended.stderr
    assert len(list(folder.glob("logs/**/events.*"))) == 3
