import os
import signal
import subprocess
import sys

import pytest

from mtlkit.store import RECORD, ResultStore
from tests import fakes
from tests.conftest import files


@pytest.fixture
def folders(tmp_path):
    """Two folders with two runs each, one of them in both: there it failed in the first."""
    a, b = ResultStore(tmp_path / "a"), ResultStore(tmp_path / "b")
    a.save(fakes.record(fakes.cell(seed=0)), {"scores": {"x": fakes.np.ones(3)}}, "a log")
    a.save(fakes.failure(fakes.cell(seed=1)))
    b.save(fakes.record(fakes.cell(seed=1)), {"scores": {"x": fakes.np.ones(3)}}, "a log")
    b.save(fakes.record(fakes.cell(seed=2)))
    return a, b


def same_files(one, other, cell):
    ours, theirs = (store.files(store.folder(cell)) for store in (one, other))
    return ours == theirs


def test_merge(folders, cli):
    a, b = folders
    before = files(b.root)
    told = cli("merge", a.root, b.root)
    assert (told.code, told.err) == (0, f"2 runs came to {a.root}.\n")
    assert {(record.cell.seed, record.status) for record, _ in a.scan()} == {
        (0, "ok"),
        (1, "ok"),
        (2, "ok"),
    }
    assert all(same_files(a, b, fakes.cell(seed=seed)) for seed in (1, 2))
    assert files(b.root) == before
    merged = files(a.root)
    assert cli("merge", a.root, b.root).err == f"0 runs came to {a.root}.\n"
    assert files(a.root) == merged


def test_into_a_new_folder(folders, cli, tmp_path):
    a, b = folders
    assert cli("merge", tmp_path / "new", a.root, b.root).code == 0
    assert len(list(ResultStore(tmp_path / "new").scan())) == 3
    assert all(record.ok for record, _ in ResultStore(tmp_path / "new").scan())


def test_other_times_are_no_conflict(folders, cli):
    a, b = folders
    record = fakes.record(fakes.cell(seed=0))
    b.save(record.model_copy(update={"timing": {"total_seconds": 99.0}}))
    before = a.get(record.cell)
    assert cli("merge", a.root, b.root).code == 0
    assert a.get(record.cell) == before


def test_conflicts_are_refused_before_anything_is_written(folders, cli, tmp_path):
    a, b = folders
    record = fakes.record(fakes.cell(seed=0))
    record.metrics["test"]["income"]["auc"] += 1e-12
    folder = b.save(record)
    before = files(a.root)
    told = cli("merge", a.root, b.root)
    assert told.code == 1
    assert f"{folder} and {a.folder(record.cell)}" in told.err
    assert "nothing was copied" in told.err
    assert "\n\nhint: " in told.err
    assert files(a.root) == before
    assert cli("merge", tmp_path / "new", a.root, b.root).code == 1
    assert not (tmp_path / "new").exists()


def test_damage_is_left_out_and_named(folders, cli):
    """In the source it is left out; in the target the other folder's run takes its place, and what
    was there is kept.
    """
    a, b = folders
    torn = b.folder(fakes.cell(seed=2)) / RECORD
    torn.write_text(torn.read_text()[:300])
    broken = a.folder(fakes.cell(seed=1))
    (broken / RECORD).write_text("{")
    told = cli("merge", a.root, b.root)
    assert told.code == 0
    assert f"warning: left out: {torn}" in told.err
    assert "1 runs came" in told.err
    assert a.get(fakes.cell(seed=1)).ok
    assert (broken.parent / f"unreadable-{broken.name}-1" / RECORD).read_text() == "{"


def test_links_are_not_followed(folders, cli, tmp_path):
    a, b = folders
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (b.folder(fakes.cell(seed=2)) / "log.txt").symlink_to(secret)
    assert cli("merge", a.root, b.root).code == 0
    assert sorted(a.files(a.folder(fakes.cell(seed=2)))) == [RECORD]


def test_killed_half_way_and_run_again(folders, tmp_path):
    """kill -9 after the first files: no record without all of its run, and the next one ends it."""
    a, b = folders
    program = (
        "import os, sys, signal, mtlkit.store as store\n"
        "from mtlkit.__main__ import main\n"
        "replace, left = store.Path.replace, [2]\n"
        "def strike(self, target):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return replace(self, target)\n"
        "store.Path.replace = strike\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, "merge", str(a.root), str(b.root)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    states = {record.cell.seed: record.status for record, _ in a.scan()}
    assert states == {0: "ok", 1: "failed"}
    command[1:3] = ["-m", "mtlkit"]
    assert subprocess.run(command).returncode == 0
    assert all(same_files(a, b, fakes.cell(seed=seed)) for seed in (1, 2))
    assert not [path for path in files(a.root) if path.name.startswith(".")]


def test_folders_that_cannot_be(folders, cli, tmp_path):
    told = cli("merge", folders[0].root, tmp_path / "none")
    assert told.code == 3
    assert "\n\nhint: mtlkit merge A B" in told.err
    if os.geteuid():
        folders[0].root.chmod(0o500)
        assert cli("merge", *(store.root for store in folders)).code == 3
