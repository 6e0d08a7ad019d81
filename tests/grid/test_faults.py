"""Processes that are killed, hang or are short of disk: nothing is lost, and nobody is left."""

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtlkit.errors import MissingError, MtlkitError
from mtlkit.grid.engines import processes
from mtlkit.grid.engines.processes import FORKS, start_worker
from mtlkit.grid.engines.worker import _store
from mtlkit.grid.run_cell import Outcome
from mtlkit.store import ResultStore
from tests.conftest import DATA, WAITS, parent, run_cli, wait_for
from tests.fakes import cell, record
from tests.grid.grids import cells_of, members, run, start_bench

linux = pytest.mark.skipif(not FORKS, reason="looks into /proc")

KEEPS = "\nreturn step.active.to(step.losses.dtype)"
SAYS_WHERE = """
here = Path(__file__).parent
(here / "pid.new").write_text(str(os.getpid()))
(here / "pid.new").rename(here / "pid")
"""
# deaf to SIGTERM, and in compiled code that gives no other thread a turn
HANGS = (
    SAYS_WHERE
    + """
import re
signal.signal(signal.SIGTERM, signal.SIG_IGN)
re.match("(a+)+$", "a" * 60 + "b")
"""
)
IS_KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
IS_KILLED_ONCE = f"""
first = Path(__file__).with_suffix(".first")
if not first.exists():
    first.touch()
    {IS_KILLED}
"""


@pytest.mark.parametrize("moment", ["first", "second"])
def test_ctrl_c_finishes_what_runs(tmp_path, home, plugin, moment):
    """Once: the running cell is finished and no other starts. Twice: it ends at once."""
    out = tmp_path / "results"
    (tmp_path / "hold").touch()
    process = start_bench(home, out, [plugin(tmp_path, "waits.py", WAITS.strip()), "uniform"])
    wait_for((tmp_path / "pid").exists)
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()
    while line and "Ctrl-C again stops them" not in line:
        line = process.stderr.readline()
    if moment == "first":
        (tmp_path / "hold").unlink()
    else:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    finished = [record.status for record, _ in ResultStore(out).scan()]
    assert process.returncode == 130
    assert finished == (["ok"] if moment == "first" else [])
    assert f"{len(finished)} of 2 cells finished and kept; the same command goes on:" in err
    assert not list(out.glob(".grid-*"))


@pytest.fixture
def hanging(tmp_path, home, plugin):
    """A grid whose second cell hangs by now, and its results."""
    out = tmp_path / "results"
    process = start_bench(home, out, ["uniform", plugin(tmp_path, "hangs.py", HANGS), "uwl"])
    wait_for(lambda: (tmp_path / "pid").exists() or process.poll() is not None)
    yield process, ResultStore(out)
    process.kill()
    process.wait()
    process.stderr.close()


# --- nobody is left


@linux
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=lambda value: getattr(value, "name", None),
)
def test_no_process_outlives_the_driver(hanging, number, code):
    process, store = hanging
    assert process.poll() is None
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait() == code
    assert wait_for(lambda: members(process.pid) == [])
    assert [record.cell.balancer for record, _ in store.scan()] == ["uniform"]
    if code > 0:
        assert "Traceback" not in said
        assert "1 of 3 cells finished and kept; the same command goes on:\n\n  mtlkit bench" in said
        command = next(line for line in said.splitlines() if line.startswith("  mtlkit bench"))
        assert shlex.split(command)[-2:] == ["--out", str(store.root)]


@linux
def test_ctrl_c_again_and_again(hanging):
    process, store = hanging
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert process.returncode == 130
    assert "Traceback" not in process.stderr.read()
    assert wait_for(lambda: members(process.pid) == [])
    assert [record.cell.balancer for record, _ in store.scan()] == ["uniform"]


@linux
def test_no_process_outlives_a_driver_that_is_killed_while_they_start(tmp_path, home):
    process = start_bench(home, tmp_path / "results", ["uniform"])
    assert wait_for(lambda: len(members(process.pid)) >= 3), "the driver and two helpers"
    process.kill()
    process.communicate()
    assert wait_for(lambda: members(process.pid) == [])


# --- cells whose process is killed


def test_a_cell_that_was_killed_runs_again_at_the_end(tmp_path, home, plugin):
    store, said = ResultStore(tmp_path / "results"), []
    once = plugin(tmp_path, "once.py", IS_KILLED_ONCE + KEEPS)
    records = run(cells_of(home, store, [once, "uniform"]), home, store, said.append)
    assert list(records) == ["uniform", "once"]
    assert [record.status for record in records.values()] == ["ok", "ok"]
    assert [record.attempts for record in records.values()] == [1, 2]
    assert records["once"].warnings == [
        "the process of an earlier attempt was killed by SIGKILL (out of memory?); "
        "the cell ran again"
    ]
    assert store.get(records["once"].cell) == records["once"]
    assert said == [
        f"The process of shared-bottom + {once}, seed 0 was killed by SIGKILL (out of memory?). "
        "It will run again, alone."
    ]


@pytest.mark.parametrize("retries", [0, 2])
def test_how_often_is_a_setting(tmp_path, home, plugin, retries):
    store = ResultStore(tmp_path / "results")
    killed = plugin(tmp_path, "killed.py", IS_KILLED)
    record = run(cells_of(home, store, [killed]), home, store, retries=retries)["killed"]
    assert (record.status, record.attempts) == ("failed", retries + 1)
    assert record.error.message.endswith("(out of memory?) at attempt 3" if retries else "memory?)")


