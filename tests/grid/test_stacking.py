"""Which cells of a grid are stacked, and that their records are those of separate cells."""

import math
import os
import signal

import pytest
import torch

from mtlkit.data.sources import prepare
from mtlkit.errors import UsageError
from mtlkit.grid import stacking
from mtlkit.grid.engines import local, make_engine, worker
from mtlkit.grid.engines.processes import Worker, end_workers
from mtlkit.grid.engines.worker import Assignment, Finished
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.grid.run_cell import failure
from mtlkit.grid.stacking import run_stack, stacks
from mtlkit.report.result_rows import rows
from mtlkit.settings import ExecutionSettings, validate
from mtlkit.store import ResultStore
from tests.conftest import DATA
from tests.grid.grids import run


def cells_of(home, store, balancers, seeds=1, model="shared-bottom[bottom=4]", more=()):
    flags = {
        "dataset": DATA,
        "models": model,
        "balancers": balancers,
        "references": [],
        "seeds": seeds,
    }
    settings = read_grid(None, flags, ["epochs=1", "batch_size=50", *more])
    return make_plan(settings, *prepare(DATA, home), store).to_run


def sizes(cells, on_cpu=True, **execution):
    found, note = stacks(cells, ExecutionSettings(**execution), on_cpu)
    assert sorted(cell.key for members in found for cell in members) == sorted(
        cell.key for cell in cells
    )
    return [len(members) for members in found], note


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


def test_a_sweep_under_five_seeds_is_one_stack(home, store):
    cells = cells_of(home, store, ["scalarization[n=9]"], seeds=5)
    assert sizes(cells, stack=64)[0] == [45]
    assert sizes(cells, stack=20)[0] == [20, 20, 5]
    assert sizes(cells, stack="auto", on_cpu=False)[0] == [45]
    assert sizes(cells)[0] == [1] * 45, "on a CPU only where it is asked for"


def test_kinds_of_balancers_are_stacks_of_their_own(home, store):
    cells = cells_of(home, store, ["uwl", "pcgrad", "dwa", "upgrad", "gradnorm", "graddrop"])
    assert sizes(cells, stack=8)[0] == [2, 2, 1, 1]


def test_what_keeps_single_cells_is_said(home, store):
    cells = cells_of(home, store, ["uwl", "dwa"])
    assert sizes(cells, stack=2, checkpoint_every="10m") == (
        [1, 1],
        "Cells are not stacked: checkpoint_every keeps the state of single cells.",
    )
    assert "compile" in sizes(cells, stack=2, compile="on")[1]
    assert sizes(cells, compile="on")[1] == ""
    assert sizes(cells, stack=2, compile="graph") == ([2], "")
    with pytest.raises(UsageError, match="one by one"):
        make_engine(store, home, ExecutionSettings(engine="ray", stack=4))


MEASURED = ("mean", "ci_low", "ci_high")


def test_records_and_tables_are_those_of_separate_cells(home, tmp_path):
    results, tables = [], []
    for name, execution in (("alone", {}), ("stacked", {"stack": 4})):
        store = ResultStore(tmp_path / name)
        cells = cells_of(home, store, ["uwl", "dwa"], seeds=2, model="mmoe[experts=3,hidden=5]")
        run(cells, home, store, **execution)
        results.append([store.get(cell) for cell in cells])
        tables.append(rows(store))
    for alone, stacked in zip(*results, strict=True):
        assert stacked.ok
        assert stacked.key == alone.key
        assert stacked.environment["stacked"] == 4
        assert "stacked" not in alone.environment
        assert stacked.warnings == alone.warnings
        assert stacked.best.keys() == alone.best.keys()
        for score, values in alone.metrics["test"].items():
            assert stacked.metrics["test"][score]["auc"] == pytest.approx(values["auc"], abs=1e-4)

    # the report's rows have the same names and counts; their numbers agree like the records'
    assert len(tables[0]) == len(tables[1]) > 0
    for alone, stacked in zip(*tables, strict=True):
        measured = [{name: row.pop(name) for name in MEASURED} for row in (alone, stacked)]
        assert alone == stacked
        assert measured[1] == pytest.approx(measured[0], rel=1e-3, abs=1e-3)


def test_memory_decides_how_many_are_stacked(home, store, tmp_path, monkeypatch):
    cells = cells_of(home, store, ["uwl"], seeds=5)
    train, asked = stacking._train, []

    def train_two_at_most(cells, *where):
        asked.append(len(cells))
        if len(cells) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train(cells, *where)

    monkeypatch.setattr(stacking, "_train", train_two_at_most)
    execution = ExecutionSettings(device="cpu")
    outcomes = run_stack(cells, home, execution, lambda share: None, lambda cell: tmp_path)
    records = [outcome.record for outcome in outcomes]
    assert [record.key for record in records] == [cell.key for cell in cells]
    assert all(record.ok and not record.warnings for record in records)
    assert asked == [5, 2, 3, 2]  # a single cell is no stack


