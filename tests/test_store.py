import errno
import json
import os
import platform
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mtlkit import store as store_module
from mtlkit.errors import MissingError
from mtlkit.files import replacing
from mtlkit.record_check import UnreadableError
from mtlkit.records import RunRecord
from mtlkit.store import RECORD, ResultStore
from tests.fakes import cell, failure, probes, record


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


def files(store):
    return sorted(
        str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()
    )


def test_saved_and_found_again(store):
    one = record(cell())
    assert store.get(one.cell) is None
    folder = store.save(one, {"probes": probes(one.cell)}, "a line\n")
    assert folder == store.root / "census" / "mmoe" / "uniform" / f"seed-0-{one.key[:8]}"
    assert store.get(one.cell) == one
    assert (folder / "log.txt").read_text() == "a line\n"
    assert files(store) == [
        f"{folder.relative_to(store.root)}/{name}" for name in ("log.txt", "probes.npz", RECORD)
    ]
    np.testing.assert_array_equal(
        store.arrays(folder, "probes")["steps"], probes(one.cell)["steps"]
    )
    assert store.arrays(folder, "scores") == {}


def test_a_record_reads_without_mtlkit(store):
    one = record(cell())
    plain = json.loads((store.save(one) / RECORD).read_text(encoding="utf-8"))
    assert plain == one.model_dump(mode="json")


def test_options_do_not_make_folders(store):
    one = record(
        cell(
            model="mmoe[experts=4]",
            balancer="/some/where/my_own.py[lr=.1]",
            dataset="census[bins=8]",
        )
    )
    assert store.save(one).relative_to(store.root).parts[:3] == ("census", "mmoe", "my_own")
    assert store.get(one.cell) == one


def test_scan_is_complete_and_in_a_stable_order(store):
    cells = [cell(model, seed=seed) for model in ("ple", "mmoe") for seed in (1, 0)]
    for one in cells:
        store.save(record(one))
    cells_found = [(record.cell.model, record.cell.seed) for record, _ in store.scan()]
    assert cells_found == [("mmoe", 0), ("mmoe", 1), ("ple", 0), ("ple", 1)]
    assert all((folder / RECORD).exists() for _, folder in store.scan())
    assert list(ResultStore(store.root / "nowhere").scan()) == []


def test_seeds_and_settings_do_not_collide(store):
    cells = [
        cell(seed=0),
        cell(seed=1),
        cell(training={"lr": 1.0}),
        cell(model_options={"experts": 2}),
    ]
    assert len({store.save(record(one)) for one in cells}) == 4
    assert [store.get(one).key for one in cells] == [one.key for one in cells]


def test_a_crash_between_arrays_and_record_leaves_no_finished_cell(store, monkeypatch):
    one = record(cell())

    def crash(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "model_dump", crash)
        with pytest.raises(OSError, match="disk full"):
            store.save(one, {"probes": probes(one.cell)})
    assert [path.rpartition("/")[2] for path in files(store)] == ["probes.npz"]
    assert store.get(one.cell) is None
    assert list(store.scan()) == []
    assert store.unreadable == []
    store.save(one, {"probes": probes(one.cell)})
    assert store.get(one.cell) == one


def test_a_crash_while_the_record_is_written_leaves_no_record(store, monkeypatch):
    def crash(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="disk full"):
            store.save(record(cell()))
    assert files(store) == []
    assert store.get(cell()) is None


def test_the_record_is_written_last(store, monkeypatch):
    written = []
    replace = type(store.root).replace

    def spy(self, target):
        written.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(type(store.root), "replace", spy)
    store.save(record(cell()), {"scores": {"a": np.ones(2)}, "probes": {"b": np.ones(2)}}, "log")
    assert sorted(written[:-1]) == ["log.txt", "probes.npz", "scores.npz"]
    assert written[-1] == RECORD


def test_what_cannot_be_read_is_listed_and_not_fatal(store):
    good = record(cell(seed=0))
    store.save(good)
    broken = [store.save(record(cell(seed=seed))) / RECORD for seed in (1, 2, 3)]
    broken[0].write_text("{")
    broken[1].write_text('{"key": 1}')
    broken[2].write_bytes(b"\xff\xfe")
    assert [record for record, _ in store.scan()] == [good]
    assert [left_out.path for left_out in store.unreadable] == sorted(broken)
    assert store.get(cell(seed=1)) is None
    assert [record for record, _ in store.scan()] == [good]
    assert [left_out.path for left_out in store.unreadable] == sorted(broken), "listed once"


def test_a_finished_record_is_never_overwritten(store):
    one = record(cell())
    folder = store.save(one, {"probes": {"a": np.zeros(1)}}, "first")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    store.save(failure(cell()), log="second")
    store.save(
        one.model_copy(update={"timing": {"total_seconds": 0.0}}),
        {"probes": {"a": np.ones(1)}},
        "third",
    )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failure_gives_way(store):
    store.save(failure(cell()))
    assert store.get(cell()).status == "failed"
    store.save(failure(cell(), timeout=True))
    assert store.get(cell()).status == "timeout"
    store.save(record(cell()))
    assert store.get(cell()).ok


