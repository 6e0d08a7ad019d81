"""Cells over several processes, on the real engine and as a launcher starts them."""

import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from mtlkit.errors import MissingError, UsageError
from mtlkit.grid import machine
from mtlkit.grid.engines import local, make_engine, team
from mtlkit.grid.engines.team import Place, launched_place
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore
from mtlkit.training import parallel
from tests.conftest import DATA, is_alive, wait_for
from tests.grid.grids import cells_of, run

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS")

# what the second process of a cell does at its third step
STRIKE = """
import torch.distributed as dist
if step.index == 2 and dist.is_initialized() and dist.get_rank() == 1:
    Path(__file__).with_suffix(".pid").write_text(f"{{os.getpid()}} {{os.getppid()}}")
    {strike}
return step.active.to(step.losses.dtype)
"""
# the first process fails at the sixth of eight steps, once
ONCE = """
import torch.distributed as dist
mark = Path(__file__).with_suffix(".ended")
if step.index == 5 and dist.is_initialized() and dist.get_rank() == 0 and not mark.exists():
    mark.write_text("once")
    os.kill(os.getpid(), signal.SIGKILL)
return step.active.to(step.losses.dtype)
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


def close(one, two):
    """Whether two records measured the same, up to rounding."""
    for split, scores in one.metrics.items():
        for score, metrics in scores.items():
            for name, value in metrics.items():
                other = two.metrics[split][score][name]
                assert value == pytest.approx(other, abs=1e-5), (split, score, name)
    return True


def test_records_are_those_of_one_process(home, store, tmp_path):
    cells = cells_of(home, store, ["uniform", "pcgrad"])
    together = run(cells, home, store, processes=2)
    apart = run(cells, home, ResultStore(tmp_path / "apart"))
    for balancer, record in together.items():
        assert record.ok, record.error
        assert record.key == apart[balancer].key
        assert record.environment["execution"]["processes"] == 2
        assert close(record, apart[balancer])
        text = (store.folder(record.cell) / "log.txt").read_text()
        assert "trained by 2 processes" in text
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("strike", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "one of the 2 processes of the cell was lost"),
        ("raise ValueError('bad luck')", "process 2 of 2: ValueError: .*bad luck"),
    ],
)
def test_a_process_that_dies_fails_its_cell(home, store, plugin, tmp_path, strike, message):
    balancer = plugin(tmp_path, "struck.py", STRIKE.strip().format(strike=strike))
    records = run(cells_of(home, store, [balancer, "uniform"]), home, store, processes=2)
    error = records["struck"].error
    assert error.type == "WorkerDied"
    assert re.match(message, error.message)
    assert records["uniform"].ok, "the next cell has processes of its own"
    struck, _ = map(int, (tmp_path / "struck.pid").read_text().split())
    assert not is_alive(struck)
    assert multiprocessing.active_children() == []


def test_a_killed_first_process_is_resumed_by_all(home, store, plugin, tmp_path):
    balancer = plugin(tmp_path, "once.py", ONCE.strip())
    cells = cells_of(home, store, [balancer])
    record = run(cells, home, store, processes=2, checkpoint_every="0.25")["once"]
    assert record.ok, record.error
    assert record.attempts == 2
    log = (store.folder(record.cell) / "log.txt").read_text()
    assert "resumed from a checkpoint at step 4" in log
    assert close(record, run(cells, home, ResultStore(tmp_path / "apart"))["once"])


def bench_command(home, store, *more):
    """A grid of a small model of eight steps."""
    flags = ["-d", DATA, "--models", "shared-bottom[bottom=4]", "--references", "none"]
    flags += ["--seeds", 1, "--set", "epochs=2", "--set", "batch_size=50", "--device", "cpu"]
    flags += ["--data-dir", home, "--out", store.root, *more]
    return [sys.executable, "-m", "mtlkit", "bench", *map(str, flags)]


def test_a_driver_that_is_killed_leaves_no_process(home, store, plugin, tmp_path):
    body = STRIKE.strip().format(strike="time.sleep(600)")
    balancer = plugin(tmp_path, "sleeps.py", body)
    command = bench_command(home, store, "--balancers", balancer, "--processes", 2, "--jobs", 1)
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    pid = tmp_path / "sleeps.pid"
    try:
        while driver.poll() is None and not (pid.exists() and pid.read_text()):
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.wait()
    member, server = map(int, pid.read_text().split())
    assert wait_for(lambda: not is_alive(member) and not is_alive(server))


# --- processes that a launcher starts


def launch(home, store, *more, processes=2, names=("RANK", "WORLD_SIZE")):
    """Start a grid as torchrun or SLURM does; the ended processes, the first one first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = bench_command(home, store, "--json", *more)
    started = []
    for number in range(processes):
        place = dict(zip(names, (str(number), str(processes)), strict=True))
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started.append(
            subprocess.Popen(
                command,
                env=os.environ | place | {"GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return [(process, *process.communicate(timeout=900)) for process in started]


def test_processes_of_a_launcher_run_a_grid_together(home, store):
    first, second = launch(home, store, "--balancers", "uniform,uwl")
    assert first[0].returncode == 0, first[2]
    assert second[0].returncode == 0, second[2]
    assert second[1:] == ("", ""), "the first one speaks"
    assert len([json.loads(line) for line in first[1].splitlines()]) == 2
    records = [record for record, _ in store.scan()]
    assert [record.environment["execution"]["processes"] for record in records] == [2, 2]


def test_a_plan_alone_waits_for_nobody(home, store):
    for process, _, err in launch(home, store, "--balancers", "uniform", "--dry-run"):
        assert process.returncode == 0, err
    assert not store.root.exists()


def test_what_a_signal_means_is_for_the_first_to_say(home, store, plugin, tmp_path):
    strike = "[os.kill(os.getpid(), number) for number in (signal.SIGINT, signal.SIGTERM)]"
    balancer = plugin(tmp_path, "struck.py", STRIKE.strip().format(strike=strike))
    for process, _, err in launch(home, store, "--balancers", balancer):
        assert process.returncode == 0, err
    assert [record.status for record, _ in store.scan()] == ["ok"]


def test_a_full_disk_stops_a_launched_grid_until_there_is_room(home, store, monkeypatch):
    cells = cells_of(home, store, ["uniform"])
    failures = iter([OSError(28, "No space left on device")])

    def save(results):
        for error in failures:
            raise error

    outcome = SimpleNamespace(record=SimpleNamespace(ok=True), save=save)
    group = SimpleNamespace(run=lambda *arguments: iter([outcome]))
    monkeypatch.setattr(team, "join", lambda place: group)
    told = []
    engine = team.TeamEngine(store, home, ExecutionSettings(), Place(0, 2, "env://"))
    assert list(engine.run(cells, tell=told.append)) == [outcome.record]
    assert "No space left" in told[0]
    assert "again" in told[1]


def test_only_the_first_process_writes_checkpoints(tmp_path, monkeypatch):
    for number in (0, 1):
        monkeypatch.setattr(parallel.dist, "get_rank", lambda number=number: number)
        checkpoints = parallel.SharedCheckpoints(tmp_path / f"{number}.pt", "key", "0.5")
        with checkpoints.watch(0, 10):
            checkpoints.save(5, {})
            assert not checkpoints.due(9)
            assert checkpoints.due(10)
    assert [file.name for file in tmp_path.iterdir()] == ["0.pt"]


def test_a_failed_cell_ends_a_launched_grid(home, store, plugin, tmp_path):
    strike = STRIKE.strip().format(strike="os.kill(os.getpid(), signal.SIGKILL)")
    balancer = plugin(tmp_path, "struck.py", strike)
    names = ("SLURM_PROCID", "SLURM_NTASKS")
    more = ["--balancers", f"{balancer},uniform"]
    first, second = launch(home, store, *more, names=names)
    assert second[0].returncode == -9
    assert first[0].returncode not in (0, None)
    assert "hint: start them again" in first[2]
    assert "Traceback" not in first[2]
    (record,) = [record for record, _ in store.scan()]
    assert record.error.message == "one of the 2 processes of the cell was lost"

    # the failed cell is passed over
    first, _ = launch(home, store, *more, names=names)
    assert sorted(record.status for record, _ in store.scan()) == ["failed", "ok"], first[2]


def test_the_place_that_a_launcher_gives(monkeypatch):
    assert launched_place() is None
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert launched_place() is None, "a job of SLURM whose processes are not to meet"
    monkeypatch.setenv("MASTER_ADDR", "host")
    assert launched_place() == Place(1, 4, "env://")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched_place() is None


def test_cells_of_several_processes_take_several_cores(home, store, monkeypatch):
    monkeypatch.setattr(local, "available_cores", lambda: 16)
    engine = make_engine(store, home, ExecutionSettings(device="cpu", processes=3, threads=2))
    assert len(engine.slots(100)) == 2
    single = make_engine(store, home, ExecutionSettings(device="cpu", processes=32))
    assert len(single.slots(100)) == 1


def test_settings_that_do_not_go_together(home, store, monkeypatch):
    with pytest.raises(UsageError, match="runs each cell in one process"):
        make_engine(store, home, ExecutionSettings(engine="ray", processes=2))
    with pytest.raises(UsageError, match="stacked are trained by one process"):
        make_engine(store, home, ExecutionSettings(processes=2, stack=4))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--processes 3 does not fit: 2 were started"):
        make_engine(store, home, ExecutionSettings(processes=3))
    for name, value in {"jobs": 2, "timeout": 60}.items():
        with pytest.raises(UsageError, match=f"{name} does not fit: the 2 processes"):
            make_engine(store, home, ExecutionSettings(**{name: value}))


def test_each_process_needs_a_gpu(home, store, monkeypatch):
    monkeypatch.setattr(machine, "resolve_devices", lambda text: [torch.device("cuda", 0)])
    monkeypatch.setattr(machine, "visible_gpus", lambda: [("cuda:0", "one", 1, 1)])
    with pytest.raises(MissingError, match="2 processes need a GPU each, and 1 are here"):
        make_engine(store, home, ExecutionSettings(device="cuda", processes=2))


def test_a_graph_needs_a_gpu_and_one_process(home, store):
    for how in ({"device": "cpu"}, {"device": "cpu", "engine": "ray"}):
        with pytest.raises(UsageError, match="cells run on the CPU"):
            make_engine(store, home, ExecutionSettings(compile="graph", **how))
    with pytest.raises(UsageError, match="the steps of one process"):
        make_engine(store, home, ExecutionSettings(compile="graph", processes=2))


def test_tables_are_sharded_over_processes_by_torchrec(home, store, monkeypatch):
    with pytest.raises(UsageError, match="over the processes of a cell"):
        make_engine(store, home, ExecutionSettings(shard_rows=100))
    for name, value in {"checkpoint_every": "0.5", "save_weights": "best"}.items():
        settings = ExecutionSettings(shard_rows=100, processes=2, **{name: value})
        with pytest.raises(UsageError, match=f"{name} asks for whole tables"):
            make_engine(store, home, settings)
    settings = ExecutionSettings(shard_rows=100, processes=2, save_weights="none", device="cpu")
    monkeypatch.setitem(sys.modules, "torchrec", None)
    with pytest.raises(MissingError, match="TorchRec, which is not installed") as caught:
        make_engine(store, home, settings)
    assert caught.value.hint.startswith("pip install 'mtlkit[torchrec]'")


def test_a_cell_with_a_sharded_table_is_that_of_one_process(home, store, tmp_path):
    pytest.importorskip("torchrec", reason="torchrec is an extra")
    cells = cells_of(home, store, ["uniform"], "funnel[rows=400,users=600]", "sparse_rows=2")
    together = run(cells, home, store, processes=2, shard_rows=100)["uniform"]
    apart = run(cells, home, ResultStore(tmp_path / "apart"))["uniform"]
    assert together.ok, together.error
    assert together.cost["parameters"] == apart.cost["parameters"]
    assert close(together, apart)
    assert "sharded row by row" in (store.folder(together.cell) / "log.txt").read_text()
