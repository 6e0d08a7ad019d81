"""``mtlkit bench`` on a folder in which records are damaged: their cells run again, nothing is lost."""

import json
import os

import pytest

from mtlkit.store import RECORD, ResultStore
from tests.conftest import DATA, files


@pytest.fixture
def bench(cli, home, tmp_path):
    """A grid of three cells on the small data set."""

    def run(*arguments):
        methods = ["--models", "shared-bottom", "--balancers", "uniform,uwl,dwa"]
        amount = ["--references", "none", "--seeds", "1", "--set", "epochs=1"]
        places = ["-d", DATA, "--data-dir", home, "--out", tmp_path / "results"]
        return cli("bench", *places, *methods, *amount, *arguments)

    return run


def test_cells_whose_records_do_not_hold_run_again(bench, tmp_path):
    store = ResultStore(tmp_path / "results")
    assert bench().code == 0
    folders = {run.cell.balancer: folder for run, folder in store.scan()}

    # one was edited, one is a pipe, one stays as it is
    edited = folders["uwl"] / RECORD
    plain = json.loads(edited.read_text())
    plain["cell"]["resolved"]["training"]["lr"] = 0.5
    edited.write_text(json.dumps(plain))
    (folders["dwa"] / RECORD).unlink()
    os.mkfifo(folders["dwa"] / RECORD)
    untouched = files(folders["uniform"])
    before = relative(files(folders["uwl"]), folders["uwl"])

    result = bench()
    assert result.code == 0
    assert "3 cells" in result.err
    assert ": 2 to run, 1 done." in result.err
    for name, reason in (("uwl", "its key is not the digest"), ("dwa", "it is no regular file")):
        [line] = [line for line in result.err.splitlines() if str(folders[name]) in line]
        assert line.startswith(f"warning could not be read: {folders[name] / RECORD}: {reason}")
        assert f"unreadable-{folders[name].name}-*" in line

    # the new runs lie where they belong, and the old files beside them, byte by byte
    assert {run.cell.balancer: folder for run, folder in store.scan()} == folders
    assert (store.unreadable, store.copies) == ([], [])
    assert files(folders["uniform"]) == untouched
    kept = folders["uwl"].with_name(f"unreadable-{folders['uwl'].name}-1")
    assert relative(files(kept), kept) == before
    assert ": 3 done." in bench("--dry-run").err


def relative(contents, folder):
    return {path.relative_to(folder): content for path, content in contents.items()}


def test_other_records_do_not_stop_the_closing_table(bench, tmp_path):
    assert bench().code == 0
    lost = tmp_path / "results" / "census" / "mmoe" / "uwl" / "seed-0-00000000" / RECORD
    lost.parent.mkdir(parents=True)
    lost.symlink_to("/dev/zero")
    result = bench()
    assert result.code == 0
    assert f"could not be read: {lost}: it is no regular file" in " ".join(result.out.split())
    assert "shared-bottom" in result.out
