"""The page on findings and advice goes as shown, on less data."""

import re

import pytest

from tests.documents import ROOT, commands_of, run_well

PAGE = ROOT / "docs" / "advice.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    commands = commands_of(PAGE)
    assert len(commands) == 3
    for command in commands:
        words = re.sub(r"-d synthetic\b", "-d 'synthetic[rows=200,d=4]'", command)
        said = run_well(words, tmp_path)
    # the last one ends with a command that goes
    last = said.splitlines()[-1]
    assert last.startswith("mtlkit bench -d 'synthetic[rows=200,d=4]' --models ")
    run_well(f"{last} --dry-run", tmp_path)
