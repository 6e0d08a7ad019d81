"""The page on data of one's own goes as shown, block by block."""

import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT, marked_blocks, write_files

PAGE = ROOT / "docs" / "own-data.md"
SHORTER = " --models shared-bottom --balancers uniform --seeds 1 --epochs 0.2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the table and the files of the page."""
    folder = tmp_path_factory.mktemp("own")
    ((_, code),) = [block for block in marked_blocks(PAGE, "python") if block[0] == "table"]
    assert run([sys.executable, "-c", code], folder).returncode == 0
    assert write_files(PAGE, folder)
    return folder


def run(command, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(folder / "data")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def commands():
    blocks = [code for _, code in marked_blocks(PAGE, "run")]
    return [line for code in blocks for line in code.splitlines() if line]


@pytest.mark.slow
def test_its_commands_go_as_shown(folder):
    assert len(commands()) == 7
    for command in commands():
        program = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", command)
        if command.startswith("mtlkit bench") and "--dry-run" not in command:
            program += SHORTER
        ended = run(["bash", "-c", program], folder)
        assert ended.returncode == 0, ended.stderr


def test_its_python_goes_as_shown(folder):
    ((_, code),) = [block for block in marked_blocks(PAGE, "python") if not block[0]]
    ended = run([sys.executable, "-c", code], folder)
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
