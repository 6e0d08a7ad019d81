"""The page on losses goes as shown, block by block, and names every loss."""

import pytest

from mtlkit.registry import LOSSES
from mtlkit.store import ResultStore
from tests.documents import ROOT, commands_of, marked_blocks, run_python, run_well, write_files

PAGE = ROOT / "docs" / "losses.md"
SHORTER = " --models shared-bottom --references none --balancers uniform --seeds 1 --epochs 0.2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the table and the files of the page."""
    folder = tmp_path_factory.mktemp("losses")
    ((_, code),) = marked_blocks(PAGE, "python")
    assert run_python(code, folder).returncode == 0
    assert len(write_files(PAGE, folder)) == 3
    return folder


@pytest.mark.slow
def test_its_commands_go_as_shown(folder):
    commands = commands_of(PAGE)
    assert len(commands) == 5
    for command in commands:
        run_well(command + SHORTER, folder)
    records = [record for record, _ in ResultStore(folder / "results").scan()]
    assert len(records) == 5
    assert all(record.ok for record in records)
    reported = {name for record in records for name in record.metrics["test"]}
    assert reported == {"task-1", "task-2", "click", "buy", "spent"}


def test_it_names_every_loss():
    text = PAGE.read_text(encoding="utf-8")
    for name in LOSSES.names():
        assert f"`{name}`" in text, name
