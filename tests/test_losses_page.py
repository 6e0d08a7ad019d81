"""The page on losses goes as shown, block by block, and names every loss."""

import os
import re
import subprocess
import sys

import pytest

from mtlkit.registry import LOSSES
from mtlkit.store import ResultStore
from tests.documents import ROOT, marked_blocks, write_files

PAGE = ROOT / "docs" / "losses.md"
SHORTER = " --models shared-bottom --references none --balancers uniform --seeds 1 --epochs 0.2"


def run(command, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(folder / "data")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the table and the files of the page."""
    folder = tmp_path_factory.mktemp("losses")
    ((_, code),) = marked_blocks(PAGE, "python")
    assert run([sys.executable, "-c", code], folder).returncode == 0
    assert len(write_files(PAGE, folder)) == 3
    return folder


@pytest.mark.slow
def test_its_commands_go_as_shown(folder):
    commands = [line for _, code in marked_blocks(PAGE, "run") for line in code.splitlines()]
    assert len(commands) == 5
    for command in commands:
        program = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", command) + SHORTER
        ended = run(["bash", "-c", program], folder)
        assert ended.returncode == 0, ended.stderr
    records = [record for record, _ in ResultStore(folder / "results").scan()]
    assert len(records) == 5
    assert all(record.ok for record in records)
    reported = {name for record in records for name in record.metrics["test"]}
    assert reported == {"task-1", "task-2", "click", "buy", "spent"}


def test_it_names_every_loss():
    text = PAGE.read_text(encoding="utf-8")
    for name in LOSSES.names():
        assert f"`{name}`" in text, name
