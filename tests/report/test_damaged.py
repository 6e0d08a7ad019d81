"""A report of a folder in which records and probes are damaged: those are listed, the rest is told."""

from __future__ import annotations

import io
import json
import os
import signal
import zipfile

import numpy as np
import pytest

from mtlkit.cli.results import results_table
from mtlkit.report import write_report
from mtlkit.report.frame import load
from mtlkit.report.probe_frames import LIMIT, load_probes
from mtlkit.store import RECORD, ResultStore
from tests.fakes import POINTS, cell, fill, probes, record
from tests.report.conftest import WRITTEN


@pytest.fixture(autouse=True)
def _no_hang():
    def stop(*_):
        raise TimeoutError("the test hangs")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(600)  # far beyond what a slow machine takes
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


def arrays_of(**changes):
    """The bytes of probes with some arrays changed; None takes one out."""
    named = probes(cell("mmoe", "uwl", 1)) | {
        name.replace("__", "/").replace("level_1", "level-1"): value
        for name, value in changes.items()
    }
    return packed({name: array for name, array in named.items() if array is not None})


def packed(named_arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **named_arrays)
    return buffer.getvalue()


def zipped(method=zipfile.ZIP_DEFLATED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpacking_to_too_much():
    """A small file of a lot of zeros."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("epochs.npy", "w") as member,
    ):
        for _ in range(LIMIT // 2**20 + 1):
            member.write(bytes(2**20))
    return buffer.getvalue()


def claiming(shape):
    """An array whose header claims more than there is."""
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return zipped(**{"epochs.npy": buffer.getvalue() + bytes(64)})


def with_flipped_bits():
    content = bytearray(arrays_of())
    for position in range(200, 300):
        content[position] ^= 255
    return bytes(content)


def plain_array():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


DAMAGE = {
    "empty": (b"", "archive"),
    "text": (b"no probes", "archive"),
    "one-array": (plain_array(), "archive"),
    "half": (arrays_of()[:2000], "damaged"),
    "flipped-bits": (with_flipped_bits(), "damaged"),
    "bomb": (unpacking_to_too_much(), "256 MiB"),
    "claims-a-lot": (claiming((10**13,)), "damaged"),
    "claims-too-much": (claiming((10**30,)), "damaged"),
    "claims-less-than-0": (claiming((-5,)), "damaged"),
    "no-array-inside": (zipped(**{"epochs.npy": b"text"}), "no array"),
    "objects": (packed({"epochs": np.array([{}, None])}), "allow_pickle"),
    "epochs-of-text": (arrays_of(epochs=np.array(["a"] * POINTS)), "epochs"),
    "epochs-a-table": (arrays_of(epochs=np.zeros((POINTS, 2))), "epochs"),
    "epochs-endless": (arrays_of(epochs=np.full(POINTS, np.inf)), "epochs"),
    "weights-endless-float32": (
        arrays_of(weights=np.full((POINTS, 2), np.inf, np.float32)),
        "weights",
    ),
    "weights-huge": (arrays_of(weights=np.full((POINTS, 2), 1e300)), "weights"),
    "weights-of-3-tasks": (arrays_of(weights=np.ones((POINTS, 3))), "weights"),
    "weights-true": (arrays_of(weights=np.ones((POINTS, 2), bool)), "weights"),
    "tasks-of-numbers": (arrays_of(tasks=np.arange(2)), "tasks"),
    "other-tasks": (arrays_of(tasks=np.array(["a", "b"])), "tasks"),
    "cosines-flat": (arrays_of(gradient_cosine=np.zeros(POINTS)), "gradient_cosine"),
    "cosines-few": (arrays_of(gradient_cosine=np.zeros((3, 3, 2, 2))), "gradient_cosine"),
    "gate-without-entropy": (arrays_of(gate__level_1__income__entropy=None), "entropy"),
    "gate-without-experts": (arrays_of(gate__level_1__income__experts=None), "experts"),
    "gate-a-number": (arrays_of(gate__level_1__income__mean=np.array(1.0)), "experts"),
    "ablation-alone": (arrays_of(ablation__level_1=np.zeros((8, 2))), "experts"),
    "ablation-a-number": (arrays_of(ablation__level_1=np.array(0.0)), "experts"),
}


@pytest.fixture
def store(tmp_path):
    return fill(tmp_path, ("mmoe",), ("uwl",), seeds=(0, 1, 2), reference=False)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_probes_cost_their_run_alone(store, kind):
    file = store.folder(cell("mmoe", "uwl", 1)) / "probes.npz"
    content, reason = DAMAGE[kind]
    file.write_bytes(content)
    check_others_are_read(store, file, reason)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "dangling link"])
def test_probes_that_are_no_file(store, kind):
    file = store.folder(cell("mmoe", "uwl", 1)) / "probes.npz"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    check_others_are_read(store, file, "")


def check_others_are_read(store, file, reason):
    frames = load(store)
    [block] = frames.blocks
    read = load_probes(frames, block)
    assert [left_out.path for left_out in read.unreadable] == [file]
    assert reason in read.unreadable[0].reason

    # seeds 0 and 2 are left
    [group] = read.by_group.values()
    expected = [probes(cell("mmoe", "uwl", seed))["gradient_cosine"] for seed in (0, 2)]
    np.testing.assert_array_equal(group.cosine, np.stack(expected))
    [summary_group] = block.groups
    assert summary_group.seeds == (0, 1, 2), "its metrics count"


def test_probes_without_gradients_are_none(store):
    """A single task has no cosines; that is no damage."""
    file = store.folder(cell("mmoe", "uwl", 1)) / "probes.npz"
    file.write_bytes(arrays_of(gradient_cosine=None))
    frames = load(store)
    read = load_probes(frames, frames.blocks[0])
    assert read.unreadable == ()
    assert [len(group.lengths) for group in read.by_group.values()] == [2]


def test_the_report_lists_them_and_tells_the_rest(tmp_path, cli):
    """All of a report, on the page and on the console, with exit code 0."""
    results = tmp_path / "results"
    store = fill(results, ("mmoe",), ("uniform", "uwl"), seeds=(0, 1))
    expected = load_rows(results, cli)

    # one record, one file of probes, one copy
    bad = store.save(record(cell("mmoe", "pcgrad"))) / RECORD
    plain = json.loads(bad.read_text())
    plain["cell"]["resolved"]["training"]["lr"] = 5.0
    bad.write_text(json.dumps(plain))
    damaged = store.folder(cell("mmoe", "uwl", 1)) / "probes.npz"
    damaged.write_bytes(b"")
    original = store.folder(cell("mmoe", "uwl", 0))
    copy = original.with_name(original.name + "-backup")
    copy.mkdir()
    (copy / RECORD).write_bytes((original / RECORD).read_bytes())

    assert load_rows(results, cli) == expected
    result = cli("report", results, "--out", tmp_path / "out")
    assert result.code == 0
    lines = [line for line in result.err.splitlines() if str(results) in line]
    assert lines == [
        f"warning: could not be read: {bad}: its key is not the digest of the settings in it",
        f"warning: could not be read: {damaged}: it is no archive of arrays",
        f"note: {copy} is a copy of {original}; the run counts once",
    ]

    # the page has the same lines, and the runs that are left
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "2 files could not be read" in page
    assert "<h2>Could not be read</h2>" in page
    assert all(page.count(str(path)) == 1 for path in (bad, damaged, copy))
    assert "6 runs, none failed" in page
    built = write_report(results, tmp_path / "again", WRITTEN)
    assert [left_out.path for left_out in built.unreadable] == [bad, damaged]
    assert [one.path for one in built.copies] == [copy]


def load_rows(results, cli):
    """What ``mtlkit report --json`` prints."""
    result = cli("report", results, "--json")
    assert result.code == 0
    return json.loads(result.out)


def test_the_closing_table_names_a_few(tmp_path):
    from rich.console import Console

    store = fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0,), with_probes=False)
    bad = [store.save(record(cell("ple", seed=seed))) / RECORD for seed in range(8)]
    for file in bad:
        file.unlink()
        file.mkdir()
    console = Console(width=400, file=io.StringIO(), record=True)
    groups = {cell("mmoe").group}
    console.print(results_table(tmp_path, groups, console.width))
    text = console.export_text()
    assert any("mmoe" in line.split() for line in text.splitlines())
    named = [line for line in text.splitlines() if line.startswith("could not be read: ")]
    assert [line.split(": ")[1] for line in named] == [str(file) for file in sorted(bad)[:5]]
    assert "3 more; mtlkit report lists them" in text


def test_a_plugin_that_may_not_be_read_is_no_obstacle(tmp_path, monkeypatch):
    from mtlkit.registry import MODELS

    def refuse(name):
        raise PermissionError(13, "Permission denied", name)

    store = ResultStore(tmp_path)
    store.save(record(cell("mmoe")))
    monkeypatch.setattr(type(MODELS), "source_digest", lambda self, name: refuse(name))
    [block] = load(store).blocks
    assert [group.model for group in block.groups] == ["mmoe"]
