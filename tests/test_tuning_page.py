"""The page on tuning goes as shown, on less data."""

import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT, marked_blocks, write_files

PAGE = ROOT / "docs" / "tuning.md"
SHORTER = " --epochs 1 --batch-size 50 --seeds 2 --tune 3"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    [file] = write_files(PAGE, tmp_path)
    small = "synthetic[rows=200,d=4]"
    file.write_text(file.read_text().replace("dataset: synthetic", f"dataset: {small}"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(tmp_path / "data")}

    blocks = [code for _, code in marked_blocks(PAGE, "run")]
    commands = [line for code in blocks for line in code.splitlines() if line]
    assert len(commands) == 7
    for command in commands:
        words = re.sub(r"-d synthetic\b", f"-d '{small}'", command)
        words = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", words)
        if " bench " in words:
            tuned = "--tune" in command or ".yaml" in command
            by_number = tuned and "krows" not in command
            words += SHORTER if by_number else SHORTER.partition(" --tune")[0]
            words = words.replace(" --tune 20", "").replace("600krows", "300rows")
        ended = subprocess.run(
            ["bash", "-c", words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr

    report = next((tmp_path / "results" / "report" / "tables").glob("*-2.md"))
    text = report.read_text()
    assert "mmoe (untuned)" in text
    assert "of 3 trials" in text
