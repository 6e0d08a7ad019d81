"""The page on leaderboards goes as shown."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.documents import ROOT, marked_blocks

PAGE = ROOT / "docs" / "leaderboard.md"


def run(command, folder):
    program = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", command)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(folder / "data")}
    return subprocess.run(
        ["bash", "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    commands = [line for _, code in marked_blocks(PAGE, "run") for line in code.splitlines()]
    assert len(commands) == 4
    for command in commands:
        ended = run(command, tmp_path)
        assert ended.returncode == 0, ended.stderr
        if "--check" in command:
            assert re.fullmatch(
                r"board/ada: 6 runs hold, sent [-\d]+ by Ada Lovelace\n", ended.stdout
            )
    assert "Ada Lovelace" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")

    # what a workflow runs, and a run that is repeated
    (steps,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for step in yaml.safe_load(steps)[1:]:
        assert run(step["run"], tmp_path).returncode == 0
    (rerun,) = re.findall(r"^mtlkit rerun .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert run(rerun, tmp_path).stdout.startswith("same digits")
