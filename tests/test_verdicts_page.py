"""The page on verdicts goes as shown."""

import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT, marked_blocks

PAGE = ROOT / "docs" / "verdicts.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(tmp_path / "data")}
    blocks = [code for _, code in marked_blocks(PAGE, "run")]
    assert "mtlkit compare" in "".join(blocks)
    for command in "".join(blocks).splitlines():
        words = re.sub(r"-d synthetic\b", "-d 'synthetic[rows=400,d=8]'", command)
        words = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", words)
        ended = subprocess.run(
            ["bash", "-c", words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr

    [table] = (tmp_path / "results" / "report" / "tables").glob("*task-2.md")
    notes = table.read_text()
    assert "hold both noises, of the seeds and of the test rows" in notes or "Δm is not" in notes


def test_a_margin_of_nothing_is_refused(tmp_path):
    words = [sys.executable, "-m", "mtlkit", "report", str(tmp_path), "--margin", "0"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "hint: --margin 0.25" in ended.stderr