@linux
@pytest.mark.parametrize("also_the_worker", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_death_of_the_fork_server_costs_no_cell(tmp_path, home, plugin, also_the_worker):
    (tmp_path / "hold").touch()
    waits = plugin(tmp_path, "waits.py", WAITS.strip())
    out = tmp_path / "results"
    process = start_bench(home, out, ["uniform", waits, "uwl"])
    assert wait_for((tmp_path / "pid").exists)
    worker = int((tmp_path / "pid").read_text())
    os.kill(parent(worker), signal.SIGKILL)
    if also_the_worker:
        os.kill(worker, signal.SIGKILL)
    (tmp_path / "hold").unlink()

    said = process.communicate()[1]
    assert process.returncode == 0, said
    attempts = {
        Path(record.cell.balancer).stem: record.attempts for record, _ in ResultStore(out).scan()
    }
    assert attempts == {"uniform": 1, "waits": 1 + also_the_worker, "uwl": 1}
    assert wait_for(lambda: members(process.pid) == [])


def test_a_system_without_room_for_processes(monkeypatch):
    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(processes, "_start_process", refuse)
    with pytest.raises(MtlkitError, match="No process for a cell can be started") as caught:
        start_worker(False, ())
    assert "--jobs 1" in caught.value.hint


# --- results that cannot be written


# from then on the process can write no file that is larger
LARGEST_FILE = "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))"


@linux
def test_a_full_disk_stops_the_grid_until_there_is_room(tmp_path, home, plugin):
    store, said = ResultStore(tmp_path / "results"), []
    full = plugin(tmp_path, "full.py", SAYS_WHERE + "import resource\n" + LARGEST_FILE + KEEPS)

    def make_room(sentence):
        said.append(sentence)
        worker = int((tmp_path / "pid").read_text())
        if "cannot be written" in sentence:
            assert list(store.scan()) == []
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(worker, resource.RLIMIT_FSIZE, unlimited)

    records = run(cells_of(home, store, [full, "uniform"]), home, store, make_room)
    assert [record.status for record in records.values()] == ["ok", "ok"]
    assert [store.get(record.cell) for record in records.values()] == list(records.values())
    assert said == [
        f"Results cannot be written to {store.root}: File too large. Finished cells wait in memory "
        "for 600 seconds; make room there.",
        f"Results can be written to {store.root} again.",
    ]


@linux
def test_a_disk_that_stays_full_ends_the_grid(tmp_path, home, plugin):
    full = plugin(tmp_path, "full.py", "import resource\n" + LARGEST_FILE + KEEPS)
    out = tmp_path / "results"
    process = start_bench(home, out, ["uniform", full, "uwl"], "--set", "disk_wait=0")
    said = process.communicate()[1]
    assert process.returncode == 3
    assert "Traceback" not in said
    assert "warning 1 finished cell is not stored and will have to run again." in said
    assert "1 of 3 cells finished and kept; the same command goes on:\n\n  mtlkit bench" in said
    message, hint = said[said.index("error: ") :].split("\n\nhint: ")
    assert message == f"error: Results cannot be written to {out}: File too large."
    assert hint.startswith("make room there")
    assert [record.cell.balancer for record, _ in ResultStore(out).scan()] == ["uniform"]
    assert [path.name for path in out.rglob("*") if path.name.startswith(".")] == []


def test_a_failure_that_cannot_be_stored_waits_as_well(tmp_path, home, plugin):
    """The driver itself writes of a cell whose process died. Here a file is in its way."""
    store, said = ResultStore(tmp_path / "results"), []
    cells = cells_of(home, store, [plugin(tmp_path, "exits.py", "os._exit(7)"), "uniform"])
    store.make()
    in_the_way = store.root / "synthetic"
    in_the_way.touch()

    def remove(sentence):
        said.append(sentence)
        if len(said) == 1:
            in_the_way.unlink()

    records = run(cells, home, store, remove)
    assert [record.status for record in records.values()] == ["failed", "ok"]
    assert store.get(cells[0]).error.message == "the process of this cell ended with code 7"
    assert len(said) == 2


def test_of_what_no_file_can_hold_there_is_a_failure(tmp_path):
    unknown = record(cell()).model_copy(
        update={"attempts": 2, "metrics": {"test": {"a": {"auc": object()}}}}
    )
    store = ResultStore(tmp_path)
    stored = _store(store, Outcome(unknown), None).record
    assert store.get(unknown.cell) == stored
    assert (stored.status, stored.attempts, stored.error.type) == (
        "failed",
        2,
        "PydanticSerializationError",
    )


@linux
def test_a_full_disk_is_told_before_the_first_cell(tmp_path, home):
    limited = f"import resource, sys; {LARGEST_FILE}; from mtlkit.__main__ import main; main()"
    words = ["bench", "-d", DATA, "--models", "mmoe", "--seeds", "1", "--device", "cpu"]
    words += ["--data-dir", str(home), "--out", str(tmp_path / "results")]
    result = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (3, "")
    told = f"error: The results folder {tmp_path / 'results'} cannot be written to: File too large."
    assert f"{told}\n\nhint: choose another with --out DIR\n" in result.stderr
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told_before_the_first_cell(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(MissingError, match="cannot be written to: Permission denied"):
        ResultStore(tmp_path).make()


# --- the end of a file is no interrupt


def test_an_end_of_file_is_no_interrupt(monkeypatch):
    def fail(*_):
        raise EOFError("No data left in file")

    monkeypatch.setattr("mtlkit.registry.Registry.names", fail)
    with pytest.raises(EOFError, match="No data left"):
        run_cli("list", "models")
