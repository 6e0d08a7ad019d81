import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from mtlkit.data.sources import prepare
from mtlkit.grid.engines import processes
from mtlkit.grid.engines.local import LocalEngine, _Pool
from mtlkit.grid.engines.processes import FORKS, Worker, available_cores, end_workers, start_early
from mtlkit.grid.engines.worker import Assignment, Finished
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.grid.run_cell import failure
from mtlkit.records import Cell
from mtlkit.settings import ExecutionSettings
from mtlkit.store import RECORD, ResultStore
from tests.conftest import DATA, is_alive, is_deaf, parent


def test_the_grid_goes_on_whatever_happens(story):
    """Cells that raise, diverge, exit and are killed: each becomes a record, and the cells after
    them run.
    """
    statuses = {name: record.status for name, record in story.records.items()}
    failed = dict.fromkeys(["raises", "broken", "exits", "killed"], "failed")
    assert statuses == failed | dict.fromkeys(["uniform", "waits", "uwl"], "ok")


def test_how_a_worker_died_is_recorded(story):
    exits, killed = (story.records[name].error for name in ("exits", "killed"))
    assert (exits.type, exits.message) == (
        "WorkerDied",
        "the process of this cell ended with code 7",
    )
    assert killed.type == "WorkerDied"
    assert killed.message == (
        "the process of this cell was killed by SIGKILL (out of memory?) at attempt 2"
    )


def test_what_a_cell_raised_is_recorded(story):
    raises, broken = (story.records[name].error for name in ("raises", "broken"))
    assert raises.type == "ValueError"
    assert re.fullmatch(r"raises\.py raises ValueError in line \d+: bad luck", raises.message)
    assert "in forward" in raises.traceback
    assert broken.type == "Diverged"
    assert broken.step is not None
    assert (story.folder("raises") / "log.txt").read_text() == raises.traceback


def test_sound_cells_are_stored_with_all_they_left(story):
    for name in ("uniform", "waits", "uwl"):
        folder = story.folder(name)
        assert sorted(path.name for path in folder.iterdir()) == [
            "encoders.json",
            "log.txt",
            "probes.npz",
            RECORD,
            "scores.npz",
            "weights.npz",
        ]
        for stem in ("probes", "scores"):
            assert ResultStore.arrays(folder, stem)  # read without pickle


def test_interrupted(story):
    """Ctrl-C in the second cell, sent to the worker, too, as a terminal does."""
    act = story.interrupted
    assert act.result.code == 130
    assert "Traceback" not in act.result.err
    assert "1 of 7 cells finished and kept; the same command goes on:\n\n  mtlkit bench" in (
        act.result.err
    )
    assert act.worker_ignored, "the parent decides"
    assert act.worker_ended
    assert act.after == act.before
    assert sum(path.name == RECORD for path in act.before) == 1


def test_killed(story):
    """kill -9 in the second cell: the orphaned worker ends, and leaves no false failure."""
    act = story.killed
    assert act.result.code == -9
    assert act.worker_ended
    assert act.after == act.before
    assert sum(path.name == RECORD for path in act.before) == 1


def test_a_background_job_of_a_shell_ignores_ctrl_c(story):
    assert story.killed.survived_interrupt


def test_only_unfinished_cells_are_run_again(story):
    before = story.killed.after
    assert before.keys() < story.files.keys()
    assert {path: story.files[path] for path in before} == before, (
        "finished records are byte-identical"
    )
    assert ": 6 to run, 1 done." in story.finished.err
    assert sum("/6] " in line for line in story.finished.err.splitlines()) == 6
    assert "[6/6] " in story.finished.err


def cells_of(home, store, balancers):
    flags = {
        "dataset": DATA,
        "models": "shared-bottom",
        "balancers": balancers,
        "references": [],
        "seeds": 1,
    }
    settings = read_grid(None, flags, ["epochs=2", "batch_size=50", "bottom=4"])
    return make_plan(settings, *prepare(DATA, home), store).to_run


