"""A leaderboard: what is sent, what a check finds out, and the site that a report makes of it."""

import json
import re
import shutil
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from mtlkit.errors import MissingError, UsageError
from mtlkit.report.build import open_results, write_report
from mtlkit.report.submissions import FILE_LIMIT, MANIFEST, Board, pack
from mtlkit.store import RECORD, ResultStore
from mtlkit.studies import Study, write_study
from tests import fakes
from tests.conftest import files, run_cli
from tests.report.conftest import WRITTEN

ROWS = 120
TASKS = ("income", "marital")
SCORES = "scores.npz"
KERNELS = {"mtlkit": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "device": "A CPU"}
KERNELS |= {"device_type": "cpu", "threads": 1, "git_commit": "0123456789abcdef"}


def save(store, model="mmoe", balancer="uniform", seed=0, shift=0.0, keep=SCORES, **environment):
    """Store a run whose metrics follow from its scores, as scikit-learn has them."""
    cell = fakes.cell(model, balancer, seed)
    record = fakes.record(cell)
    arrays = {}
    for number, task in enumerate(TASKS):
        labels = (fakes.noise(task, "label").random(ROWS) < 0.3).astype(np.float32)
        noise = fakes.noise(task, model, balancer, seed).normal(size=ROWS)
        logits = (labels + shift * number + noise).astype(np.float32)
        arrays |= {f"score/{task}": logits, f"label/{task}": labels}
        probabilities = 1 / (1 + np.exp(-logits.astype(float)))
        record.metrics["test"][task] = {
            "space": "all rows",
            "derived": False,
            "rows": ROWS,
            "positives": int(labels.sum()),
            "auc": roc_auc_score(labels, logits),
            "logloss": log_loss(labels, probabilities),
            "calibration": probabilities.sum() / labels.sum(),
            "auc@user=cold": 0.5,
        }
    record = record.model_copy(update={"environment": KERNELS | environment})
    kept = {"probes": fakes.probes(cell)} | ({"scores": arrays} if keep == SCORES else {})
    return store.save(record, kept | {"weights": {"w": np.ones(3)}}, log="a line\n")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two rows of three seeds, and a failure."""
    store = ResultStore(tmp_path_factory.mktemp("mine") / "results")
    for seed in range(3):
        save(store, "single-task", "none", seed)
        save(store, seed=seed)
    store.save(fakes.failure(fakes.cell("mmoe", "pcgrad")))
    return store


@pytest.fixture(scope="module")
def packed(results, tmp_path_factory):
    board = tmp_path_factory.mktemp("packed") / "board"
    told = run_cli("submit", results.root, "--to", board / "ada", "--by", "Ada Lovelace")
    assert told.code == 0, told.err
    assert told.err == (
        f"7 runs of {results.root} are in {board / 'ada'}.\n\nhint: mtlkit submit --check {board}\n"
    )
    return board


@pytest.fixture
def board(packed, tmp_path):
    """A copy of it, to do damage to."""
    shutil.copytree(packed, tmp_path / "board")
    return tmp_path / "board"


def run_of(board, seed=0, sender="ada", method="mmoe/uniform"):
    (folder,) = board.glob(f"{sender}/census/{method}/seed-{seed}-*")
    return folder


def check(board):
    return run_cli("submit", "--check", board)


# --- what is sent


def test_what_is_sent_of_a_run(results, packed):
    sent = files(packed)
    assert {path.name for path in sent} == {RECORD, SCORES, "probes.npz", MANIFEST}
    folder = run_of(packed)
    original = next(run for _, run in results.scan() if run.name == folder.name)
    for name in (RECORD, SCORES, "probes.npz"):
        assert (folder / name).read_bytes() == (original / name).read_bytes()
    manifest = json.loads((packed / "ada" / MANIFEST).read_text())
    assert (manifest["layout"], manifest["by"]) == (1, "Ada Lovelace")
    assert len(manifest["files"]) == len(sent) - 1
    assert [path.name for path in packed.iterdir()] == ["ada"]


def test_what_was_sent_holds(packed):
    told = check(packed)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert (told.code, told.err) == (0, "")
    assert re.sub(r"\d{4}-\d\d-\d\d", today, told.out) == (
        f"{packed / 'ada'}: 7 runs hold, sent {today} by Ada Lovelace\n"
    )


def test_nothing_is_sent_twice_or_by_nobody(results, packed, tmp_path):
    before = files(packed)
    told = run_cli("submit", results.root, "--to", packed / "ada", "--by", "Bob")
    assert told.code == 2
    assert "is there already" in told.err
    for flags in (["--to", tmp_path / "board" / "bob"], ["--by", "Bob"]):
        told = run_cli("submit", results.root, *flags)
        assert told.code == 2
        assert "\n\nhint: mtlkit submit" in told.err
    for name in ("", "B" * 201):
        with pytest.raises(UsageError, match="by"):
            pack([next(results.scan())], tmp_path / "board" / "bob", name)
    assert files(packed) == before
    assert not list((tmp_path / "board").iterdir())


def test_what_would_not_hold_stays(tmp_path):
    store = ResultStore(tmp_path / "results")
    good, without = save(store), save(store, seed=1, keep="")
    other = save(store, seed=2, torch=None)
    broken = save(store, seed=3)
    (broken / RECORD).write_text("{")
    told = run_cli("submit", store.root, "--to", tmp_path / "board" / "ada", "--by", "Ada")
    assert told.code == 0
    assert f"left out: {without}: it has no scores" in told.err
    assert f"left out: {other}: its record has no torch" in told.err
    assert f"left out: {broken / RECORD}: " in told.err
    assert [path.name for path in (tmp_path / "board").glob("ada/*/*/*/*")] == [good.name]

    shutil.rmtree(good)
    told = run_cli("submit", store.root, "--to", tmp_path / "board" / "bob", "--by", "Bob")
    assert told.code == 3
    assert "it has no scores" in told.err
    assert told.err.endswith("\n\nhint: mtlkit bench\n")
    assert not (tmp_path / "board" / "bob").exists()


def test_trials_stay(results, tmp_path):
    shutil.copytree(results.root, tmp_path / "results")
    record = next(record for record, _ in results.scan() if record.cell.model == "mmoe")
    plain = {"id": "a" * 64, "model": "mmoe", "balancer": "uniform", "training": "b", "seed": 0}
    plain |= {"sampler": "random", "seeds": [0], "select": "mean", "space": {}, "budget": 1}
    trial = {"settings": {}, "keys": [record.key], "group": "c"}
    write_study(tmp_path / "results", Study.model_validate(plain | {"trials": [trial]}))
    told = run_cli("submit", tmp_path / "results", "--to", tmp_path / "board/ada", "--by", "Ada")
    assert told.err.startswith("6 runs")


def test_large_files_are_not_sent(results, tmp_path):
    shutil.copytree(results.root, tmp_path / "results")
    store = ResultStore(tmp_path / "results")
    run = next(store.scan())
    with (run[1] / "probes.npz").open("wb") as file:
        file.truncate(FILE_LIMIT + 1)
    with pytest.raises(UsageError, match="larger than 95 MiB"):
        pack([run], tmp_path / "board" / "ada", "Ada")
    assert not list((tmp_path / "board").iterdir())


# --- what a check finds: each kind of damage has its sentence


def change_record(change):
    def damage(board):
        file = run_of(board) / RECORD
        plain = json.loads(file.read_text())
        change(plain)
        file.write_text(json.dumps(plain))

    return damage


def better(plain):
    plain["metrics"]["test"]["income"]["auc"] += 0.001


def put(name, content):
    return lambda board: (board / name).write_bytes(content)


def manifest(**changed):
    def damage(board):
        file = board / "ada" / MANIFEST
        plain = json.loads(file.read_text()) | changed
        file.write_text(json.dumps({key: value for key, value in plain.items() if value != 0}))

    return damage


def linked_file(board):
    file = run_of(board) / SCORES
    file.rename(board.parent / "elsewhere.npz")
    file.symlink_to(board.parent / "elsewhere.npz")


def linked_folder(board):
    folder = board / "ada" / "census"
    folder.rename(board.parent / "census")
    folder.symlink_to(board.parent / "census")


def linked_submission(board):
    (board / "ada").rename(board.parent / "ada")
    (board / "ada").symlink_to(board.parent / "ada")


def linked_manifest(board):
    (board / "ada" / MANIFEST).rename(board.parent / MANIFEST)
    (board / "ada" / MANIFEST).symlink_to(board.parent / MANIFEST)


def circle(board):
    file = run_of(board) / SCORES
    file.unlink()
    file.symlink_to(SCORES)


def circle_manifest(board):
    (board / "ada" / MANIFEST).unlink()
    (board / "ada" / MANIFEST).symlink_to(MANIFEST)


def renamed(board):
    run_of(board).rename(run_of(board).with_name("seed-0-00000000"))


def copied(board):
    shutil.copytree(run_of(board), board / "ada" / "a" / "b" / "c" / run_of(board).name)


def huge(board):
    with (run_of(board) / SCORES).open("r+b") as file:
        file.truncate(FILE_LIMIT + 1)


DAMAGE = {
    "record": (change_record(better), "record.json: it is not what was sent", 6),
    "key": (change_record(lambda plain: plain.update(key="0" * 64)), "its key is not", 6),
    "version": (change_record(lambda plain: plain.update(record_version=9)), "version 9", 6),
    "torn": (lambda board: (run_of(board) / RECORD).write_text("{"), "JSON", 6),
    "scores": (lambda board: (run_of(board) / SCORES).write_bytes(b"PK"), "not what was sent", 6),
    "no-scores": (lambda board: (run_of(board) / SCORES).unlink(), "scores.npz: it is missing", 6),
    "no-record": (lambda board: (run_of(board) / RECORD).unlink(), "json: it is missing", 6),
    "no-run": (lambda board: shutil.rmtree(run_of(board)), "json: it is missing", 6),
    "huge": (huge, "scores.npz: it is larger than 95 MiB", 6),
    "renamed": (renamed, "the folder of this run is seed-0-", 6),
    "copied": (copied, "is a copy of", 7),
    "linked-file": (linked_file, "scores.npz: it is a link", 6),
    "linked-folder": (linked_folder, "record.json: it is a link, or in a folder that is one", 0),
    "linked-submission": (linked_submission, "submission.json: it is a link", None),
    "linked-manifest": (linked_manifest, "submission.json: it is a link", None),
    "circle": (circle, "scores.npz: Too many levels of symbolic links", 6),
    "circle-manifest": (circle_manifest, "submission.json: Too many levels of symbolic", None),
    "no-manifest": (lambda board: (board / "ada" / MANIFEST).unlink(), "There is no submi", None),
    "empty-manifest": (put(f"ada/{MANIFEST}", b""), "JSON", None),
    "latin-manifest": (put(f"ada/{MANIFEST}", b'{"by": "\xe9"}'), "JSON", None),
    "deep-manifest": (put(f"ada/{MANIFEST}", b"[" * 10**6), "JSON", None),
    "layout": (manifest(layout=2), "'layout' cannot be 2", None),
    "nobody": (manifest(by=0), "'by' is missing", None),
    "no-time-zone": (manifest(sent="2030-01-02T03:04:05"), "'sent' cannot be", None),
    "no-digests": (manifest(files={}), "record.json: it is not what was sent", 0),
    "paths": (manifest(files={"../../../etc/passwd": "0"}), "not what was sent", 0),
    "absent": (manifest(files={f"/etc/\0/{RECORD}": "0"}), "it is missing", 0),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told(kind, board):
    damage, sentence, count = DAMAGE[kind]
    damage(board)
    told = check(board)
    assert told.code in (1, 3)
    text = told.out + told.err
    assert sentence in text
    assert "Traceback" not in text
    assert "\n\nhint: mtlkit submit" in told.err
    if count is not None:
        assert re.search(rf"ada: {count} runs? hold", told.out)
        assert told.err.startswith(f"error: Problems in {board}: ")


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_does_not_hold_is_on_no_site(kind, board):
    damage, _, count = DAMAGE[kind]
    damage(board)
    if not count:
        with pytest.raises(MissingError):
            open_results(board)
        return
    frames = open_results(board)
    assert len(frames.runs) == count
    assert frames.unreadable


def sealed(board, change):
    """A submission by somebody who knows how to make digests: change a run before it is packed."""
    store = ResultStore(board.parent / "theirs")
    folder = save(store, "ple", seed=5)
    change(folder)
    pack(list(store.scan()), board / "eve", "Eve")


def change_arrays(change):
    def damage(folder):
        arrays = dict(np.load(folder / SCORES))
        change(arrays)
        np.savez(folder / SCORES, **arrays)

    return damage


def change_sealed(change):
    def damage(folder):
        plain = json.loads((folder / RECORD).read_text())
        change(plain)
        (folder / RECORD).write_text(json.dumps(plain))

    return damage


def turned(arrays):
    arrays["label/income"] = 1 - arrays["label/income"]
    arrays["score/income"] *= -1


LIES = {
    "auc": (change_sealed(better), r"auc of income is \S+ in the record, and \S+ from its scores"),
    "scores": (change_arrays(lambda a: a.update({"score/income": a["label/income"]})), "auc of in"),
    "no-scores": (lambda folder: (folder / SCORES).unlink(), "it has no scores"),
    "no-column": (change_arrays(lambda a: a.pop("score/marital")), "of marital cannot be computed"),
    "lengths": (change_arrays(lambda a: a.update({"score/income": a["score/income"][1:]})), "same"),
    "texts": (change_arrays(lambda a: a.update({"label/income": np.array(["a"])})), "no column"),
    "shape": (
        change_arrays(lambda a: a.update({"score/income": np.zeros((ROWS, 2), np.float32)})),
        "income cannot be computed",
    ),
    "kind": (
        change_sealed(lambda plain: plain["tasks"][0].update(kind="ordinal")),
        "income cannot be computed",
    ),
    "no-task": (change_sealed(lambda plain: plain["tasks"].pop(0)), r"computed .*\(KeyError"),
    "primary": (
        change_sealed(lambda plain: plain["tasks"][0].update(metric="auc@user=cold")),
        "auc@user=cold is not what income is compared by",
    ),
    "no-versions": (
        change_sealed(lambda plain: plain["environment"].pop("torch")),
        "its record has no torch",
    ),
    "group": (
        change_sealed(lambda plain: plain["metrics"]["test"]["income"].update({"gauc@user": 0.9})),
        "income cannot be computed",
    ),
    "cut": (
        change_sealed(lambda p: p["metrics"]["test"]["income"].update({f"recall@{'9' * 400}": 1})),
        "of income is 1 in the record, and None",
    ),
    "unknown": (
        change_sealed(lambda plain: plain["metrics"]["test"]["income"].update(cleverness=0.9)),
        "cleverness of income is 0.9 in the record, and None",
    ),
}


@pytest.mark.parametrize("kind", LIES)
def test_numbers_must_follow_from_scores(kind, board):
    lie, pattern = LIES[kind]
    sealed(board, lie)
    told = check(board)
    assert told.code == 1
    assert re.search(rf"does not hold: \S+eve\S+: .*{pattern}", told.out), told.out
    assert "eve: 0 runs hold" in told.out
    assert "ada: 7 runs hold" in told.out


def test_labels_are_those_of_others_on_the_same_data(board):
    def lie(folder):  # a flip of both leaves every AUC as it is
        change_arrays(turned)(folder)
        change_sealed(flipped)(folder)

    def flipped(plain):
        test = plain["metrics"]["test"]["income"]
        test["positives"] = ROWS - test["positives"]
        del test["calibration"]

    sealed(board, lie)
    told = check(board)
    assert told.code == 1
    assert re.search(r"eve\S+: label/income is not what \S+ada\S+ has on the same data", told.out)


def test_rows_that_count_are_those_of_others_on_the_same_data(board):
    def lie(folder):  # only rows that the scores put in the right order
        arrays = dict(np.load(folder / SCORES))
        labels = arrays["label/income"] > 0
        kept = arrays["observed/income"] = labels == (arrays["score/income"] > 0.5)
        np.savez(folder / SCORES, **arrays)
        test = {"rows": int(kept.sum()), "positives": int(labels[kept].sum()), "auc": 1.0}
        change_sealed(lambda plain: plain["metrics"]["test"].update(income=test))(folder)

    sealed(board, lie)
    told = check(board)
    assert told.code == 1
    assert re.search(r"eve\S+: observed/income is not what \S+ada\S+ has on the same", told.out)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "none"):
        told = check(tmp_path / name)
        assert told.code == 3
        assert f"There is no submission in {tmp_path / name}." in told.err
        assert "\n\nhint: mtlkit submit results --to " in told.err


# --- the same cell, sent twice


def again(board, sender="bob", shift=0.0, seed=0, **environment):
    """Another submission of one of the runs."""
    store = ResultStore(board.parent / sender)
    save(store, seed=seed, shift=shift, **environment)
    pack(list(store.scan()), board / sender, sender.title())
    return run_of(board, seed, sender)


def test_a_repeat_confirms(board):
    folder = again(board)
    told = check(board)
    assert told.code == 0, told.out
    assert f"{folder} repeats {run_of(board)} (same digits: " in told.out
    frames = open_results(board)
    assert len(frames.runs) == 7
    assert not frames.unreadable
    assert all("contradicts" not in text for texts in frames.runs["warnings"] for text in texts)


def test_other_numbers_on_the_same_kernels_contradict(board):
    folder = again(board, shift=0.5)
    told = check(board)
    assert told.code == 1
    assert f"{folder} repeats {run_of(board)} (differs: versions and kernels are the same" in (
        told.out
    )
    told = run_cli("report", board, "--json")
    assert told.code == 0
    assert "another submission contradicts it" in told.err
    assert str(folder) in told.err
    rows = [row for row in json.loads(told.out) if row["model"] == "mmoe"]
    assert {row["seeds"] for row in rows if row["balancer"] == "uniform"} == {3}


def test_elsewhere_numbers_may_differ_as_seeds_do(board):
    folder = again(board, shift=1e-3, torch="2.14.0")
    told = check(board)
    assert told.code == 0, told.out
    assert f"{folder} repeats {run_of(board)} (within bound: " in told.out


def test_without_seeds_nobody_can_tell(tmp_path):
    for sender, shift, version in (("ada", 0.0, "2.13.0"), ("bob", 0.5, "2.14.0")):
        again(tmp_path / "board", sender, shift, torch=version)
    told = check(tmp_path / "board")
    assert told.code == 0, told.out
    assert "(differs: no bound is known with fewer than 3 seeds)" in told.out


def test_the_first_counts_unless_it_failed(board, tmp_path):
    store = ResultStore(tmp_path / "late")
    save(store, "mmoe", "pcgrad")
    pack(list(store.scan()), board / "aaron", "Aaron")
    frames = open_results(board)
    assert (frames.runs["status"] == "ok").all()
    again(board, "aa")
    counted = open_results(board).runs["folder"]
    assert run_of(board) in list(counted)
    assert check(board).code == 0


# --- the site


def test_the_site_says_where_rows_come_from(board):
    again(board, "bob", seed=3, torch="2.14.0", git_commit=None)
    again(board, "cy")
    written = write_report(board, board.parent / "site", WRITTEN)
    page = written.page.read_text(encoding="utf-8")
    assert "where the rows come from" in page
    assert "Ada Lovelace" in page
    assert "same digits" in page
    assert f"--out {board}" not in page
    (file,) = (board.parent / "site").glob("tables/*-origin.csv")
    origin = pd.read_csv(file, keep_default_na=False)
    mmoe = origin[(origin["model"] == "mmoe") & (origin["balancer"] == "uniform")]
    assert list(mmoe["submission"]) == ["ada", "bob"]
    assert list(mmoe["seeds"]) == ["0-2", "3"]
    assert list(mmoe["code"]) == [
        f"mtlkit 0.1.0, PyTorch {version}" for version in ("2.13.0", "2.14.0")
    ]
    assert list(mmoe["commit"]) == ["0123456789ab", "none"]
    assert set(mmoe["hardware"]) == {"A CPU, threads: 1"}
    assert json.loads(mmoe["settings"].iloc[0])["training"] == {"epochs": 6.0, "lr": 0.002}


def test_other_folders_have_no_such_table(results, tmp_path):
    written = write_report(results.root, tmp_path / "report", WRITTEN)
    assert "where the rows come from" not in written.page.read_text(encoding="utf-8")


def test_a_site_beside_the_submissions_is_none(board):
    write_report(board, written=WRITTEN)
    assert (board / "report" / "index.html").exists()
    assert check(board).code == 0
    assert write_report(board, written=WRITTEN).unreadable == ()


def test_runs_without_a_submission_are_named(board, results):
    shutil.copytree(results.root, board / "zoe")
    told = check(board)
    assert told.code == 1
    assert f"{board / 'zoe' / MANIFEST}: it is missing, though there are runs" in told.out
    assert [str(left_out) for left_out in Board(board).unreadable] == [
        f"{board / 'zoe' / MANIFEST}: it is missing, though there are runs"
    ]


HOSTILE = "<script>alert(1)</script>"


def test_hostile_names_are_text(board):
    again(board, "bob", seed=7, device=HOSTILE, threads={"a": [HOSTILE]}, git_commit=["\n\x1b[2J"])
    manifest(by=f"=1+1\n\x1b[31m{HOSTILE}")(board)
    told = check(board)
    assert told.code == 0, told.out
    assert "\x1b" not in told.out
    written = write_report(board, board.parent / "site", WRITTEN)
    assert HOSTILE not in written.page.read_text(encoding="utf-8")
    (file,) = (board.parent / "site").glob("tables/*-origin.csv")
    assert not re.search(r"(^|,)\"?=1", file.read_text())
