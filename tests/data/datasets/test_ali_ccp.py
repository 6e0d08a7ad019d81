import json

import pytest
import torch
from typer.testing import CliRunner

from mtlkit.cli.app import app
from mtlkit.cli.fetch import _typed
from mtlkit.data import download as download_module
from mtlkit.data.ali_ccp.simulate import Simulation, write_archives
from mtlkit.data.data_home import last_fetched
from mtlkit.data.planted import ceilings
from mtlkit.data.sources import open_source, prepare
from mtlkit.errors import MissingError, MtlkitError, UsageError
from mtlkit.training.batches import DeviceSplit
from tests.data.ali_ccp import raw
from tests.data.server import answer, cut, serving

SMALL = "ali-ccp[simulate=3000,purchase_rate=0.1]"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data home that holds a small simulated set."""
    folder = tmp_path_factory.mktemp("home")
    prepare(SMALL, folder)
    return folder


def run(*arguments, home):
    """The exit code and the output, errors included."""
    result = CliRunner().invoke(app, [*arguments, "--data-dir", str(home)], env={"COLUMNS": "160"})
    if isinstance(result.exception, MtlkitError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_bench_before_fetch_names_what_to_do(tmp_path):
    code, output = run("bench", "-d", "ali-ccp", home=tmp_path)
    assert code == 3
    for text in (
        "mtlkit fetch ali-ccp",
        "GB",
        "simulated",
        "mtlkit bench -d 'ali-ccp[simulate=1000000]'",
    ):
        assert text in output
    assert not (tmp_path / "ali-ccp").exists()


def test_simulate_flag_and_card(tmp_path):
    flags = "--simulate 3000 --protocol rechub --fields 101,109_14,205 --sample 0.9".split()
    code, output = run("fetch", "ali-ccp[purchase_rate=0.1]", *flags, home=tmp_path)
    assert code == 0, output
    for text in ("SIMULATED", "planted model", "not stated", "dirty rows (lines"):
        assert text in output
    chosen = "protocol=rechub,fields=101:109_14:205,sample=0.9,simulate=3000"
    spec = f"ali-ccp[purchase_rate=0.1,{chosen}]"
    assert last_fetched(tmp_path) == spec
    _, data = prepare(spec, tmp_path)
    assert [feature.name for feature in data.schema.features] == ["205", "101", "109_14", "D109_14"]
    assert data.simulated


def test_simulated_archives_can_be_read_again_with_from(home, tmp_path):
    (archives,) = (home / "ali-ccp" / "simulated").iterdir()
    _, first = prepare(SMALL, home)
    _, again = prepare("ali-ccp", tmp_path, origin=archives, asked=True)
    assert again.fingerprint == first.fingerprint
    assert again.simulated, "simulated data is labelled so wherever it is read from"
    assert not list(tmp_path.rglob("*.tar.gz")), "archives are read where they lie"


def test_planted_ceiling_is_with_the_data(home):
    _, data = prepare(SMALL, home)
    assert 0.5 < data.details["simulation"]["planted_auc"]["click"] < 0.75
    assert ceilings(data)["click"] == data.details["simulation"]["planted_auc"]["click"]


def test_other_raw_files_are_other_data(tmp_path):
    origins = []
    for seed in (1, 2):
        origins.append(tmp_path / f"raw-{seed}")
        write_archives(origins[-1], Simulation(2000, purchase_rate=0.2, seed=seed))
    home = tmp_path / "home"
    prints = [
        prepare("ali-ccp", home, origin=origin, asked=True)[1].fingerprint
        for origin in (*origins, origins[0])
    ]
    assert prints[0] == prints[2] != prints[1]
    assert prepare("ali-ccp", home)[1].fingerprint == prints[0]


def test_raw_files_that_have_gone(tmp_path):
    origin = raw.write_archives(tmp_path / "raw", raw.small_texts())
    prepare("ali-ccp[min_count=1]", tmp_path / "home", origin=origin, asked=True)
    (origin / "sample_test.tar.gz").unlink()
    prepare("ali-ccp[min_count=1]", tmp_path / "home")
    with pytest.raises(MissingError, match="neither sample_test") as caught:
        prepare("ali-ccp[min_count=2]", tmp_path / "home")
    assert "--from DIR" in caught.value.hint


def test_force_reads_the_users_files_again(tmp_path):
    origin, home = raw.write_archives(tmp_path / "raw", raw.small_texts()), tmp_path / "home"
    prepare("ali-ccp[min_count=1]", home, origin=origin, asked=True)
    raw.write_archives(origin, raw.small_texts(80))
    _, data = prepare("ali-ccp[min_count=1]", home, force=True, asked=True)
    assert len(data.splits["test"]) == 80


def test_bad_rows_are_on_the_card_and_may_end_it(tmp_path):
    texts = raw.small_texts()
    texts["sample_skeleton_train.csv"] += b"nonsense\n" * 3
    origin = raw.write_archives(tmp_path / "raw", texts)
    code, output = run(
        "fetch", "ali-ccp", "--from", str(origin), "--max-bad-rows", "2", home=tmp_path / "home"
    )
    assert code == 3
    assert "line 61: too few columns" in output
    code, output = run(
        "fetch", "ali-ccp", "--from", str(origin), "--max-bad-rows", "3", home=tmp_path / "home"
    )
    assert code == 0
    assert "3 malformed rows (lines 61, 62, 63...)" in output


@pytest.mark.parametrize(
    "text",
    [
        "ali-ccp",
        "ali-ccp[protocol=full,min_count=3]",
        "ali-ccp[sample=0.1,simulate=5000,seed=3]",
        "ali-ccp[fields=101:205]",
        "ali-ccp[protocol=full,fields=109_14:205]",
    ],
)
def test_shortest_text_gives_the_same_options(text):
    assert _typed(open_source(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "ali-ccp[fields=210]",
        "ali-ccp[protocol=esmm]",
        "ali-ccp[sample=0]",
        "ali-ccp[sample=1.5]",
        "ali-ccp[min_count=0]",
        "ali-ccp[simulate=-1]",
        "ali-ccp[rows=5]",
    ],
)
def test_bad_options(text):
    with pytest.raises(UsageError):
        open_source(text)


def test_patience_with_bad_rows_is_no_other_data(tmp_path):
    one, two = (
        open_source("ali-ccp[max_bad_rows=5,simulate=2000]"),
        open_source("ali-ccp[simulate=2000]"),
    )
    assert one.folder(tmp_path) == two.folder(tmp_path)


@pytest.fixture
def links(monkeypatch, tmp_path):
    """Two servers that hold the archives, and their signed addresses."""
    monkeypatch.setattr(download_module, "BACKOFF", 0.001)
    origin = raw.write_archives(tmp_path / "raw", raw.small_texts())
    contents = [(origin / f"sample_{split}.tar.gz").read_bytes() for split in ("train", "test")]
    with serving(contents[0]) as train, serving(contents[1]) as test:
        yield (
            (train, test),
            {"train": f"{train.url}?signature=s3cret", "test": f"{test.url}?signature=s3cret"},
        )


def test_signed_links(links, tmp_path):
    servers, addresses = links
    servers[0].behaviours = [cut(200), cut(100)]
    source, data = prepare("ali-ccp[min_count=1]", tmp_path / "home", links=addresses, asked=True)
    assert len(data.splits["test"]) == 60
    for file in (tmp_path / "home").rglob("*"):
        if file.is_file():
            assert b"s3cret" not in file.read_bytes(), file
    assert source.provenance(tmp_path / "home").startswith("signed links")


def test_expired_link_and_a_fresh_one_that_continues(links, tmp_path, monkeypatch):
    (_, server), addresses = links
    monkeypatch.setattr(download_module, "ATTEMPTS", 1)
    server.behaviours = [cut(300)]
    with pytest.raises(MissingError):
        prepare("ali-ccp", tmp_path / "home", links=addresses, asked=True)
    server.behaviours = [answer(403)]
    with pytest.raises(MissingError, match="--url-test has expired") as caught:
        prepare("ali-ccp", tmp_path / "home", links=addresses, asked=True)
    assert "s3cret" not in str(caught.value)
    assert "https://tianchi.aliyun.com/dataset/408" in caught.value.hint
    fresh = {split: address.replace("s3cret", "fresh") for split, address in addresses.items()}
    prepare("ali-ccp[min_count=1]", tmp_path / "home", links=fresh, asked=True)
    assert int(server.requests[-1]["Range"][6:-1]) > 0


def damage_but_for_the_date(archive):
    """Put another archive in a file's place, with its size and date in the note."""
    source = archive.parent / "source.json"
    texts = raw.small_texts()
    texts["sample_skeleton_test.csv"] = texts["sample_skeleton_test.csv"][:-1]
    other = raw.write_archives(archive.parent / "other", texts)
    (other / archive.name).replace(archive)
    stat = archive.stat()
    note = json.loads(source.read_text())
    for entry in note["files"]:
        if entry["file"] == archive.name:
            entry |= {"bytes": stat.st_size, "changed": stat.st_mtime_ns}
    source.write_text(json.dumps(note))