def test_a_cell_that_takes_too_long(tmp_path, home, plugin):
    """Two at a time; one of three sleeps. The others end long before the limit, unless the machine
    is very busy.
    """
    store = ResultStore(tmp_path / "results")
    sleepy = plugin(tmp_path, "sleepy.py", "time.sleep(600)")
    cells = cells_of(home, store, [sleepy, "uniform", "uwl"])
    started = []
    engine = LocalEngine(store, home, ExecutionSettings(device="cpu", jobs=2, timeout=3))
    records = {
        record.key: record
        for record in engine.run(cells, lambda cell, share: started.append(cell.key))
    }
    assert records.keys() == {cell.key for cell in cells}
    slow = records[cells[0].key]
    assert slow.status == "timeout"
    assert slow.error.type == "Timeout"
    assert slow.error.message == "the cell took longer than 3 seconds"
    assert [store.get(cell) for cell in cells] == [records[cell.key] for cell in cells]
    assert {record.status for record in records.values()} <= {"ok", "timeout"}
    assert started[:2] == [cells[0].key, cells[1].key]


def test_the_time_in_which_a_worker_starts_does_not_count(tmp_path, home):
    (cell,) = cells_of(home, ResultStore(tmp_path), ["uniform"])
    engine = LocalEngine(ResultStore(tmp_path), home, ExecutionSettings(device="cpu", timeout=3600))
    ours, theirs = multiprocessing.Pipe()
    worker = Worker(mock.Mock(), ours, Assignment(cell))
    reported = []
    pool = _Pool(engine, lambda cell, share: reported.append(share), pytest.fail)

    def listen(ready):
        return pool._look_after(worker, ready)

    assert listen(False) is None
    assert worker.taken_up is None, "it has not result that it took up the cell"
    theirs.send(0.0)
    assert listen(True) is None
    assert reported == [0]
    worker.taken_up -= 3601
    assert listen(False).status == "timeout"
    assert worker.process.kill.called


@pytest.mark.skipif(not FORKS, reason="workers are spawned here")
def test_workers_are_forked_from_one_process_that_has_imported_everything(tmp_path, home):
    engine = LocalEngine(ResultStore(tmp_path), home, ExecutionSettings(device="cpu"))
    workers = [engine.start("cpu") for _ in range(2)]
    try:
        (server,) = {parent(worker.process.pid) for worker in workers}
        assert server != os.getpid()
        assert "libtorch_cpu" in Path(f"/proc/{server}/maps").read_text()
    finally:
        end_workers(workers)


def test_a_worker_is_deaf_to_ctrl_c_from_its_first_moment(tmp_path, home):
    worker = LocalEngine(ResultStore(tmp_path), home, ExecutionSettings(device="cpu")).start("cpu")
    try:
        assert is_deaf(worker.process.pid, "SigBlk")
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        pid = worker.process.pid
    finally:
        end_workers([worker])
    assert not is_alive(pid)


def test_slots(monkeypatch, tmp_path, home):
    import torch

    monkeypatch.setattr("mtlkit.grid.engines.local.available_cores", lambda: 6)

    def slots(cells, **settings):
        engine = LocalEngine(ResultStore(tmp_path), home, ExecutionSettings(**settings))
        return engine.slots(cells)

    def count(cells, **settings):
        return len(slots(cells, device="cpu", **settings))

    assert slots(3, device="cpu") == ["cpu"] * 3
    assert count(100) == 6
    assert count(100, jobs=9) == 9
    assert count(2, jobs=9) == 2
    assert count(0) == 1
    assert count(100, threads=4) == 1
    assert count(100, threads=3) == 2

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert slots(100, device="cuda") == slots(100, device="auto") == ["cuda"]
    assert slots(100, device="cuda", jobs=3) == ["cuda"] * 3
    assert slots(100, device="cuda:2", slots_per_gpu=2) == ["cuda:2"] * 2
    assert slots(100, device="all") == ["cuda:0", "cuda:1", "cuda:2"]
    assert slots(100, device="cuda:0,cuda:2", slots_per_gpu=2) == ["cuda:0", "cuda:2"] * 2
    assert slots(100, device="all", jobs=4) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert slots(2, device="all") == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert slots(1, device="all") == ["cpu"]


@pytest.mark.parametrize("device", ["cuda,cuda:1", "cuda:0,cuda:0", "cpu,cuda:0", "all,cpu", ""])
def test_devices_that_cannot_be(device):
    with pytest.raises(ValueError):
        ExecutionSettings(device=device)


