"""The page on leaderboards goes as shown."""

import re

import pytest
import yaml

from tests.documents import ROOT, commands_of, run_well

PAGE = ROOT / "docs" / "leaderboard.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    commands = commands_of(PAGE)
    assert len(commands) == 4
    for command in commands:
        said = run_well(command, tmp_path)
        if "--check" in command:
            assert re.fullmatch(r"board/ada: 6 runs hold, sent [-\d]+ by Ada Lovelace\n", said)
    assert "Ada Lovelace" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")

    # what a workflow runs, and a run that is repeated
    (steps,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for step in yaml.safe_load(steps)[1:]:
        run_well(step["run"], tmp_path)
    (rerun,) = re.findall(r"^mtlkit rerun .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert run_well(rerun, tmp_path).startswith("same digits")
