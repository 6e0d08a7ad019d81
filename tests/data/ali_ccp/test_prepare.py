import json
import signal
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mtlkit.data import storage
from mtlkit.data.ali_ccp import archives as archive_files
from mtlkit.data.ali_ccp import join, staging, vocabulary, write
from mtlkit.data.ali_ccp import prepare as module
from mtlkit.data.ali_ccp.archives import find_source
from mtlkit.data.ali_ccp.prepare import prepare_archives
from mtlkit.data.ali_ccp.protocols import PROTOCOLS, Request
from mtlkit.data.ali_ccp.staging import Staged
from mtlkit.data.planted import ALL_SIMULATED_ROWS, ceilings, ceilings_of_all_rows
from mtlkit.data.splits import fingerprint
from mtlkit.data.storage import atomic_folder, read_dataset, write_manifest
from mtlkit.errors import MissingError

from . import raw, reference
from .rows import joined


def run(origin, folder, protocol="aitm", min_count=None, sample=1.0, max_bad_rows=0, fields=()):
    chosen = PROTOCOLS[protocol].select(fields) if fields else PROTOCOLS[protocol]
    request = Request(chosen, min_count or chosen.min_count, sample, max_bad_rows)
    with atomic_folder(folder) as partial:
        dataset, splits = prepare_archives(
            find_source(origin, "hint"),
            partial,
            "ali-ccp",
            request,
            lambda *told: None,
            "mtlkit fetch",
        )
        write_manifest(partial, dataset, {}, splits)
    return read_dataset(folder)


def assert_equals_reference(data, texts, protocol, min_count=None, sample=1.0):
    expected, numbers = reference.prepare(texts, protocol, min_count, sample)
    names = {
        kind: [feature.name for feature in data.schema.of_kind(kind)]
        for kind in ("id", "bag", "dense")
    }
    assert set(names["id"]) == set(reference.KINDS[protocol]["ids"])
    assert set(names["bag"]) == set(reference.KINDS[protocol]["bags"])
    assert {name.removeprefix("D") for name in names["dense"]} == set(
        reference.KINDS[protocol]["dense"]
    )
    for feature in data.schema.features:
        if feature.kind != "dense":
            assert feature.vocab == len(numbers[feature.name]) + 1
    for split, rows in expected.items():
        got = joined(data.splits[split])
        assert len(got.labels) == len(rows) > 0
        np.testing.assert_array_equal(got.labels, [labels for labels, *_ in rows])
        assert got.observed.all()
        np.testing.assert_array_equal(got.groups["user"], [user for _, user, *_ in rows])
        np.testing.assert_array_equal(
            got.ids, [[ids[name] for name in names["id"]] for _, _, ids, _, _ in rows]
        )
        dense = np.array(
            [[row[4][name.removeprefix("D")] for name in names["dense"]] for row in rows],
            np.float32,
        )
        np.testing.assert_array_equal(got.dense, dense.reshape(len(rows), -1))
        for name in names["bag"]:
            bag = got.bags[name]
            np.testing.assert_array_equal(np.diff(bag.offsets), [len(row[3][name]) for row in rows])
            np.testing.assert_array_equal(
                bag.values, [id for row in rows for id, _ in row[3][name]]
            )
            np.testing.assert_array_equal(
                bag.weights, [weight for row in rows for _, weight in row[3][name]]
            )


@pytest.mark.parametrize("protocol", ["aitm", "rechub", "full"])
def test_equals_the_slow_reference(archives, tmp_path, protocol):
    data = run(archives, tmp_path / "out", protocol)
    assert_equals_reference(data, reference.texts_of(archives), protocol)
    assert data.simulated
    assert data.schema.funnel == ("click", "purchase")


@pytest.mark.parametrize(
    ("protocol", "min_count", "sample"), [("aitm", 3, 0.5), ("rechub", 40, 0.6), ("full", 2, 0.7)]
)
def test_sample_and_counts_equal_the_reference(archives, tmp_path, protocol, min_count, sample):
    data = run(archives, tmp_path / "out", protocol, min_count, sample)
    assert_equals_reference(data, reference.texts_of(archives), protocol, min_count, sample)


