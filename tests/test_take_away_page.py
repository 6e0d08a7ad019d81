"""The page on taking models away goes as shown."""

import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT, marked_blocks

PAGE = ROOT / "docs" / "take-away.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(tmp_path / "data")}
    header = ",".join(f"x{i}" for i in range(5))
    (tmp_path / "new-rows.csv").write_text(f"{header}\n0.1,0.2,0.3,0.4,0.5\n1,2,3,4,5\n")

    def run(command):
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    commands = [code for _, code in marked_blocks(PAGE, "run")]
    assert len(commands) == 2
    for command in commands:
        ended = run(["bash", "-c", re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", command)])
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "scores.parquet").exists()
    ((_, code),) = marked_blocks(PAGE, "python")
    ended = run([sys.executable, "-c", code])
    assert ended.stdout == "('task-1', 'task-2') 2 True\n", ended.stderr
