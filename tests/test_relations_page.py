"""The page on relations of tasks goes as shown, on less data."""

import pytest

from tests.documents import ROOT, commands_of, run_well

PAGE = ROOT / "docs" / "relations.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    said = []
    for command in commands_of(PAGE):
        words = command.replace("tasks=3]", "tasks=3,rows=1500,d=8]")
        if " bench " in words:
            words += " --epochs 20 --batch-size 50 --seeds 2 --set metrics=ece"
        said.append(run_well(words, tmp_path))
    assert "mmoe on task-1 + task-2" in said[0]
    [table] = (tmp_path / "results" / "report" / "tables").glob("*-relations.md")
    assert "trained together, task-1" in table.read_text()