def test_a_cell_that_another_grid_has_finished_is_not_run(tmp_path, home):
    """Two grids on one folder: what one has stored, the other takes from there."""
    store = ResultStore(tmp_path / "results")
    cells = cells_of(home, store, ["uniform", "uwl"])
    theirs = list(run_local(cells[:1], home, store))
    started = []
    records = list(run_local(cells, home, store, lambda cell, share: started.append(cell.key)))
    assert theirs[0] in records
    assert {record.key for record in records} == {cell.key for cell in cells}
    assert set(started) == {cells[1].key}


def run_local(cells, home, store, *more):
    engine = LocalEngine(store, home, ExecutionSettings(device="cpu", jobs=1))
    return engine.run(cells, *more)


def test_of_a_seed_the_cells_come_first_that_took_longest_with_another(tmp_path):
    """``c`` is not over with any seed yet, so it may take longest of all."""
    pool = _Pool(LocalEngine(ResultStore(tmp_path), tmp_path, ExecutionSettings()), None, None)
    cells = [
        Cell(dataset="d", model=model, balancer="b", seed=seed, resolved={"model": {"name": model}})
        for seed in (0, 1)
        for model in "abcd"
    ]
    pool.waiting.extend(map(Assignment, cells))
    taken = [pool._next_in_line().cell for _ in range(4)]
    assert [(cell.model, cell.seed) for cell in taken] == [(model, 0) for model in "abcd"]
    for cell, seconds in zip(taken, (1.0, 3.0, None, 2.0), strict=True):
        if seconds is not None:
            record = failure(cell, ValueError()).record
            done = record.model_copy(update={"timing": {"total_seconds": seconds}})
            pool._finish(Worker(None, None), Finished(done, leaves=False))
    taken = [pool._next_in_line().cell for _ in range(4)]
    assert [(cell.model, cell.seed) for cell in taken] == [(model, 1) for model in "cbda"]
    assert not pool.waiting


def test_nothing_to_do(tmp_path, home):
    assert (
        list(LocalEngine(ResultStore(tmp_path), home, ExecutionSettings(device="cpu")).run([]))
        == []
    )
    assert available_cores() >= 1


@pytest.mark.parametrize(
    ("device", "driver", "starts"), [("cpu", True, 1), ("auto", False, 1), ("auto", True, 0)]
)
def test_imports_begin_early_where_workers_will_be_forked(
    monkeypatch, tmp_path, device, driver, starts
):
    started = []
    monkeypatch.setattr(processes, "start_server", lambda: started.append(1))
    monkeypatch.setattr(processes, "GPU_DRIVERS", (tmp_path if driver else tmp_path / "none",))
    start_early(device)
    start_early("cuda")
    assert len(started) == starts


def test_on_a_gpu_workers_are_spawned(monkeypatch, tmp_path, home):
    """What a forked process would inherit of a GPU is of no use to it."""
    contexts = []

    def get_context(method):
        contexts.append(method)
        raise ZeroDivisionError

    engine = LocalEngine(ResultStore(tmp_path), home, ExecutionSettings(device="cuda"))
    monkeypatch.setattr(engine, "_on_cpu", lambda: False)
    monkeypatch.setattr(multiprocessing, "get_context", get_context)
    with pytest.raises(ZeroDivisionError):
        engine.start("cuda")
    assert contexts == ["spawn"]


INTERRUPTED_REQUEST = """
import os, socket
from multiprocessing import forkserver
from mtlkit.grid.engines.processes import start_server

start_server()
with socket.socket(socket.AF_UNIX) as request:
    request.connect(forkserver._forkserver._forkserver_address)
pid = forkserver._forkserver._forkserver_pid
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not FORKS, reason="no server is forked from here")
def test_a_request_that_is_broken_off_is_no_traceback():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_REQUEST], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


LATE_SERVER = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules))
import mtlkit.grid.engines.preload
"""


def test_the_server_of_a_driver_that_is_gone_imports_nothing():
    ended = subprocess.run(
        [sys.executable, "-c", LATE_SERVER],
        env=os.environ | {"MTLKIT_DRIVER": "0"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "False\n", "")
