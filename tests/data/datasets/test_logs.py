"""Public logs: archives in the raw format, and every prepared value against slow pandas."""

import gzip
import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from mtlkit.data.datasets import _log_table
from mtlkit.data.datasets._kuairand import SIGNALS, USER_LEVELS, USER_NUMBERS, VIDEO_LEVELS
from mtlkit.data.download import DownloadError
from mtlkit.data.sources import open_source, prepare
from mtlkit.errors import MissingError, UsageError
from mtlkit.registry import DATASETS
from tests.data.datasets import logs
from tests.data.datasets.tables import by_time, check_values
from tests.data.server import serving

NAMES = [
    name for name in DATASETS.names() if issubclass(DATASETS.load(name), _log_table.LogTableSource)
]
ADDRESSES = ("criteo-attribution", "kuairand-1k", "kuairand-pure", "kuairec")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def plain(frame):
    """The rows as dicts of plain values, None where missing."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{key: _plain(value) for key, value in row.items()} for row in rows]


def _plain(value):
    value = value.item() if isinstance(value, np.generic) else value
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def check(data, frame, splits, kinds, lints=(), **options):
    """Compare with a frame of inputs and labels; no other lint may be found."""
    columns = [*kinds, *data.schema.task_names]
    check_values(data, plain(frame[columns]), list(splits), kinds, **options)
    assert [lint["name"] for lint in data.details["lints"]] == list(lints)
    assert sum(map(len, data.splits.values())) == len(frame)


def kinds_of(ids=(), dense=(), bags=()):
    return dict.fromkeys(ids, "id") | dict.fromkeys(dense, "dense") | dict.fromkeys(bags, "bag")


def with_beijing_clock(frame, column, unit):
    local = pd.to_datetime(frame[column], unit=unit, utc=True).dt.tz_convert(logs.BEIJING)
    return frame.assign(hour=local.dt.hour, weekday=local.dt.day_of_week)


# --- KuaiRand


@pytest.mark.parametrize("name", ["kuairand-pure", "kuairand-1k"])
@pytest.mark.parametrize("test", ["standard", "random"])
def test_kuairand(name, test, rng, tmp_path, home):
    version = name.partition("-")[2]
    files = logs.kuairand(rng, version)
    archive = logs.write_tar(tmp_path / "raw.tar.gz", "KuaiRand", files)
    data = prepare(f"{name}[test={test}]", home, origin=archive)[1]

    read = {name.removesuffix(f"_{version}.csv").partition("/")[2]: f for name, f in files.items()}
    frame = pd.concat([read["log_standard_4_08_to_4_21"], read["log_standard_4_22_to_5_08"]])
    if test == "random":
        random = read["log_random_4_22_to_5_08"]
        frame = pd.concat([frame[frame.date < 20220429], random[random.date >= 20220429]])
    splits = [
        "train" if d < 20220422 else "validation" if d < 20220429 else "test" for d in frame.date
    ]
    frame = with_beijing_clock(frame, "time_ms", "ms")
    frame = frame.merge(read["user_features"], "left", "user_id")
    frame = frame.merge(read["video_features_basic"], "left", "video_id")
    frame["tag"] = [None if t != t or t is None else t.split(",") for t in frame["tag"]]
    frame["view_time"] = np.log1p(frame["play_time_ms"] / 1000)
    kinds = kinds_of(
        ids=("user_id", "video_id", "tab", "hour", "weekday", *USER_LEVELS, *VIDEO_LEVELS),
        dense=("duration_ms", *USER_NUMBERS),
        bags=("tag",),
    )
    check(data, frame, splits, kinds, logs=("duration_ms", *USER_NUMBERS))
    assert data.schema.task_names == (*SIGNALS, "view_time")
    times = [split.groups["time"] for split in data.splits.values()]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()
    assert "user" in data.splits["test"].groups


# --- KuaiRec


@pytest.mark.parametrize("test", ["latest", "small"])
def test_kuairec(test, rng, tmp_path, home):
    files = logs.kuairec(rng)
    archive = logs.write_zip(tmp_path / "KuaiRec.zip", "KuaiRec 2.0", files)
    data = prepare(f"kuairec[test={test}]", home, origin=archive)[1]

    read = {name.partition("/")[2].removesuffix(".csv"): f for name, f in files.items()}
    frame = read["big_matrix"]
    if test == "small":
        frame = pd.concat([frame, read["small_matrix"]])
    frame = with_beijing_clock(frame, "timestamp", "s")
    frame = frame.merge(read["user_features"], "left", "user_id")
    frame = frame.merge(read["item_categories"], "left", "video_id")
    daily = read["item_daily_features"].drop_duplicates("video_id")[["video_id", *VIDEO_LEVELS]]
    frame = frame.merge(daily, "left", "video_id")
    frame["feat"] = [tags.strip("[]").split(", ") for tags in frame["feat"]]
    ratio = frame["watch_ratio"]
    frame["finished"], frame["replayed"] = (ratio >= 1).astype(int), (ratio > 2).astype(int)
    frame["watched"] = np.log1p(ratio)
    if test == "latest":
        splits = by_time(list(frame["timestamp"]))
    else:
        # a tenth of the big matrix is validation, at random
        splits = small_splits(len(read["big_matrix"]), len(read["small_matrix"]))
    kinds = kinds_of(
        ids=("user_id", "video_id", "hour", "weekday", *USER_LEVELS, *VIDEO_LEVELS),
        dense=("video_duration", *USER_NUMBERS),
        bags=("feat",),
    )
    check(data, frame, splits, kinds, logs=("video_duration", *USER_NUMBERS))


def small_splits(big, small):
    from mtlkit.data.table.split import random_numbers

    numbers = random_numbers(np.arange(big, dtype=np.uint64), 0)
    is_held_out = numbers < np.uint64(int(0.1 * 2**64))
    return [*np.where(is_held_out, "validation", "train"), *["test"] * small]


# --- Criteo


@pytest.mark.parametrize("kind", ["zip", "folder", "packed"])
def test_criteo(kind, rng, tmp_path, home):
    frame = logs.criteo(rng)
    text = frame.to_csv(index=False, sep="\t").encode()
    name = "criteo_attribution_dataset.tsv"
    if kind == "zip":
        files = {f"{name}.gz": gzip.compress(text)}
        origin = logs.write_zip(tmp_path / "raw.zip", "criteo_attribution_dataset", files)
    elif kind == "folder":
        origin = logs.write_folder(tmp_path / "raw", {f"deep/{name}": text})
    else:
        origin = tmp_path / f"{name}.gz"
        origin.write_bytes(gzip.compress(text))
    data = prepare("criteo-attribution", home, origin=origin)[1]

    frame["hour"] = frame["timestamp"] // 3600 % 24
    frame["weekday"] = (frame["timestamp"] // 86_400 + 3) % 7
    frame["time_since_last_click"] = frame["time_since_last_click"].clip(lower=0)
    kinds = kinds_of(
        ids=("uid", "campaign", "hour", "weekday", *(f"cat{n}" for n in range(1, 10))),
        dense=("time_since_last_click",),
    )
    splits = by_time(list(frame["timestamp"]))
    logs_of = ("time_since_last_click",)
    check(data, frame, splits, kinds, logs=logs_of, min_counts={"uid": 2})
    assert data.schema.funnel is None


# --- AliExpress


def aliexpress_files(rng, countries=("NL", "ES")):
    return {
        f"AliExpress_{country}/{part}.csv": logs.aliexpress(rng, rows)
        for country in countries
        for part, rows in (("train", 500), ("test", 200))
    }


@pytest.mark.parametrize("options", ["", "[countries=NL]"])
def test_aliexpress(options, rng, tmp_path, home):
    files = aliexpress_files(rng)
    origin = logs.write_folder(tmp_path / "raw", files)
    data = prepare(f"aliexpress{options}", home, origin=origin)[1]

    parts = []
    for country in ("NL",) if options else ("ES", "NL"):
        for part in ("train", "test"):
            rows = files[f"AliExpress_{country}/{part}.csv"]
            parts.append(rows.assign(country=country, part=part))
    frame = pd.concat(parts, ignore_index=True)
    held_out = np.array(small_splits(len(frame), 0)) == "validation"
    splits = np.where((frame["part"] == "train") & held_out, "validation", frame["part"])
    kinds = kinds_of(
        ids=tuple(f"categorical_{n}" for n in range(1, 17)),
        dense=tuple(f"numerical_{n}" for n in range(1, 64)),
    )
    # one country alone is no input
    domains = [] if options else ["country"]
    kinds |= kinds_of(ids=domains)
    check(data, frame, splits, kinds)
    assert data.schema.funnel == ("click", "conversion")
    assert [f.name for f in data.schema.features if f.role == "domain"] == domains


def test_a_country_is_whole(rng, tmp_path, home):
    files = aliexpress_files(rng, ("NL",))
    origin = logs.write_folder(tmp_path / "raw", files)
    with pytest.raises(UsageError, match="'ES', 'FR', 'NL'"):
        prepare("aliexpress[countries=XX]", home, origin=origin)
    with pytest.raises(MissingError, match=r"holds no US/train.csv and no US/test.csv"):
        prepare("aliexpress[countries=US]", home, origin=origin)
    (origin / "AliExpress_NL" / "test.csv").unlink()
    with pytest.raises(MissingError, match=r"holds no NL/test.csv"):
        prepare("aliexpress", home, origin=origin)


# --- Tenrec


@pytest.mark.parametrize(
    ("table", "file"), [("qk-video", "QK-video.csv"), ("ctr", "ctr_data_1M.csv")]
)
def test_tenrec(table, file, rng, tmp_path, home):
    frame = logs.tenrec(rng, history=table == "ctr")
    origin = logs.write_folder(tmp_path, {file: frame}) / file
    data = prepare(f"tenrec[table={table}]", home, origin=origin)[1]

    frame["video_category"] = frame["video_category"].replace("\\N", None).astype(float)
    bags = ()
    if table == "ctr":
        columns = [f"hist_{n}" for n in range(1, 11)]
        frame["history"] = [[v for v in row if v > 0] for row in frame[columns].to_numpy().tolist()]
        bags = ("history",)
    kinds = kinds_of(ids=("user_id", "item_id", "video_category", "gender", "age"), bags=bags)
    rows = {name: len(split) for name, split in data.splits.items()}
    # the protocol of the paper, and the card says so
    lints = ["user in two splits"]
    check(data, frame, ratio_splits(len(frame), rows), kinds, lints)


def ratio_splits(count, rows):
    """At random by the number of the row; how many rows go where is checked by the caller."""
    from mtlkit.data.table.split import random_numbers

    order = np.argsort(np.argsort(random_numbers(np.arange(count, dtype=np.uint64), 0)))
    assert (rows["validation"], rows["test"]) == (round(0.1 * count), round(0.1 * count))
    edges = [rows["train"], rows["train"] + rows["validation"]]
    return [("train", "validation", "test")[n] for n in np.searchsorted(edges, order, "right")]


# --- Taobao


def test_taobao(rng, tmp_path, home):
    files = logs.taobao(rng)
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, contents in files.items():
        logs.write_tar(folder / f"{name}.tar.gz", ".", {name: contents})
    (folder / "holiday.zip").write_bytes(b"an archive of another name is not opened")
    data = prepare("taobao-ad", home, origin=folder)[1]

    frame = with_beijing_clock(files["raw_sample.csv"], "time_stamp", "s")
    frame = frame.merge(files["ad_feature.csv"].replace("NULL", None), "left", "adgroup_id")
    frame["brand"] = frame["brand"].astype(float)
    profile = files["user_profile.csv"].rename(columns=str.strip).astype(float)
    frame = frame.merge(profile, "left", left_on="user", right_on="userid")
    local = pd.to_datetime(frame["time_stamp"], unit="s", utc=True).dt.tz_convert(logs.BEIJING)
    for act in ("cart", "fav", "buy"):
        frame[act] = [
            happens_later(files["behavior_log.csv"], act, row, when)
            for row, when in zip(frame.to_dict("records"), local, strict=True)
        ]
    splits = ["test" if d == 13 else "validation" if d == 12 else "train" for d in local.dt.day]
    ids = ("user", "adgroup_id", "pid", "hour", "cate_id", "campaign_id", "customer", "brand")
    kinds = kinds_of(ids=(*ids, *(profile.columns.drop("userid"))), dense=("price",))
    check(data, frame, splits, kinds, logs=("price",))
    assert 0 < frame["buy"].mean() < 0.5


def happens_later(behaviour, act, row, when):
    midnight = (when.normalize() + pd.Timedelta(days=1)).timestamp()
    is_it = (behaviour.user == row["user"]) & (behaviour.cate == row["cate_id"])
    is_it &= (behaviour.btag == act) & (behaviour.time_stamp > row["time_stamp"])
    return int((is_it & (behaviour.time_stamp < midnight)).any())


# --- all of them


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_whose_it_is_and_what_is_not_known(name):
    source = open_source(name)
    assert all((source.title, source.licence, source.citation, source.unverified))
    assert source.url.startswith("https://")
    assert (source.address is not None) == (name in ADDRESSES)
    assert (source.address or "https://").startswith("https://")
    summary = DATASETS.summary(name)
    assert "(--from, " in summary or "(zenodo.org" in summary or "(criteo" in summary


def test_there_are_seven():
    assert len(NAMES) == 7


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(ADDRESSES)))
def test_what_takes_a_login_says_how(name, home):
    with pytest.raises(MissingError, match="takes a login or a form") as error:
        prepare(name, home, asked=True)
    assert error.value.hint.endswith(f"then: mtlkit fetch {name} --from FILE")
    with pytest.raises(MissingError, match="is not in the data folder"):
        prepare(name, home)


def test_the_archive_is_downloaded_and_compared(rng, tmp_path, home, monkeypatch):
    archive = logs.write_tar(tmp_path / "raw.tar.gz", "KuaiRand-Pure", logs.kuairand(rng))
    contents = archive.read_bytes()
    source_class = DATASETS.load("kuairand-pure")
    with serving(contents) as server:
        monkeypatch.setattr(source_class, "address", server.url.replace("file.bin", "a.tar.gz"))
        monkeypatch.setattr(source_class, "md5", "0" * 32)
        with pytest.raises(DownloadError, match="its md5 is ") as error:
            prepare("kuairand-pure", home, asked=True)
        assert "or download it from https://zenodo.org" in error.value.hint
        monkeypatch.setattr(source_class, "md5", hashlib.md5(contents).hexdigest())
        data = prepare("kuairand-pure", home, asked=True)[1]
        requests = len(server.requests)
        assert prepare("kuairand-pure", home)[1].fingerprint == data.fingerprint
        assert len(server.requests) == requests
    # the data home may be moved
    moved = home.rename(home.with_name("moved"))
    assert prepare("kuairand-pure[test=random]", moved)[1].fingerprint != data.fingerprint
    home = moved
    note = json.loads((home / "kuairand-pure" / "raw" / "source.json").read_text())
    assert note["files"][0]["sha256"] == hashlib.sha256(contents).hexdigest()


def test_other_files_are_taken_and_damage_is_told(rng, tmp_path, home):
    origin = logs.write_tar(tmp_path / "one.tar.gz", "x", logs.kuairand(rng))
    first = prepare("kuairand-pure", home, origin=origin)[1]
    other = logs.write_folder(tmp_path / "other", logs.kuairand(rng))
    one_file = next(other.rglob("user_features_pure.csv"))
    second = prepare("kuairand-pure", home, origin=one_file)[1]
    assert first.fingerprint != second.fingerprint
    assert prepare("kuairand-pure", home)[1].fingerprint == second.fingerprint

    # a file that is gone, cut off, or of another format
    with pytest.raises(MissingError, match="holds no log_standard_4_08_to_4_21_1k"):
        prepare("kuairand-1k", home, origin=other)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(origin.read_bytes()[:5000])
    with pytest.raises(MissingError, match="truncated or damaged"):
        prepare("kuairand-pure", home, origin=cut)
    prepare("kuairand-pure[test=random]", home)
    open_source("kuairand-pure").forget(home)
    one_file.write_text("user_id,age\n1,2\n")
    with pytest.raises(MissingError, match="have changed since they were fetched"):
        prepare("kuairand-pure", home)
    with pytest.raises(MissingError, match="has no column 'user_active_degree'"):
        prepare("kuairand-pure", home, origin=other)
    other.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match="are gone from"):
        prepare("kuairand-pure", home)
    assert not list(home.rglob(".*"))


def test_what_an_archive_calls_its_files_is_no_path(rng, tmp_path, home):
    files = {f"../../{name}": contents for name, contents in logs.kuairand(rng).items()}
    origin = logs.write_tar(tmp_path / "raw.tar.gz", "/tmp", files)
    prepare("kuairand-pure", home, origin=origin)
    assert {path.name for path in tmp_path.iterdir()} == {"raw.tar.gz", "home"}
