"""Prepared data are not believed: whatever changed since they were written is found."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from mtlkit.data import storage
from mtlkit.data.sources import open_source, prepare
from mtlkit.data.splits import SPLITS
from mtlkit.data.storage import MANIFEST, read_dataset
from mtlkit.errors import MissingError

SPEC = "funnel[rows=400,click_rate=0.4,buy_rate=0.4,users=20,items=10]"


@pytest.fixture(scope="module")
def written_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    prepare(SPEC, home)
    return home


@pytest.fixture
def home(written_home, tmp_path):
    """A data home of the test's own, whose dates are those of the first one."""
    return shutil.copytree(written_home, tmp_path / "data")


def folder_of(home):
    return open_source(SPEC).folder(home)


def load(home):
    return open_source(SPEC).load(home)


def rewrite(path, change):
    np.save(path, change(np.load(path)))


def flip_bytes(path):
    contents = bytearray(path.read_bytes())
    for position in range(200, 264):
        contents[position] ^= 0xFF
    path.write_bytes(contents)


def scaled(array):
    return array * np.float32(3)


def labels_of_6_and_7(array):
    return array + np.float32(6)


DAMAGES = {
    "flipped bytes": ("train.ids.npy", flip_bytes, "train.ids.npy changed"),
    "scaled": ("train.dense.npy", lambda p: rewrite(p, scaled), "train.dense.npy changed"),
    "labels": (
        "test.labels.npy",
        lambda p: rewrite(p, labels_of_6_and_7),
        "test.labels.npy changed",
    ),
    "shorter": (
        "test.ids.npy",
        lambda p: rewrite(p, lambda a: a[:-1]),
        r"ids of shape \(199, 4\), not \(200, any\)",
    ),
    "other type": (
        "train.ids.npy",
        lambda p: rewrite(p, lambda a: a.astype(np.int64)),
        "ids of type int64, not int32",
    ),
    "missing": ("validation.observed.npy", lambda p: p.unlink(), "No such file"),
    "empty file": ("test.labels.npy", lambda p: p.write_bytes(b""), "EOFError"),
    "cut": ("test.labels.npy", lambda p: os.truncate(p, 200), "ValueError"),
    "no array": ("test.labels.npy", lambda p: p.write_bytes(b"x" * 4000), "ValueError"),
    "a folder": ("test.dense.npy", lambda p: (p.unlink(), p.mkdir()), "no regular file"),
    "a pipe": ("train.dense.npy", lambda p: (p.unlink(), os.mkfifo(p)), "no regular file"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_named(home, kind):
    name, damage, text = DAMAGES[kind]
    damage(folder_of(home) / name)
    with pytest.raises(MissingError, match=text) as caught:
        load(home)
    assert "are not what was written" in caught.value.message
    assert caught.value.hint == f"mtlkit fetch '{SPEC}' --force"


def test_the_command_in_the_hint_repairs(home):
    before = load(home).fingerprint
    flip_bytes(folder_of(home) / "train.ids.npy")
    assert prepare(SPEC, home, force=True, asked=True)[1].fingerprint == before


def empty_the_test_split(folder, splits=("test",)):
    for name in splits:
        for path in folder.glob(f"{name}.*.npy"):
            rewrite(path, lambda a: a[:0])


@pytest.mark.parametrize("with_manifest", [False, True])
def test_empty_split(home, with_manifest):
    folder = folder_of(home)
    empty_the_test_split(folder)
    if with_manifest:
        change_manifest(folder, lambda m: m["splits"]["test"].update(rows=0))
    with pytest.raises(MissingError, match="The test split has no rows"):
        load(home)


def test_another_split_of_equal_layout(home):
    folder = folder_of(home)
    for path in folder.glob("validation.*.npy"):
        shutil.copy(path, folder / path.name.replace("validation", "test"))
    with pytest.raises(MissingError, match="changed"):
        load(home)


def test_fewer_rows_in_every_array(home):
    for path in folder_of(home).glob("test.*.npy"):
        rewrite(path, lambda a: a[:150])
    with pytest.raises(MissingError, match="the test split has 150 rows, not 200"):
        load(home)


def change_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("schema"),
        lambda m: m["schema"].update(features="x"),
        lambda m: m["schema"]["features"].pop(),
        lambda m: m["splits"].pop("test"),
        lambda m: m["splits"]["test"]["arrays"].remove("labels"),
        lambda m: m["splits"].update(test=None),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={}, contents="0" * 64),
        lambda m: m.update(fingerprint=3),
        lambda m: m.update(fingerprint=""),
        lambda m: m.pop("fingerprint"),
        lambda m: m.update(name=None),
        lambda m: m.update(simulated="no"),
        lambda m: m.update(details=[]),
        lambda m: m.update(contents=3),
        lambda m: m["splits"]["train"].update(rows="200"),
    ],
)
def test_damaged_manifest(home, change):
    change_manifest(folder_of(home), change)
    with pytest.raises(MissingError, match="are not what was written"):
        load(home)