@pytest.mark.parametrize("protocol", ["aitm", "rechub", "full"])
def test_strange_but_legal_text(tmp_path, protocol):
    """Fields twice in a row, both orders of the files, values of all shapes, CRLF, no last line
    feed, empty lists.
    """
    rng = np.random.default_rng(3)
    shapes = "1.0 -2 0.5 .25 3. 1e-3 2.5E+2 123456789012345678901234567890 0.1234567890123456789"
    texts = {}
    for split in ("train", "test"):
        lines, users = [], []
        for n in range(400):
            items = [
                (
                    str(rng.choice(reference.ROW_FIELDS)),
                    int(rng.integers(1, 6)),
                    str(rng.choice(shapes.split())),
                )
                for _ in range(rng.integers(0, 9))
            ]
            items.insert(len(items) // 2, ("999", "x y", "anything"))
            click = int(rng.integers(0, 2))
            lines.append(
                raw.skeleton(
                    n,
                    click,
                    int(rng.integers(0, 2)) * click,
                    f"{n % 37:X}",
                    *items[: 9 * (n % 7 > 0)],
                )
            )
        for k in range(37):
            items = [
                (
                    str(rng.choice(reference.USER_FIELDS)),
                    int(rng.integers(0, 2**31)) % (4 + k % 3),
                    str(rng.choice(shapes.split())),
                )
                for _ in range(rng.integers(0, 30))
            ]
            users.append(raw.common(f"{k:016x}", *items))
        names = [f"sample_skeleton_{split}.csv", f"common_features_{split}.csv"]
        contents = [b"".join(lines), b"".join(users).replace(b"\n", b"\r\n")[:-2]]
        order = [0, 1] if split == "train" else [1, 0]
        texts |= {names[i]: contents[i] for i in order}
    origin = raw.write_archives(tmp_path / "in", texts)
    assert_equals_reference(run(origin, tmp_path / "out", protocol, 3), texts, protocol, 3)


def test_order_of_members_does_not_matter(archives, tmp_path):
    texts = reference.texts_of(archives)
    other = raw.write_archives(tmp_path / "in", dict(reversed(texts.items())))
    for protocol, sample in (("full", 1.0), ("rechub", 0.5)):
        one = run(archives, tmp_path / "one", protocol, sample=sample)
        two = run(other, tmp_path / "two", protocol, sample=sample)
        assert one.fingerprint == two.fingerprint


def test_the_same_twice_and_hashed_as_it_reads(archives, tmp_path):
    one, two = run(archives, tmp_path / "one"), run(archives, tmp_path / "two")
    assert one.fingerprint == two.fingerprint == fingerprint(one.schema, one.splits)
    assert run(archives, tmp_path / "three", min_count=2).fingerprint != one.fingerprint


def test_chunks_do_not_show(archives, tmp_path, monkeypatch):
    whole = run(archives, tmp_path / "whole", "full")
    monkeypatch.setattr(join, "CHUNK", 7)
    assert run(archives, tmp_path / "pieces", "full").fingerprint == whole.fingerprint


@pytest.mark.parametrize("protocol", ["aitm", "rechub", "full"])
def test_threads_do_not_show(archives, tmp_path, monkeypatch, protocol):
    """Every byte of every array, however many splits are read at once and whichever is slower."""

    def contents(name):
        run(archives, tmp_path / name, protocol)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        manifest = json.loads(files.pop("manifest.json"))
        for note in manifest["files"].values():
            del note["mtime_ns"]
        return files, manifest

    both = contents("both")
    monkeypatch.setattr(module, "THREADS", 1)
    assert contents("one") == both
    monkeypatch.setattr(module, "THREADS", 4)
    whole = module._RawSplit.stage

    def late(half, *rest):
        if half.split == "train":
            time.sleep(0.2)
        return whole(half, *rest)

    monkeypatch.setattr(module._RawSplit, "stage", late)
    assert contents("late") == both


@pytest.mark.parametrize("protocol", ["aitm", "rechub", "full"])
def test_hashed_ids_and_direct_cells_give_the_same(archives, tmp_path, monkeypatch, protocol):
    direct = run(archives, tmp_path / "direct", protocol)
    monkeypatch.setattr(vocabulary, "DIRECT_CELLS", 200)
    assert run(archives, tmp_path / "hashed", protocol).fingerprint == direct.fingerprint


class Told:
    """A progress callback that remembers how far each piece of work has come, and gives the others
    time.
    """

    def __init__(self, slow=0.002, interrupt=None):
        self.slow, self.interrupt, self.seen = slow, interrupt, {}

    def __call__(self, what, done, total):
        share = done / total
        self.seen[what] = max(self.seen.get(what, 0), share)
        time.sleep(self.slow)
        if self.interrupt and what.startswith(self.interrupt) and share > 0.02:
            self.interrupt = None
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def long_work(tmp_path, monkeypatch, suffix="tar"):
    """Archives that take hundreds of small steps to stage and to write."""
    monkeypatch.setattr(archive_files, "BLOCK", 1 << 10)
    monkeypatch.setattr(join, "CHUNK", 10)
    return raw.write_archives(tmp_path / "in", raw.small_texts(4000), suffix)


def prepared(origin, folder, told, protocol="aitm"):
    request = Request(PROTOCOLS[protocol], 1, 1.0, 0)
    with atomic_folder(folder) as partial:
        return prepare_archives(
            find_source(origin, "hint"), partial, "ali-ccp", request, told, "hint"
        )


def test_all_is_told_to_the_end(tmp_path, monkeypatch):
    told = Told(slow=0)
    prepared(long_work(tmp_path, monkeypatch), tmp_path / "out", told)
    assert told.seen == {
        "preparing sample_train.tar": 1,
        "preparing sample_test.tar": 1,
        "writing splits": 1,
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_that_fails_stops_the_other(tmp_path, monkeypatch, split):
    origin, told = long_work(tmp_path, monkeypatch), Told()
    path = origin / f"sample_{split}.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MissingError, match=rf"sample_{split}.tar is truncated"):
        prepared(origin, tmp_path / "out", told)
    other = {"train": "test", "test": "train"}[split]
    assert told.seen.get(f"preparing sample_{other}.tar", 0) < 0.5
    assert list(tmp_path.iterdir()) == [origin]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_writer_that_fails_stops_the_other(tmp_path, monkeypatch, split):
    origin, told = long_work(tmp_path, monkeypatch), Told()
    whole = write.SplitWriter.write

    def failing(writer, joined, progress):
        if split in joined.rows.name:
            time.sleep(0.05)
            raise MissingError("This one fails.")
        return whole(writer, joined, progress)

    monkeypatch.setattr(write.SplitWriter, "write", failing)
    with pytest.raises(MissingError, match="This one fails"):
        prepared(origin, tmp_path / "out", told)
    assert told.seen.get("writing splits", 0) < 0.3
    assert list(tmp_path.iterdir()) == [origin]


@pytest.mark.parametrize("stage", ["preparing", "writing"])
def test_the_users_interrupt_stops_both(tmp_path, monkeypatch, stage):
    origin, told = long_work(tmp_path, monkeypatch), Told(interrupt=stage)
    with pytest.raises(KeyboardInterrupt):
        prepared(origin, tmp_path / "out", told)
    reached = [share for what, share in told.seen.items() if what.startswith(stage)]
    assert told.interrupt is None
    assert reached
    assert max(reached) < 0.5
    assert threading.active_count() == 1
    assert list(tmp_path.iterdir()) == [origin]


def test_progress_is_told_by_one_thread_at_a_time(tmp_path, monkeypatch):
    """The rows written so far only grow, and nobody tells while another does."""
    inside, places, together = [0], [], []

    def told(what, done, total):
        inside[0] += 1
        together.append(inside[0])
        time.sleep(0.0002)
        inside[0] -= 1
        if what == "writing splits":
            places.append(done)

    prepared(long_work(tmp_path, monkeypatch), tmp_path / "out", told)
    assert max(together) == 1
    assert places == sorted(places)
    assert places[-1] == 8000


FULL_DISK = Path("/dev/full")


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("file", ["line", "ids", "lengths", "bag"])
def test_a_disk_that_fills_while_staging(archives, tmp_path, monkeypatch, file):
    whole = Staged.__init__

    def staged(self, *given):
        whole(self, *given)
        self.files |= {file: FULL_DISK} if file != "bag" else {}
        self.bag_files = (
            [(FULL_DISK, weights) for _, weights in self.bag_files]
            if file == "bag"
            else self.bag_files
        )

    monkeypatch.setattr(Staged, "__init__", staged)
    with pytest.raises(MissingError, match="became full") as caught:
        run(archives, tmp_path / "out", "full")
    assert "--data-dir" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize(
    "name", ["train.ids", "test.side-ids", "validation.bag-values-210", "vocabulary.101"]
)
def test_a_disk_that_fills_while_writing(archives, tmp_path, monkeypatch, name):
    whole = module.check_disk

    def check(folder, needed):
        (folder / f"{name}.npy").symlink_to(FULL_DISK)
        whole(folder, needed)

    monkeypatch.setattr(module, "check_disk", check)
    with pytest.raises(MissingError, match="became full"):
        run(archives, tmp_path / "out", "full", 2)
    assert list(tmp_path.iterdir()) == []


def test_too_many_common_indexes(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "MOST_KEYS", 1000)
    texts = raw.small_texts()
    texts["common_features_train.csv"] = b"".join(
        raw.common(f"{k:016x}", ("101", k, 1)) for k in range(5000)
    )
    origin = raw.write_archives(tmp_path / "in", texts)
    with pytest.raises(MissingError, match="different common indexes: it is not Ali-CCP"):
        run(origin, tmp_path / "out")


@pytest.mark.parametrize(
    ("protocol", "sample", "known"),
    [("aitm", 1.0, True), ("full", 1.0, True), ("rechub", 1.0, False), ("aitm", 0.5, False)],
)
def test_a_ceiling_is_that_of_the_rows_of_the_test_split(
    archives, tmp_path, protocol, sample, known
):
    data = run(archives, tmp_path / "out", protocol, 2, sample)
    facts = json.loads((archives / "simulated.json").read_text())
    noted = {name: value for name, value in facts["planted_auc"].items() if value is not None}
    assert len(noted) == 3
    assert ceilings(data) == (noted if known else {})
    assert ceilings_of_all_rows(data) == ({} if known else noted)
    assert (
        len(data.splits["test"])
        == facts["counts"]["test"]["rows"] - facts["counts"]["test"]["dirty"]
    ) == known


def test_progress_may_end_it(archives, tmp_path):
    def stop(*told):
        raise KeyboardInterrupt

    request = Request(PROTOCOLS["aitm"], 12, 1.0, 0)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as partial:
        prepare_archives(find_source(archives, "hint"), partial, "ali-ccp", request, stop, "hint")
    assert list(tmp_path.iterdir()) == []


def test_fields(archives, tmp_path):
    data = run(archives, tmp_path / "out", "full", fields=("205", "109_14", "508"))
    assert [(f.name, f.kind) for f in data.schema.features] == [
        ("205", "id"),
        ("508", "id"),
        ("109_14", "bag"),
        ("D508", "dense"),
    ]
    whole = run(archives, tmp_path / "whole", "full")
    place = [f.name for f in whole.schema.of_kind("id")].index("205")
    np.testing.assert_array_equal(data.splits["test"].ids[:, 0], whole.splits["test"].ids[:, place])


def test_users_are_stored_once(archives, tmp_path):
    data = run(archives, tmp_path / "out", "full")
    shared = data.splits["train"].shared
    assert len(shared.ids) < len(data.splits["train"]) / 10
    assert shared.row.dtype == np.int32
    one, two = (tmp_path / "out" / f"{name}.side-ids.npy" for name in ("train", "validation"))
    assert one.stat().st_ino == two.stat().st_ino
    seen = [set(data.splits[name].shared.row.tolist()) for name in ("train", "validation")]
    assert not seen[0] & seen[1], "under full whole sessions are held out"


def test_vocabulary_leads_back_to_raw_ids(archives, tmp_path):
    data = run(archives, tmp_path / "out")
    raw_ids = np.load(tmp_path / "out" / "vocabulary.101.npy")
    train = joined(data.splits["train"])
    column = [f.name for f in data.schema.of_kind("id")].index("101")
    kept = train.ids[:, column] > 0
    np.testing.assert_array_equal(raw_ids[train.ids[kept, column]], train.groups["user"][kept])
    assert 0 < kept.mean() < 1


def test_manifest_tells_what_was_done(archives, tmp_path):
    run(archives, tmp_path / "out", "rechub")
    details = json.loads((tmp_path / "out" / "manifest.json").read_text())["details"]
    _, left = reference.joined(reference.texts_of(archives), "train", 1.0)
    assert details["texts"]["train-skeleton"]["dirty"] == len(left["dirty"]) > 0
    assert details["texts"]["train-skeleton"]["first dirty lines"] == left["dirty"][:8]
    assert details["simulation"][ALL_SIMULATED_ROWS]["planted_auc"]["click"] > 0.5
    assert details["simulation"]["counts"]["test"]["rows"] > 0
    assert [entry["file"] for entry in details["files"]] == [
        "sample_train.tar.gz",
        "sample_test.tar.gz",
    ]
    assert all(len(entry["sha256"]) == 64 for entry in details["files"])
    assert not (tmp_path / "out" / "staging").exists()


def broken(texts):
    """The small texts with five bad rows, two dirty ones and one without common features."""
    lines = texts["sample_skeleton_train.csv"].splitlines(keepends=True)
    lines[2] = b"3,2,0,00,0,\n"
    lines[4] = b"\xff\xfe\n"
    lines[6] = raw.skeleton(7, 1, 0, "01", ("205", 2**31, 1.0))
    lines[8] = raw.skeleton(9, 0, 1, "01", ("205", 7, 1.0))
    lines[10] = raw.skeleton(11, 1, 0, "77", ("205", 7, 1.0))
    lines[12] = raw.skeleton(13, 0, 1, "01")
    lines[14] = raw.skeleton(15, 0, 0, "01", ("205", 7, "nan"))
    lines[16] = b"\n"
    return texts | {"sample_skeleton_train.csv": b"".join(lines)}


def test_bad_rows_are_counted_left_out_and_named(tmp_path):
    texts = broken(raw.small_texts())
    origin = raw.write_archives(tmp_path / "in", texts)
    data = run(origin, tmp_path / "out", max_bad_rows=6)
    counts = data.details["texts"]["train-skeleton"]
    assert counts["malformed"] == 5
    assert [entry["line"] for entry in counts["first malformed lines"]] == [3, 5, 7, 15, 17]
    assert "over 2,147,483,647" in counts["first malformed lines"][2]["reason"]
    assert counts["first dirty lines"] == [9, 13]
    assert data.details["rows without common features"] == {
        "train": {"rows": 1, "first lines": [11]}
    }
    assert_equals_reference(data, texts, "aitm")
    assert sum(len(data.splits[name]) for name in ("train", "validation")) == 60 - 8


@pytest.mark.parametrize("allowed", [0, 4, 5])
def test_too_many_bad_rows_end_it(tmp_path, allowed):
    origin = raw.write_archives(tmp_path / "in", broken(raw.small_texts()))
    with pytest.raises(
        MissingError, match=rf"More than {allowed} rows.*line (3: click|11: its common)"
    ) as caught:
        run(origin, tmp_path / "out", max_bad_rows=allowed)
    assert "--max-bad-rows" in caught.value.hint
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


@pytest.mark.parametrize("kind", ["sample_skeleton", "common_features"])
def test_bad_rows_of_both_splits_count_together(tmp_path, kind):
    texts = raw.small_texts()
    for split in ("train", "test"):
        texts[f"{kind}_{split}.csv"] += b"?\n" * 3
    origin = raw.write_archives(tmp_path / "in", texts)
    assert run(origin, tmp_path / "out", max_bad_rows=6)
    with pytest.raises(
        MissingError,
        match=r"More than 5 rows.*: (sample_skeleton|common_features)_train.csv, line (61|6): ",
    ):
        run(origin, tmp_path / "two", max_bad_rows=5)


def test_interrupted_preparation_leaves_nothing(archives, tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fingerprint_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        run(archives, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(run(archives, tmp_path / "out").splits["train"])


def test_what_a_killed_process_left_is_removed(archives, tmp_path, monkeypatch):
    left = tmp_path / ".out.deadbeef"
    left.mkdir()
    run(archives, tmp_path / "out")
    assert left.exists(), "it may belong to a process that is at work"
    monkeypatch.setattr(storage, "STALE_SECONDS", -1)
    run(archives, tmp_path / "out")
    assert not left.exists()


def test_full_disk_is_said_before_the_work(archives, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(MissingError, match="GB free") as caught:
        run(archives, tmp_path / "out")
    assert "--sample" in caught.value.hint


def test_a_sample_of_nobody(archives, tmp_path):
    with pytest.raises(MissingError, match="No rows are left"):
        run(archives, tmp_path / "out", sample=1e-9)


def test_a_common_file_cut_short_is_noticed(tmp_path):
    texts = raw.small_texts()
    texts["common_features_test.csv"] = texts["common_features_test.csv"].splitlines(keepends=True)[
        0
    ]
    origin = raw.write_archives(tmp_path / "in", texts)
    with pytest.raises(
        MissingError,
        match=r"sample_skeleton_test.csv, line 1: its common index is not in the common file",
    ):
        run(origin, tmp_path / "out", max_bad_rows=40)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar"])
def test_archives_of_all_kinds(archives, tmp_path, suffix, format):
    inner = "a/" * (60 if format != tarfile.USTAR_FORMAT else 5)
    origin = raw.write_archives(
        tmp_path / "in", reference.texts_of(archives), suffix, inner, format
    )
    before = sorted(path.name for path in origin.iterdir())
    assert run(origin, tmp_path / "out").fingerprint == run(archives, tmp_path / "same").fingerprint
    assert sorted(path.name for path in origin.iterdir()) == before
