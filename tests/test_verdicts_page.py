"""The page on verdicts goes as shown."""

import re

import pytest

from tests.documents import ROOT, commands_of, run_well

PAGE = ROOT / "docs" / "verdicts.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    commands = commands_of(PAGE)
    assert "mtlkit compare" in "".join(commands)
    for command in commands:
        run_well(re.sub(r"-d synthetic\b", "-d 'synthetic[rows=400,d=8]'", command), tmp_path)

    [table] = (tmp_path / "results" / "report" / "tables").glob("*task-2.md")
    notes = table.read_text()
    assert "hold both noises, of the seeds and of the test rows" in notes or "Δm is not" in notes


def test_a_margin_of_nothing_is_refused(cli, tmp_path):
    refused = cli("report", tmp_path, "--margin", "0")
    assert refused.code == 2
    assert "hint: --margin 0.25" in refused.err