def test_an_archive_of_signed_links_is_compared_with_its_hash(links, tmp_path):
    _, addresses = links
    home = tmp_path / "home"
    prepare("ali-ccp[min_count=1]", home, links=addresses, asked=True)
    note = json.loads((home / "ali-ccp" / "raw" / "source.json").read_text())
    hashes = {entry["file"]: entry["sha256"] for entry in note["downloads"]}
    assert set(hashes) == {"sample_train.tar.gz", "sample_test.tar.gz"}

    # An archive that is kept keeps its hash.
    prepare("ali-ccp[min_count=1]", home, links=addresses, asked=True)
    prepare("ali-ccp[min_count=1]", home, force=True, asked=True)
    note = json.loads((home / "ali-ccp" / "raw" / "source.json").read_text())
    assert {entry["file"]: entry["sha256"] for entry in note["downloads"]} == hashes

    damage_but_for_the_date(home / "ali-ccp" / "raw" / "sample_test.tar.gz")
    with pytest.raises(MissingError, match=r"sample_test.* is not the file that was downloaded"):
        prepare("ali-ccp[min_count=1]", home)


def test_official_files_that_changed_are_fetched_anew_first(tmp_path):
    origin = raw.write_archives(tmp_path / "raw", raw.small_texts())
    home = tmp_path / "home"
    prepare("ali-ccp[min_count=1]", home, origin=origin, asked=True)
    raw.write_archives(origin, raw.small_texts(80))
    with pytest.raises(MissingError, match="have changed since they were fetched") as caught:
        prepare("ali-ccp[min_count=2]", home)
    assert caught.value.hint == f"mtlkit fetch ali-ccp --from {origin}"
    prepare("ali-ccp[min_count=1]", home, origin=origin, asked=True)


