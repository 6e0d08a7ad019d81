"""docs/parallel.md: its commands run as shown, and the records say how many processes ran them."""

import sys

import pytest

from mtlkit.store import ResultStore
from tests.documents import ROOT, marked_blocks, run_shell

PAGE = ROOT / "docs" / "parallel.md"


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["processes", "torchrun"])
def test_commands_run_as_shown(tmp_path, monkeypatch, mark):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    ((_, command),) = [block for block in marked_blocks(PAGE, "run") if block[0] == mark]
    program = command.strip().replace("torchrun", f"{sys.executable} -m torch.distributed.run")
    if not command.startswith("torchrun"):
        program = f"{sys.executable} -m {program}"
    program = program.replace("-d synthetic", "-d 'synthetic[rows=400,d=4]' --epochs 1")
    ended = run_shell(f"{program} --device cpu --jobs 1 --out {tmp_path}/results", tmp_path)
    assert ended.returncode == 0, ended.stderr
    records = [record for record, _ in ResultStore(tmp_path / "results").scan()]
    assert len(records) == 2
    assert all(record.ok for record in records)
    assert {record.environment["execution"]["processes"] for record in records} == {2}
