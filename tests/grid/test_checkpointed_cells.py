"""Cells that are killed in the middle go on from their checkpoint, on the real engine."""

import signal

import pytest

from mtlkit.grid.run_cell import run_cell
from mtlkit.settings import ExecutionSettings
from mtlkit.store import CHECKPOINT, ResultStore
from tests.grid.grids import cells_of, numbers, run, start_bench

# at the sixth of eight steps, once: send a signal to this process, or to the driver
BODY = """
import multiprocessing
mark = Path(__file__).with_suffix(".ended")
if step.index == 5 and not mark.exists():
    mark.write_text("once")
    target = {target}
    os.kill(target, signal.{name})
    if target != os.getpid():
        time.sleep({patience})
return step.active.to(step.losses.dtype)
"""
WORKER, DRIVER = "os.getpid()", "multiprocessing.parent_process().pid"
CPU = {"device": "cpu", "checkpoint_every": "0.25"}


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


def ending(plugin, folder, name, target=WORKER, patience=0):
    body = BODY.strip().format(target=target, name=name, patience=patience)
    return plugin(folder, "ending.py", body)


def undisturbed(cells, home, tmp_path):
    """The same cells, run to their end at once, in another store."""
    store = ResultStore(tmp_path / "undisturbed")
    return numbers(run(cells, home, store)["ending"], store)


@pytest.mark.parametrize(("name", "steps"), [("SIGKILL", 4), ("SIGTERM", 6)])
def test_a_killed_worker_is_resumed(tmp_path, home, plugin, store, name, steps):
    cells = cells_of(home, store, [ending(plugin, tmp_path, name)])
    record = run(cells, home, store, **CPU)["ending"]
    folder = store.folder(record.cell)
    assert record.attempts == 2
    assert f"resumed from a checkpoint at step {steps}" in (folder / "log.txt").read_text()
    assert not (folder / CHECKPOINT).exists()

    # the warning about the lost process is all that tells it from another
    expected = undisturbed(cells, home, tmp_path)
    found = numbers(record.model_copy(update={"warnings": []}), store)
    assert found == expected


def test_a_driver_that_is_told_to_end_leaves_one(tmp_path, home, plugin, store):
    balancer = ending(plugin, tmp_path, "SIGTERM", DRIVER, patience=1)
    more = ["--checkpoint-every", "1h", "--epochs", "2", "--set", "bottom=4"]
    grid = start_bench(home, store.root, [balancer], *more)
    _, said = grid.communicate(timeout=120)
    assert grid.returncode == 128 + signal.SIGTERM, said
    (checkpoint,) = store.root.rglob(CHECKPOINT)
    assert list(store.scan()) == []

    again = start_bench(home, store.root, [balancer], *more)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    ((record, folder),) = store.scan()
    assert folder == checkpoint.parent
    assert "resumed from a checkpoint at step 6" in (folder / "log.txt").read_text()
    assert not checkpoint.exists()
    assert numbers(record, store) == undisturbed([record.cell], home, tmp_path)


def test_a_damaged_checkpoint_is_said_and_the_cell_starts_anew(home, store):
    (cell,) = cells_of(home, store, ["uniform"])
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(b"half of a")
    execution = ExecutionSettings(**CPU, keep_checkpoints=True)
    outcome = run_cell(cell, home, execution, folder=folder)
    told = "the checkpoint was not used: it is damaged; the cell started anew"
    assert outcome.record.warnings == [told]
    assert outcome.record.metrics == run_cell(cell, home, execution).record.metrics

    # it is kept if somebody asks for that, and that of another cell is no use
    outcome.save(store)
    kept = (folder / CHECKPOINT).read_bytes()
    (other,) = cells_of(home, store, ["uwl"])
    store.folder(other).mkdir(parents=True)
    (store.folder(other) / CHECKPOINT).write_bytes(kept)
    record = run_cell(other, home, execution, folder=store.folder(other)).record
    assert "it is that of another run" in record.warnings[0]


def test_a_run_with_a_checkpoint_is_never_swept(home, store):
    import os

    (cell,) = cells_of(home, store, ["uniform"])
    folder = store.folder(cell)
    folder.mkdir(parents=True)
    names = [CHECKPOINT, f".{CHECKPOINT}.{os.uname().nodename}.999999999"]
    for name in names:
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (0, 0))
    os.utime(folder, (0, 0))
    store.make()
    assert [file.name for file in folder.iterdir()] == [CHECKPOINT]
