"""The page on relations of tasks goes as shown, on less data."""

import os
import subprocess
import sys

import pytest

from tests.documents import ROOT, marked_blocks

PAGE = ROOT / "docs" / "relations.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(tmp_path / "data")}
    [block] = [code for _, code in marked_blocks(PAGE, "run")]
    said = []
    for command in filter(None, block.splitlines()):
        words = command.replace("tasks=3]", "tasks=3,rows=1500,d=8]")
        words = words.replace("mtlkit", f"{sys.executable} -m mtlkit", 1)
        if " bench " in words:
            words += " --epochs 20 --batch-size 50 --seeds 2 --set metrics=ece"
        ended = subprocess.run(
            ["bash", "-c", words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stdout)
    assert "mmoe on task-1 + task-2" in said[0]
    [table] = (tmp_path / "results" / "report" / "tables").glob("*-relations.md")
    assert "trained together, task-1" in table.read_text()
