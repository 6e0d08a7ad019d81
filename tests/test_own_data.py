"""The page on data of one's own goes as shown, block by block."""

import re

import pytest

from tests.documents import ROOT, commands_of, marked_blocks, run_python, run_well, write_files

PAGE = ROOT / "docs" / "own-data.md"
SHORTER = " --models shared-bottom --balancers uniform --seeds 1 --epochs 0.2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the table and the files of the page."""
    folder = tmp_path_factory.mktemp("own")
    ((_, code),) = [block for block in marked_blocks(PAGE, "python") if block[0] == "table"]
    assert run_python(code, folder).returncode == 0
    assert write_files(PAGE, folder)
    return folder


@pytest.mark.slow
def test_its_commands_go_as_shown(folder):
    commands = commands_of(PAGE)
    assert len(commands) == 7
    for command in commands:
        if command.startswith("mtlkit bench") and "--dry-run" not in command:
            command += SHORTER
        run_well(command, folder)


def test_its_python_goes_as_shown(folder):
    ((_, code),) = [block for block in marked_blocks(PAGE, "python") if not block[0]]
    ended = run_python(code, folder)
    assert ended.returncode == 0, ended.stderr
    assert 0 < float(ended.stdout) < 1


def test_it_names_every_option_and_every_lint():
    from mtlkit.data import lints
    from mtlkit.data.table.spec import TableSpec

    text = PAGE.read_text(encoding="utf-8")
    for option in TableSpec.model_fields:
        assert re.search(rf"`{option}`|`?{option}:|--{option}\b", text), option
    source = (ROOT / "mtlkit" / "data" / "lints.py").read_text(encoding="utf-8")
    names = set(re.findall(r'Lint\(\s*"([a-z ]+)"', source))
    assert lints.Lint
    assert len(names) == 11
    for name in names:
        assert f"`{name}`" in text, name