def test_a_failure_on_a_gpu_may_have_spoilt_the_worker(home, store, monkeypatch):
    cell = cells_of(home, store, ["uwl"])[0]
    failed = failure(cell, RuntimeError("CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert worker._may_have_lost_gpu(failed)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not worker._may_have_lost_gpu(failed)


def test_cells_that_cannot_be_stacked_run_one_by_one(home, store):
    cells = cells_of(home, store, ["pcgrad", "upgrad"], more=["scope=representation"])
    records = run(cells, home, store, stack=2)
    assert len(records) == 2
    for record in records.values():
        assert record.ok
        assert any("not stacked: with scope=" in warning for warning in record.warnings)


def test_a_stack_whose_process_is_killed_runs_again_cell_by_cell(home, store, monkeypatch):
    cells = cells_of(home, store, ["uwl", "dwa"])
    engine = make_engine(store, home, ExecutionSettings(device="cpu", jobs=1, stack=2))
    start, started, said = engine.start, [], []

    def start_and_kill_the_first(device):
        worker = start(device)
        if not started:
            os.kill(worker.process.pid, signal.SIGKILL)
        started.append(worker)
        return worker

    monkeypatch.setattr(engine, "start", start_and_kill_the_first)
    records = list(engine.run(cells, tell=said.append))
    assert [record.ok for record in records] == [True, True]
    assert "The process of a stack of 2 cells was" in said[0]
    assert all(record.attempts == 2 for record in records)
    assert all("stacked" not in record.environment for record in records)


def test_a_cell_of_a_stack_that_is_finished_elsewhere_is_not_run_again(home, store):
    cells = cells_of(home, store, ["uwl", "dwa"])
    run(cells[1:], home, store)
    before = store.get(cells[1])
    records = run(cells, home, store, stack=2)
    assert len(records) == 2
    assert store.get(cells[1]) == before
    assert "stacked" not in store.get(cells[0]).environment


def test_cells_that_run_one_by_one_are_told_one_by_one(home, store):
    cells = cells_of(home, store, ["pcgrad", "upgrad"], more=["scope=representation"])
    shares = []
    outcomes = run_stack(cells, home, ExecutionSettings(device="cpu"), shares.append, store.folder)
    assert next(outcomes).record.key == cells[0].key
    assert shares.count(1.0) == 1, "the second has not run yet"
    outcomes.close()


@pytest.fixture
def pool(home, store):
    engine = make_engine(store, home, ExecutionSettings(device="cpu", jobs=1, stack=2))
    return local._Pool(engine, lambda cell, share: None, lambda text: None)


def test_the_rest_of_a_stack_that_is_being_stored_has_its_own_time(pool, home, store):
    (record,) = run(cells_of(home, store, ["uwl"]), home, store).values()
    other = cells_of(home, store, ["dwa"])[0]
    assignment = Assignment(record.cell, others=(other,))
    worker = Worker(None, None, assignment, taken_up=-1e9)
    assert worker.has_run_longer_than(60)
    pool._finish(worker, Finished(record, leaves=False))
    assert worker.assignment.cells == [other]
    assert not worker.has_run_longer_than(60)


def test_a_spare_worker_that_died_replaces_none(pool):
    spare = pool.engine.start("cpu")
    os.kill(spare.process.pid, signal.SIGKILL)
    spare.process.join()
    pool.spares.append(spare)
    worker = pool._replacement("cpu")
    pool.spares.append(worker)
    assert worker is not spare
    assert pool._replacement("cpu") is worker
    end_workers([spare, worker])


def test_an_interrupt_while_workers_leave_ends_each_of_them_once(pool, monkeypatch):
    earlier, worker = pool.engine.start("cpu"), pool.engine.start("cpu")
    pool.leaving = [earlier]
    earlier.taken_up = -math.inf  # it has had its time

    def interrupted(workers, grace):
        end_workers(workers, grace)
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "end_workers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool._let_go(worker)
    assert pool.leaving == [worker]
    end_workers([worker])


def test_a_stack_of_nothing_is_refused_by_its_name():
    with pytest.raises(UsageError, match=r"'stack' of the execution cannot be 0"):
        validate(ExecutionSettings, {"stack": 0}, "execution")