def test_simulated_archives_that_were_replaced(tmp_path):
    small = "ali-ccp[simulate=2000,purchase_rate=0.2]"
    prepare(small, tmp_path)
    (archives,) = (tmp_path / "ali-ccp" / "simulated").iterdir()
    write_archives(tmp_path / "other", Simulation(1000, purchase_rate=0.2))
    (tmp_path / "other" / "sample_test.tar.gz").replace(archives / "sample_test.tar.gz")
    with pytest.raises(
        MissingError, match="simulated test archive has 500 rows, not 1,000"
    ) as caught:
        prepare("ali-ccp[simulate=2000,purchase_rate=0.2,min_count=3]", tmp_path)
    assert "simulate=2000" in caught.value.hint
    assert caught.value.hint.endswith("--force")


def test_too_few_rows_to_learn_a_task_from(tmp_path):
    with pytest.raises(MissingError, match="labels of one class only of the task 'purchase'"):
        prepare("ali-ccp[simulate=3000,purchase_rate=1e-9]", tmp_path)


def test_links_come_in_pairs_and_only_here(tmp_path):
    for spec, links in (
        ("ali-ccp", {"train": "http://x"}),
        ("census", {"train": "http://x", "test": "http://x"}),
    ):
        with pytest.raises(UsageError, match="links"):
            prepare(spec, tmp_path, links=links, asked=True)


def test_batches_hold_the_columns_of_both_sides(home):
    data = prepare("ali-ccp[simulate=3000,protocol=full,purchase_rate=0.1]", home)[1]
    split = DeviceSplit.load(data.splits["test"], torch.device("cpu"))
    batch = split.take(torch.tensor([5, 0]))
    assert batch.ids.shape == (2, len(data.schema.of_kind("id")))
    assert batch.dense.shape == (2, len(data.schema.of_kind("dense")))
    assert set(batch.bags) == {feature.name for feature in data.schema.of_kind("bag")}


@pytest.mark.slow
def test_a_model_trains_on_it(home, tmp_path):
    results = tmp_path / "results"
    arguments = (
        "--models shared-bottom --balancers uniform --references none --seeds 1 --epochs 0.2"
    )
    data = "ali-ccp[simulate=3000,protocol=full,purchase_rate=0.1]"
    more = ["-d", data, "-o", str(results), "-j", "1"]
    code, output = run("bench", *arguments.split(), *more, home=home)
    assert code == 0, output
    (record,) = results.rglob("record.json")
    assert json.loads(record.read_text())["status"] == "ok"
    assert "(simulated)" in output