def test_a_record_that_cannot_be_read_is_replaced(store):
    folder = store.save(record(cell()))
    (folder / RECORD).write_text("{")
    store.save(record(cell()))
    assert store.get(cell()).ok


def test_pickled_arrays_are_refused(store):
    folder = store.save(record(cell()))
    np.savez(folder / "probes.npz", odd=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        store.arrays(folder, "probes")


def _no_seek(*_):
    raise OSError


@pytest.mark.parametrize("packing", ["deflated", "stored", "streamed", "bzip2"])
def test_arrays_are_read_however_they_are_packed(tmp_path, monkeypatch, packing):
    arrays = {"gate/ü/mean": np.arange(6.0).reshape(2, 3), "tasks": np.array(["a", "b"])}
    with (tmp_path / "probes.npz").open("wb") as handle:
        if packing == "streamed":  # an archive that cannot go back has sizes after each member
            monkeypatch.setattr(handle, "seek", _no_seek)
        kinds = {"stored": zipfile.ZIP_STORED, "bzip2": zipfile.ZIP_BZIP2}
        kind = kinds.get(packing, zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(handle, "w", kind) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.save(member, array)
    with zipfile.ZipFile(tmp_path / "probes.npz") as archive:
        assert bool(archive.infolist()[1].flag_bits) == (packing == "streamed")

    read = ResultStore.arrays(tmp_path, "probes")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_every_flipped_byte_of_an_archive_is_found_or_harmless(tmp_path):
    array = np.arange(40.0)
    file = tmp_path / "probes.npz"
    np.savez_compressed(file, weights=array)
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read = ResultStore.arrays(tmp_path, "probes")
        except UnreadableError:
            continue
        for values in read.values():
            np.testing.assert_array_equal(values, array)


def test_names_of_any_language_survive(store):
    one = cell(tasks=["achète", "購入"])
    store.save(record(one))
    assert store.get(one).metrics["test"].keys() == {"achète", "購入"}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingError, match="cannot be written to") as caught:
        ResultStore(tmp_path / "file" / "results").make()
    assert "--out" in caught.value.hint
    ResultStore(tmp_path / "a" / "b").make()
    assert (tmp_path / "a" / "b").is_dir()


def test_two_threads_may_write_one_file(tmp_path):
    def write(text):
        with replacing(tmp_path / "record.json") as handle:
            both_write.wait()
            handle.write(text)
            both_write.wait()

    both_write = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, (b"one", b"two")))
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    assert (tmp_path / "record.json").read_bytes() in (b"one", b"two")


# --- what processes that died have left


HERE, ELSEWHERE = platform.node(), "another-machine"
LONG_AGO = 1e9


@pytest.fixture
def nobody():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_unfinished_files_of_dead_processes_are_swept(store, nobody):
    folder = store.save(record(cell()), log="a line\n")
    dead = [f".record.json.{HERE}.{nobody}-7", f".probes.npz.{HERE}.{nobody}"]
    live = [f".record.json.{HERE}.{os.getpid()}-7", f".log.txt.{ELSEWHERE}.{nobody}"]
    unknown = [".record.json.1", f".notes.{HERE}.{nobody}", "notes.txt"]
    for name in (*dead, *live, *unknown):
        (folder / name).touch()
    before = {file.name for file in folder.iterdir()}
    store.make()
    assert {file.name for file in folder.iterdir()} == before - set(dead)

    # after a day nobody writes any more, wherever that was
    for name in (*live, *unknown):
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    store.make()
    left = {file.name for file in folder.iterdir()}
    assert left == {RECORD, "log.txt", f".notes.{HERE}.{nobody}", "notes.txt"}


def test_half_made_runs_are_swept_after_a_day(store, nobody):
    """One that may still be written, one that will not, and one with a file of somebody else."""
    fresh, old, foreign = (store.folder(cell(seed=seed)) for seed in range(3))
    for folder in (fresh, old, foreign):
        folder.mkdir(parents=True)
        (folder / "probes.npz").touch()
        (folder / f".record.json.{HERE}.{nobody}").touch()
    (foreign / "notes.txt").touch()
    for folder in (old, foreign):
        os.utime(folder, (LONG_AGO, LONG_AGO))
    finished = store.save(record(cell(seed=3)))
    os.utime(finished, (LONG_AGO, LONG_AGO))

    store.make()
    assert sorted(path.name for path in fresh.parent.iterdir()) == sorted(
        folder.name for folder in (fresh, foreign, finished)
    )
    assert {path.name for path in foreign.iterdir()} == {"probes.npz", "notes.txt"}
    assert [path.name for path in finished.iterdir()] == [RECORD]


def test_a_process_of_another_user_is_alive(monkeypatch):
    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert store_module.is_running(1)


def test_a_folder_that_cannot_be_written_to(store, monkeypatch):
    """What a read-only mount says, to root as well."""

    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(MissingError, match="cannot be written to: Read-only file system") as caught:
        store.make()
    assert caught.value.hint == "choose another with --out DIR"
