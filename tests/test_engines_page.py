"""docs/engines.md: its commands run as shown, one after the other, in one folder."""

import pytest

from mtlkit.store import ResultStore
from tests.documents import ROOT, marked_blocks, run_well

SHORTER = "--epochs 0.5 --device cpu --jobs 1"


@pytest.mark.slow
def test_commands_run_as_shown(tmp_path):
    told = []
    for mark, code in marked_blocks(ROOT / "docs" / "engines.md", "run"):
        text = code.replace("-d synthetic", "-d 'synthetic[rows=200,d=4]'").strip()
        text = f"{text} {SHORTER}" if mark == "bench" else text
        told.append(run_well(text, tmp_path))
    assert "6 done, 0 failed; no grid is running." in told[1]
    parts = [len(list(ResultStore(tmp_path / f"part-{number}").scan())) for number in (1, 2)]
    assert parts[0] == 8, "with those of the other part"
    assert 0 < parts[1] < 8
    assert "#SBATCH --array=1-16" in (tmp_path / "grid.sh").read_text()
