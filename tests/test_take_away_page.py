"""The page on taking models away goes as shown."""

import pytest

from tests.documents import ROOT, commands_of, marked_blocks, run_python, run_well

PAGE = ROOT / "docs" / "take-away.md"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    header = ",".join(f"x{i}" for i in range(5))
    (tmp_path / "new-rows.csv").write_text(f"{header}\n0.1,0.2,0.3,0.4,0.5\n1,2,3,4,5\n")

    commands = commands_of(PAGE)
    assert len(commands) == 2
    for command in commands:
        run_well(command, tmp_path)
    assert (tmp_path / "scores.parquet").exists()
    ((_, code),) = marked_blocks(PAGE, "python")
    ended = run_python(code, tmp_path)
    assert ended.stdout == "('task-1', 'task-2') 2 True\n", ended.stderr
