"""docs/stacking.md: its command runs as shown, and the records say that they were stacked."""

import pytest

from mtlkit.store import ResultStore
from tests.documents import ROOT, run_commands

PAGE = ROOT / "docs" / "stacking.md"


@pytest.mark.slow
def test_command_runs_as_shown(tmp_path):
    flags = f"-d 'synthetic[rows=400,d=4]' --device cpu --jobs 1 --out {tmp_path}/results"
    (ended,) = run_commands(PAGE, tmp_path, "bench", flags)
    assert ended.returncode == 0, ended.stderr
    records = [record for record, _ in ResultStore(tmp_path / "results").scan()]
    assert len(records) == 4
    assert {record.environment["stacked"] for record in records} == {4}