def test_the_field_of_a_manifest_that_is_wrong_is_named(home):
    change_manifest(folder_of(home), lambda m: m.update(name=None))
    with pytest.raises(MissingError) as caught:
        load(home)
    assert caught.value.message == (
        f"The prepared data in {folder_of(home)} are not what was written: "
        "In manifest.json, 'name' cannot be None: input should be a valid string."
    )
    assert caught.value.hint == f"mtlkit fetch '{SPEC}' --force"


# --- what costs nothing, and what is lost by nobody


def touch(folder):
    for path in folder.glob("*.npy"):
        os.utime(path, ns=(1, 1))


def count_hashes(monkeypatch):
    hashed = []
    original = storage.fingerprint_folder

    def counting(folder, schema, arrays):
        hashed.append(folder)
        return original(folder, schema, arrays)

    monkeypatch.setattr(storage, "fingerprint_folder", counting)
    return hashed


def test_nothing_is_hashed_while_dates_stay(home, monkeypatch):
    hashed = count_hashes(monkeypatch)
    load(home)
    assert hashed == []


def test_a_copy_is_hashed_once(home, monkeypatch):
    expected = load(home).fingerprint
    touch(folder_of(home))
    hashed = count_hashes(monkeypatch)
    assert load(home).fingerprint == expected
    load(home)
    assert hashed == [folder_of(home)]


def test_damage_with_the_old_size_and_a_new_date_is_found(home):
    path = folder_of(home) / "train.dense.npy"
    size = path.stat().st_size
    rewrite(path, scaled)
    assert path.stat().st_size == size
    touch(folder_of(home))
    with pytest.raises(MissingError, match=r"train\.dense\.npy and 12 more changed"):
        load(home)


def without_notes(folder):
    """Make the folder one of an earlier version, and return its manifest."""
    change_manifest(folder, lambda m: (m.pop("files"), m.pop("contents")))
    return json.loads((folder / MANIFEST).read_text())


def test_manifest_of_an_earlier_version_gets_its_notes(home):
    folder = folder_of(home)
    expected = load(home).fingerprint
    noted = json.loads((folder / MANIFEST).read_text())
    without_notes(folder)
    touch(folder)
    assert load(home).fingerprint == expected
    renewed = json.loads((folder / MANIFEST).read_text())
    for name, note in noted["files"].items():
        assert renewed["files"][name] == note | {"mtime_ns": 1}
    assert renewed | {"files": None} == noted | {"files": None}, "all else is as it was"
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".npy") == [MANIFEST]


def test_earlier_version_whose_data_are_damaged(home):
    folder = folder_of(home)
    without_notes(folder)
    rewrite(folder / "train.dense.npy", scaled)
    with pytest.raises(MissingError, match="their fingerprint is another one"):
        load(home)
    assert "files" not in json.loads((folder / MANIFEST).read_text())


def test_read_only_folder_is_read(home, monkeypatch):
    folder = folder_of(home)
    manifest = without_notes(folder)
    hashed = count_hashes(monkeypatch)

    def refuse(path, *args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    load(home)
    load(home)
    assert json.loads((folder / MANIFEST).read_text()) == manifest
    assert len(hashed) == 1, "once a process"


def test_a_fingerprint_that_is_no_hash_of_the_contents(tmp_path):
    dataset = replace(open_source(SPEC).prepare(tmp_path), fingerprint="version 7")
    storage.write_dataset(tmp_path / "set", dataset, {})
    touch(tmp_path / "set")
    assert read_dataset(tmp_path / "set").fingerprint == "version 7"
    rewrite(tmp_path / "set" / "train.dense.npy", scaled)
    with pytest.raises(MissingError, match=r"train\.dense\.npy changed"):
        read_dataset(tmp_path / "set")


def test_without_a_source_the_hint_needs_no_name(home):
    (folder_of(home) / "test.ids.npy").unlink()
    with pytest.raises(MissingError) as caught:
        read_dataset(folder_of(home))
    assert "remove this folder" in caught.value.hint


def test_all_splits_are_noted(home):
    files = json.loads((folder_of(home) / MANIFEST).read_text())["files"]
    assert {name.partition(".")[0] for name in files} == set(SPLITS)
    assert set(files) == {path.name for path in folder_of(home).glob("*.npy")}
