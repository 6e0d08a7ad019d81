"""Records that do not hold, by kind: each is listed with its reason, none is fatal or counted."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from mtlkit.report.build import open_results
from mtlkit.report.frame import load
from mtlkit.report.result_rows import rows_of
from mtlkit.report.summary import summarise
from mtlkit.store import RECORD, RECORD_LIMIT, ResultStore
from tests.fakes import cell, failure, fill, record

SECONDS = 30
"""After which a test hangs: reading one record takes a thousandth of one."""


@pytest.fixture(autouse=True)
def _no_hang():
    def stop(*_):
        raise TimeoutError("the test hangs")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


@pytest.fixture
def store(tmp_path):
    """One finished run, beside which damage is done."""
    store = ResultStore(tmp_path / "results")
    store.save(record(cell(seed=0)))
    return store


def sha256(value):
    """The digest as docs/records.md has it, written anew."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal(plain):
    """Give a changed record the digests that follow from its content."""
    identity = {"version": 1, "resolved": plain["cell"]["resolved"]}
    plain["group"] = sha256(identity)
    plain["key"] = sha256(identity | {"seed": plain["cell"]["seed"]})


def put(plain, *path, value):
    """Set one field of nested mappings."""
    for key in path[:-1]:
        plain = plain[key]
    plain[path[-1]] = value


# --- what lies where the record should be


def folder(file):
    file.mkdir()


def link_loop(file):
    file.symlink_to(file)


def dangling_link(file):
    file.symlink_to(file.parent / "nowhere")


def pipe(file):
    os.mkfifo(file)


def endless_device(file):
    file.symlink_to("/dev/zero")


def listening_socket(file):
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(file.parent)  # a socket's path is short
    try:
        server.bind(file.name)
    finally:
        os.chdir(here)
        server.close()


def huge_file(file):
    with file.open("wb") as handle:
        handle.truncate(RECORD_LIMIT + 1)


def text(content):
    return lambda file: file.write_bytes(content)


