import errno
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtlkit.data import storage
from mtlkit.data.splits import SPLITS, Bag, Dataset, SharedColumns, Split, fingerprint
from mtlkit.data.storage import (
    MANIFEST,
    Column,
    fingerprint_folder,
    read_dataset,
    read_manifest,
    write_dataset,
)
from mtlkit.data.types import Feature, Schema, Task
from mtlkit.errors import MissingError


def make_split(rows: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, rows)
    total = int(lengths.sum())
    bag = Bag(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rng.integers(0, 9, total).astype(np.int32),
        rng.random(total).astype(np.float32),
    )
    return Split(
        ids=rng.integers(0, 5, (rows, 2)).astype(np.int32),
        dense=rng.random((rows, 3)).astype(np.float32),
        labels=rng.integers(0, 2, (rows, 2)).astype(np.float32),
        observed=rng.random((rows, 2)) < 0.7,
        bags={"shop-offsets": bag, "brand": bag},
        weight=rng.random(rows).astype(np.float32),
        shared=SharedColumns(
            row=rng.integers(0, rows, rows).astype(np.int32),
            ids=rng.integers(0, 5, (rows, 1)).astype(np.int32),
            dense=rng.random((rows, 2)).astype(np.float32),
            bags={"history": bag},
        ),
        groups={"user": rng.integers(0, 3, rows), "session": rng.integers(0, 3, rows)},
    )


@pytest.fixture
def dataset() -> Dataset:
    bags = ("shop-offsets", "brand", "history")
    features = [Feature(name=name, vocab=5) for name in ("a", "b", "c")]
    features += [Feature(name=name, kind="bag", vocab=9) for name in bags]
    features += [Feature(name=f"n{i}", kind="dense") for i in range(5)]
    tasks = (Task(name="click"), Task(name="purchase", given="click"))
    schema = Schema(features=tuple(features), tasks=tasks, funnel=("click", "purchase"))
    splits = {name: make_split(30 + seed, seed) for seed, name in enumerate(SPLITS)}
    return Dataset("toy", schema, splits, fingerprint(schema, splits), simulated=True)


def test_round_trip(dataset, tmp_path):
    write_dataset(tmp_path / "toy", dataset, {"p": 0.5})
    back = read_dataset(tmp_path / "toy")
    assert (back.name, back.schema, back.simulated) == ("toy", dataset.schema, True)
    assert fingerprint(back.schema, back.splits) == dataset.fingerprint == back.fingerprint
    for name in SPLITS:
        before, after = dataset.splits[name].arrays(), back.splits[name].arrays()
        assert before.keys() == after.keys()
        for key, array in before.items():
            np.testing.assert_array_equal(array, after[key])
            assert array.dtype == after[key].dtype
            assert not after[key].flags.writeable
    manifest = read_manifest(tmp_path / "toy")
    assert manifest["options"] == {"p": 0.5}
    assert (
        manifest["splits"]["train"]["positives"]["click"] == dataset.splits["train"].positives()[0]
    )


def test_fingerprint_read_in_pieces_is_the_same(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "CHUNK_BYTES", 7)
    write_dataset(tmp_path / "toy", dataset, {})
    splits = read_manifest(tmp_path / "toy")["splits"]
    assert fingerprint_folder(tmp_path / "toy", dataset.schema, splits) == dataset.fingerprint


@pytest.mark.parametrize("shape", [(), (3,), (0,)])
def test_column_grows_row_by_row(tmp_path, shape):
    rows = np.arange(11 * max(int(np.prod(shape)), 0)).reshape(11, *shape).astype(np.float32)
    with Column(tmp_path / "x.npy", np.float32, shape) as column:
        for piece in (rows[:4], rows[4:4], rows[4:]):
            column.write(piece)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), rows)


