"""The page on findings and advice goes as shown, on less data."""

import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT, marked_blocks

PAGE = ROOT / "docs" / "advice.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(tmp_path / "data")}
    commands = [
        line for _, code in marked_blocks(PAGE, "run") for line in code.splitlines() if line
    ]
    assert len(commands) == 3
    for command in commands:
        words = re.sub(r"-d synthetic\b", "-d 'synthetic[rows=200,d=4]'", command)
        words = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", words)
        ended = subprocess.run(
            ["bash", "-c", words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
    # the last one ends with a command that goes
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("mtlkit bench -d 'synthetic[rows=200,d=4]' --models ")
    planned = subprocess.run(
        ["bash", "-c", last.replace("mtlkit", f"{sys.executable} -m mtlkit", 1) + " --dry-run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