FILES = {
    "folder": (folder, "Is a directory"),
    "link-loop": (link_loop, "symbolic links"),
    "dangling-link": (dangling_link, "No such file"),
    "pipe": (pipe, "no regular file"),
    "endless-device": (endless_device, "no regular file"),
    "socket": (listening_socket, "No such device"),
    "huge": (huge_file, "larger than 64 MiB"),
    "empty": (text(b""), "JSON"),
    "half": (text(b'{"key": "a'), "JSON"),
    "not-utf-8": (text(b"\xff\xfe\x00"), "JSON"),
    "zeros": (text(bytes(4096)), "JSON"),
    "deep": (text(b"[" * 100_000), "JSON"),
    "a-list": (text(b"[]"), "object"),
    "null": (text(b"null"), "object"),
    "long-number": (text(b'{"seed": ' + b"9" * 5000 + b"}"), ""),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_record(store, kind):
    lost = store.save(record(cell(seed=1))) / RECORD
    lost.unlink()
    make, reason = FILES[kind]
    make(lost)
    check_left_out(store, lost, reason)
    check_run_again(store, cell(seed=1), lost)


def test_a_folder_that_may_not_be_opened(store, monkeypatch):
    """Root may open everything, so the refusal is pretended."""
    lost = store.save(record(cell(seed=1))) / RECORD
    plain_open = os.open

    def refuse(path, *arguments, **options):
        if Path(path) == lost:
            raise PermissionError(13, "Permission denied", str(path))
        return plain_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    check_left_out(store, lost, "Permission denied")


def test_a_model_folder_that_may_not_be_listed(store, monkeypatch):
    store.save(record(cell("ple", seed=1)))
    plain_scan = os.scandir

    def refuse(path):
        if Path(path).name == "ple":
            raise PermissionError(13, "Permission denied", str(path))
        return plain_scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [run.cell for run, _ in store.scan()] == [cell(seed=0)]
    assert [str(left_out) for left_out in store.unreadable] == [
        f"{store.root / 'census' / 'ple'}: Permission denied"
    ]


# --- records that contradict themselves: the cell is looked up where it should be, and runs again

CONTRADICTIONS = {
    "later-version": (("record_version",), 99, "record_version 99"),
    "earlier-version": (("record_version",), 0, "record_version 0"),
    "version-text": (("record_version",), "new", "record_version"),
    "other-key": (("key",), "0" * 64, "key"),
    "key-of-digits": (("key",), 7, "key"),
    "other-group": (("group",), "0" * 64, "group"),
    "edited-lr": (("cell", "resolved", "training", "lr"), 0.1, "key"),
    "edited-seed": (("cell", "seed"), 5, "key"),
    "edited-options": (("cell", "resolved", "model", "options", "experts"), 3, "key"),
    "edited-tasks": (("cell", "resolved", "dataset", "tasks"), ["income"], "key"),
    "nan-setting": (("cell", "resolved", "training", "lr"), float("nan"), "digest"),
    "no-cell": (("cell",), None, "cell"),
    "settings-a-list": (("cell", "resolved"), [], "cell.resolved"),
    "seed-a-word": (("cell", "seed"), "first", "cell.seed"),
    "model-a-number": (("cell", "model"), 7, "cell.model"),
    "model-unparsable": (("cell", "model"), "mmoe[experts=4", "mmoe[experts=4"),
    "odd-status": (("status",), "done", "status"),
    "no-metrics": (("metrics",), {}, "no metrics"),
    "no-scores": (("metrics",), {"test": {}}, "no metrics"),
    "empty-score": (("metrics",), {"test": {"income": {}}}, "no metrics"),
    "validation-only": (("metrics",), {"validation": {"income": {"auc": 0.9}}}, "no metrics"),
    "metrics-a-list": (("metrics",), [1], "metrics"),
    "score-a-number": (("metrics", "test", "income"), 0.9, "metrics.test.income"),
    "auc-a-text": (("metrics", "test", "income", "auc"), "0.9", "metrics.test.income.auc"),
    "auc-true": (("metrics", "test", "income", "auc"), True, "metrics.test.income.auc"),
    "auc-a-list": (("metrics", "test", "income", "auc"), [0.9], "metrics.test.income.auc"),
    "auc-nan": (("metrics", "test", "income", "auc"), float("nan"), "metrics.test.income.auc"),
    "auc-infinite": (("metrics", "test", "income", "auc"), 1e999, "metrics.test.income.auc"),
    "auc-huge": (("metrics", "test", "income", "auc"), 10**400, "metrics.test.income.auc"),
    "space-a-list": (("metrics", "test", "income", "space"), [], "metrics.test.income.space"),
    "derived-a-word": (("metrics", "test", "income", "derived"), "no", "derived"),
    "positives-a-text": (("metrics", "test", "income", "positives"), "12", "positives"),
    "tasks-of-text": (("tasks",), ["income"], "tasks.0"),
    "tasks-a-number": (("tasks",), 2, "tasks"),
    "task-without-name": (("tasks",), [{"kind": "binary"}], "tasks.0.name"),
    "task-name-a-list": (("tasks", 0, "name"), ["income"], "tasks.0.name"),
    "task-metric-a-list": (("tasks", 0, "metric"), ["auc"], "tasks.0.metric"),
    "task-kind-a-list": (("tasks", 0, "kind"), [], "tasks.0.kind"),
    "task-label-a-number": (("tasks", 0, "label"), 3, "tasks.0.label"),
    "ceiling-infinite": (("cell", "ceiling"), {"income": 1e999}, "ceiling.income"),
    "timing-a-text": (("timing", "train_seconds"), "long", "timing.train_seconds"),
    "timing-infinite": (("timing", "train_seconds"), 1e999, "timing.train_seconds"),
    "cost-a-list": (("cost",), [], "cost"),
    "parameters-a-text": (("cost", "parameters"), "many", "cost.parameters"),
    "parameters-huge": (("cost", "parameters"), 10**400, "cost.parameters"),
    "environment-a-text": (("environment",), "cpu", "environment"),
    "curve-a-number": (("curve",), 1, "curve"),
    "warnings-a-text": (("warnings",), "none", "warnings"),
    "error-a-text": (("error",), "none", "error"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_record_that_does_not_hold(store, kind):
    path, value, reason = CONTRADICTIONS[kind]
    lost = store.save(record(cell(seed=1))) / RECORD
    plain = json.loads(lost.read_text())
    put(plain, *path, value=value)
    lost.write_text(json.dumps(plain))
    check_left_out(store, lost, reason)
    check_run_again(store, cell(seed=1), lost)


def test_a_failure_that_does_not_hold(store):
    lost = store.save(failure(cell(seed=1))) / RECORD
    plain = json.loads(lost.read_text())
    plain["error"]["step"] = 10**400
    lost.write_text(json.dumps(plain))
    check_left_out(store, lost, "error.step")


# --- odd settings whose digests were computed anew

SEALED = {
    "seed-below-0": (("seed",), -1, "seed"),
    "seed-huge": (("seed",), 2**70, "seed"),
    "data-set-a-list": (("resolved", "dataset"), [], "resolved.dataset"),
    "no-data-set-name": (("resolved", "dataset", "name"), None, "dataset.name"),
    "tasks-a-number": (("resolved", "dataset", "tasks"), 2, "dataset.tasks"),
    "task-a-number": (("resolved", "dataset", "tasks"), [2], "dataset.tasks"),
    "fingerprint-a-list": (("resolved", "dataset", "fingerprint"), [], "fingerprint"),
    "options-a-list": (("resolved", "dataset", "options"), [1], "dataset.options"),
    "model-a-text": (("resolved", "model"), "mmoe", "resolved.model"),
    "model-name-a-list": (("resolved", "model", "name"), ["mmoe"], "model.name"),
    "balancer-options-a-text": (("resolved", "balancer", "options"), "w", "balancer.options"),
    "digest-a-number": (("resolved", "balancer", "source_sha256"), 1, "source_sha256"),
    "no-training": (("resolved", "training"), None, "resolved.training"),
    "losses-a-number": (("resolved", "losses"), 5, "resolved.losses"),
    "losses-a-list": (("resolved", "losses"), [1], "resolved.losses"),
}


@pytest.mark.parametrize("kind", SEALED)
def test_odd_settings_with_their_own_digest(store, kind):
    path, value, reason = SEALED[kind]
    written = store.save(record(cell(seed=1)))
    plain = json.loads((written / RECORD).read_text())
    put(plain["cell"], *path, value=value)
    seal(plain)
    (written / RECORD).write_text(json.dumps(plain))
    moved = written.rename(written.with_name(f"seed-{plain['cell']['seed']}-{plain['key'][:8]}"))
    check_left_out(store, moved / RECORD, reason)


def test_the_digests_are_those_of_the_documentation(store):
    """Sealing alone changes nothing, so that the refusals above have their own reasons."""
    plain = json.loads((store.folder(cell(seed=0)) / RECORD).read_text())
    again = json.loads(json.dumps(plain))
    seal(again)
    assert again == plain


# --- folders of other names, and copies


def test_a_folder_of_another_name(store):
    moved = store.save(record(cell(seed=1))).rename(
        store.root / "census/mmoe/uniform/seed-1-00000000"
    )
    check_left_out(store, moved / RECORD, f"seed-1-{cell(seed=1).key[:8]}")
    assert ResultStore.record(moved) == record(cell(seed=1)), "for --init-from it may move"


def test_copies_are_one_run(tmp_path):
    store = fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0, 1), with_probes=False)
    before = rows_of(load(store))
    original = store.folder(cell(seed=0))
    beside = original.with_name(original.name + "-backup")
    elsewhere = store.root / "census" / "a-copy" / "uniform" / original.name
    for copy in (beside, elsewhere):
        copy.mkdir(parents=True)
        (copy / RECORD).write_bytes((original / RECORD).read_bytes())
    frames = load(ResultStore(tmp_path))
    assert rows_of(frames) == before
    assert frames.unreadable == ()
    assert [(copy.path, copy.original) for copy in frames.copies] == [
        (elsewhere, original),
        (beside, original),
    ]


def test_a_copy_alone_is_the_run(store):
    """A folder that moved as a whole still counts."""
    store.root.joinpath("census").rename(store.root / "census-of-may")
    assert [run.cell for run, _ in store.scan()] == [cell(seed=0)]
    assert (store.unreadable, store.copies) == ([], [])


# --- what is done with them


def check_left_out(store, lost, reason):
    """A run is listed once, with its reason, and all else is as if it were not there."""
    frames = load(ResultStore(store.root))
    assert [left_out.path for left_out in frames.unreadable] == [lost]
    assert reason in frames.unreadable[0].reason
    assert "\n" not in str(frames.unreadable[0])

    # the expected rows are those of the good run alone
    alone = ResultStore(store.root.parent / "alone")
    alone.save(record(cell(seed=0)))
    expected = load(alone)
    assert json.dumps(rows_of(frames)) == json.dumps(rows_of(expected))
    for block in frames.blocks:
        summarise(frames, block)


def check_run_again(store, lost_cell, lost):
    """The cell counts as not done; its next record lies in its folder, the old one beside."""
    assert store.get(lost_cell) is None
    assert [left_out.path for left_out in store.unreadable] == [lost]
    kind = os.lstat(lost).st_mode
    again = record(lost_cell)
    written = store.save(again, log="trained\n")
    assert written == lost.parent
    assert ResultStore(store.root).get(lost_cell) == again
    kept = written.with_name(f"unreadable-{written.name}-1")
    assert os.lstat(kept / RECORD).st_mode == kind
    log = (written / "log.txt").read_text()
    assert kept.name in log
    assert log.endswith("\ntrained\n")
    assert [run.cell.seed for run, _ in store.scan()] == [0, 1]
    assert store.unreadable == []


def test_a_second_one_is_kept_too(store):
    for number in (1, 2):
        written = store.save(record(cell(seed=1)), {"probes": {"a": np.ones(number)}})
        (written / RECORD).write_text("{")
    store.save(record(cell(seed=1)))
    names = sorted(path.name for path in written.parent.iterdir() if "unreadable" in path.name)
    assert names == [f"unreadable-{written.name}-{number}" for number in (1, 2)]
    kept = [store.arrays(written.with_name(name), "probes")["a"].size for name in names]
    assert kept == [1, 2]


def test_only_bad_ones(tmp_path):
    store = ResultStore(tmp_path)
    (store.save(record(cell())) / RECORD).write_text("{")
    with pytest.raises(Exception, match=r"no run records in .* \(1 unreadable\)") as caught:
        open_results(tmp_path)
    assert "seed-0-" in caught.value.message


def test_odd_characters_stay_on_one_line(store):
    lost = os.fsencode(store.root / "census" / "mmoe" / "uniform") + b"/seed-1-\xff\n\x1b[31m"
    folder = Path(os.fsdecode(lost))
    folder.mkdir()
    (folder / RECORD).write_text("{")
    list(store.scan())
    [line] = map(str, store.unreadable)
    line.encode("ascii")
    assert line.isprintable()