def test_fingerprint_sees_every_part(dataset):
    for key, array in dataset.splits["test"].arrays().items():
        arrays = {name: value.copy() for name, value in dataset.splits["test"].arrays().items()}
        arrays[key].flat[0] = not array.flat[0] if array.dtype == bool else array.flat[0] + 1
        changed = dataset.splits | {"test": Split.from_arrays(arrays)}
        assert fingerprint(dataset.schema, changed) != dataset.fingerprint, key


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_data_are_on_the_disk_before_they_get_their_name(dataset, tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, (tmp_path / "toy").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_dataset(tmp_path / "toy", dataset, {})
    before = {name for name, has_its_name in synced if not has_its_name}
    assert {path.name for path in (tmp_path / "toy").iterdir()} < before
    assert any(name.startswith(".toy.") for name in before), "the list of their names, too"
    assert synced[-1] == (tmp_path.name, True)


def test_interruption_leaves_nothing_finished(dataset, tmp_path, monkeypatch):
    calls = []

    def fail_late(*args, **options):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, "save_array", fail_late)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "toy", dataset, {})
    assert list(tmp_path.iterdir()) == []
    assert read_manifest(tmp_path / "toy") is None


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no device that is always full"
)
@pytest.mark.parametrize("file", ["validation.labels.npy", MANIFEST])
def test_a_full_disk_is_said(dataset, tmp_path, file):
    with storage.atomic_folder(tmp_path / "toy") as partial:
        (partial / "old").touch()
    with (
        pytest.raises(MissingError, match="became full") as caught,
        storage.atomic_folder(tmp_path / "toy") as partial,
    ):
        on_full_disk(partial, file, dataset)
    assert "--data-dir" in caught.value.hint
    assert [path.name for path in tmp_path.rglob("*")] == ["toy", "old"], "what was there is kept"


def on_full_disk(partial, file, dataset):
    (partial / file).symlink_to("/dev/full")
    entries = {}
    for name, split in dataset.splits.items():
        for key, array in split.arrays().items():
            storage.save_array(partial / f"{name}.{key}.npy", array)
        entries[name] = {"rows": len(split), "arrays": list(split.arrays())}
    storage.write_manifest(partial, dataset, {}, entries)


def test_a_limit_for_files_is_said(tmp_path):
    with (
        pytest.raises(MissingError, match="larger than the system allows") as caught,
        storage.atomic_folder(tmp_path / "toy"),
    ):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert "ulimit -f unlimited" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_said_to_be_a_full_disk(tmp_path):
    with pytest.raises(IsADirectoryError), storage.atomic_folder(tmp_path / "toy") as partial:
        partial.write_text("x")


def test_arrays_are_saved_as_numpy_saves_them(tmp_path):
    for number, array in enumerate(
        (np.eye(3, dtype=bool).T[:, 1:], np.zeros((0, 4), np.float32), np.arange(5))
    ):
        paths = [tmp_path / f"{who}-{number}.npy" for who in ("numpy", "own")]
        np.save(paths[0], np.ascontiguousarray(array))
        storage.save_array(paths[1], array)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_replacing_keeps_one_folder(dataset, tmp_path):
    write_dataset(tmp_path / "toy", dataset, {"turn": 1})
    write_dataset(tmp_path / "toy", dataset, {"turn": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert read_manifest(tmp_path / "toy")["options"] == {"turn": 2}


@pytest.mark.parametrize("text", [None, "{", "[]", json.dumps({"format": -1})])
def test_unfinished_or_strange_folders_are_not_data(dataset, tmp_path, text):
    write_dataset(tmp_path / "toy", dataset, {})
    if text is None:
        shutil.rmtree(tmp_path / "toy")
    else:
        (tmp_path / "toy" / MANIFEST).write_text(text)
    assert read_manifest(tmp_path / "toy") is None
    with pytest.raises(FileNotFoundError):
        read_dataset(tmp_path / "toy")


def test_a_pipe_for_a_manifest_is_not_waited_for(dataset, tmp_path):
    write_dataset(tmp_path / "toy", dataset, {})
    manifest = tmp_path / "toy" / MANIFEST
    manifest.unlink()
    os.mkfifo(manifest)
    assert read_manifest(tmp_path / "toy") is None


@pytest.mark.parametrize("change", [{"name": 3}, {"name": ""}, {"fingerprint": None}], ids=str)
def test_what_could_not_be_read_is_not_written(dataset, tmp_path, change):
    (field,) = change
    with pytest.raises(MissingError, match=f"In manifest.json, '{field}' cannot be"):
        write_dataset(tmp_path / "toy", replace(dataset, **change), {})
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_left_unfinished_are_removed_after_a_day(tmp_path):
    for name in (".download-old", ".download-new", ".other-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        if name.endswith("old"):
            os.utime(tmp_path / name, (1e9, 1e9))
    storage.remove_stale(tmp_path, ".download-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".download-new", ".other-old"]
