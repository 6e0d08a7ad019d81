"""The mirror against a server on this machine that does all that servers do."""

import json

import numpy as np
import pytest

from mtlkit.data import download as download_module
from mtlkit.data.ali_ccp import mirror
from mtlkit.data.ali_ccp.protocols import PROTOCOLS
from mtlkit.data.sources import prepare
from mtlkit.errors import MissingError
from tests.data.server import answer, cut, serve, serving

from . import reference

FIELDS = ["101", "121", "122", "124", "125", "126", "127", "128", "129"]
FIELDS += ["205", "206", "207", "216", "508", "509", "702", "853", "301"]


def content(rows, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 50 + 10 * seed, (rows, len(FIELDS)))
    click = rng.random(rows) < 0.3
    purchase = click & (rng.random(rows) < 0.3)
    purchase[7], click[7] = True, False  # a dirty row
    lines = [
        ",".join(map(str, [int(c), int(p), *row]))
        for c, p, row in zip(click, purchase, ids, strict=True)
    ]
    return "\n".join([",".join(["click", "purchase", *FIELDS]), *lines, ""]).encode()


@pytest.fixture
def servers(monkeypatch):
    monkeypatch.setattr(download_module, "BACKOFF", 0.001)
    with serving(content(3000, 0)) as train, serving(content(900, 1)) as test:
        monkeypatch.setattr(mirror, "URLS", {"train": train.url, "test": test.url})
        yield train, test


def expected(text, held_out):
    """Rows by split as plain lists: the label pair and the 18 ids."""
    parts = {"train": [], "validation": [], "test": []}
    for number, line in enumerate(text.decode().splitlines()[1:], 2):
        values = [int(value) for value in line.split(",")]
        if values[1] > values[0]:
            continue
        part = (
            ("validation" if reference.share(number, 0xA117) < 0.1 else "train")
            if held_out
            else "test"
        )
        parts[part].append(values)
    return parts


def test_whole_way(servers, tmp_path):
    source, data = prepare("ali-ccp", tmp_path, asked=True)
    train = expected(servers[0].content, True)
    most = np.max(train["train"] + train["validation"], axis=0)
    order = [2 + FIELDS.index(name) for name in PROTOCOLS["aitm"].ids]
    assert [(f.name, f.vocab) for f in data.schema.features] == [
        (name, most[place] + 1) for name, place in zip(PROTOCOLS["aitm"].ids, order, strict=True)
    ]
    for name, rows in (train | {"test": expected(servers[1].content, False)["test"]}).items():
        split = data.splits[name]
        rows = np.array(rows)
        np.testing.assert_array_equal(split.labels, rows[:, :2])
        ids = rows[:, order]
        np.testing.assert_array_equal(split.ids, np.where(ids > most[order], 0, ids))
        assert split.groups == {}
    assert (data.splits["test"].ids == 0).mean() > 0.1, "some ids of test are not in train"
    assert data.details["texts"]["ctr_cvr.train"]["dirty"] == 1
    assert data.details["texts"]["ctr_cvr.train"]["first dirty lines"] == [9]
    assert not data.simulated
    note = json.loads((tmp_path / "ali-ccp" / "raw" / "source.json").read_text())
    assert [entry["bytes"] for entry in note["downloads"]] == [
        len(server.content) for server in servers
    ]
    assert all(len(entry["sha256"]) == 64 for entry in note["downloads"])
    assert "mirror" in source.provenance(tmp_path)


def test_nothing_is_fetched_twice(servers, tmp_path):
    _, one = prepare("ali-ccp", tmp_path, asked=True)
    _, two = prepare("ali-ccp[fields=101:205]", tmp_path)
    assert [len(server.requests) for server in servers] == [1, 1]
    assert [feature.name for feature in two.schema.features] == ["205", "101"]
    place = [feature.name for feature in one.schema.features].index("205")
    np.testing.assert_array_equal(two.splits["test"].ids[:, 0], one.splits["test"].ids[:, place])


@pytest.mark.parametrize(
    "behaviours",
    [
        [cut(5000), cut(100), cut(1)],
        [cut(5000), lambda handler: serve(handler, ranges=False)],
        [cut(5000, ranges=False, etag=False)],
        [answer(500), answer(503)],
        [cut(3000), answer(416)],
    ],
)
def test_bad_connections_end_well(servers, tmp_path, behaviours):
    servers[0].behaviours = list(behaviours)
    _, data = prepare("ali-ccp", tmp_path, asked=True)
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 2999


@pytest.mark.parametrize(
    ("behaviours", "said"),
    [
        ([answer(404)], "404"),
        ([answer(403)], "403"),
        ([answer(500)] * 20, "500"),
        ([answer(200, b"<!DOCTYPE html><html>log in</html>")], "web page"),
        ([cut(10, ranges=False, etag=False)] * 20, "bytes came instead of|could not be downloaded"),
    ],
)
def test_bad_answers_end_in_one_sentence(servers, tmp_path, behaviours, said):
    servers[1].behaviours = list(behaviours)
    with pytest.raises(MissingError, match=said) as caught:
        prepare("ali-ccp", tmp_path, asked=True)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "ali-ccp" / "prepared").exists()
    servers[1].behaviours = []
    prepare("ali-ccp", tmp_path, asked=True)
    assert len(servers[0].requests) == 1, "what was whole is kept"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b"click,purchase,101\n1,0,5\n", "header lacks 205"),
        (
            content(50, 0).replace(b"\n", b",7\n").replace(b"301,7", b"301"),
            "malformed: ctr_cvr.train, lines 2, 3, 4",
        ),
        (
            content(50, 0) + b"1,0," + b",".join([b"99999999"] * 18) + b"\n",
            "holds the id 99,999,999",
        ),
    ],
)
def test_other_files_than_expected(servers, tmp_path, text, said):
    servers[0].content = text
    with pytest.raises(MissingError, match=said):
        prepare("ali-ccp[max_bad_rows=3]", tmp_path, asked=True)
    assert list((tmp_path / "ali-ccp" / "prepared").iterdir()) == []


@pytest.mark.parametrize("name", ["ctr_cvr.train", "ctr_cvr.test"])
def test_a_file_that_changed_after_its_download_is_not_prepared(servers, tmp_path, name):
    prepare("ali-ccp", tmp_path, asked=True)
    file = tmp_path / "ali-ccp" / "raw" / name
    file.write_bytes(b"".join(file.read_bytes().splitlines(True)[:500]))
    with pytest.raises(MissingError, match=f"{name} is not the file that was downloaded") as caught:
        prepare("ali-ccp[fields=101:205]", tmp_path)
    assert caught.value.hint == "mtlkit fetch ali-ccp --force"
    prepare("ali-ccp[fields=101:205]", tmp_path, force=True, asked=True)


def test_malformed_rows_are_left_out(servers, tmp_path):
    lines = servers[0].content.splitlines(keepends=True)
    lines[3] = b"1,0,x\n"
    lines[5] = b"\xff\n"
    lines[6] = b"2,0" + b",1" * 18 + b"\n"
    lines[8] = lines[8].replace(b"\n", b",\n")
    lines[9] = lines[9].replace(b"\n", b"\r\n")
    servers[0].content = b"".join(lines)[:-1]
    _, data = prepare("ali-ccp", tmp_path, asked=True)
    counted = data.details["texts"]["ctr_cvr.train"]
    assert counted["malformed"] == 4
    assert counted["first malformed lines"] == [4, 6, 7, 9]
    assert counted["lines"] == 3001


@pytest.mark.parametrize(
    "odd",
    [b"1,0, 3", b"1,0,0x1f", b"1,0,-0", b"1,0,3\r1,0,4", b"\xef\xbb\xbf1,0,3", b"1,0,2147483648"],
)
def test_what_is_no_line_of_plain_integers_is_malformed_whatever_stands_beside_it(odd):
    for other in (b"0,0,7\r", b"x"):
        block = np.frombuffer(b"\n".join([odd, other, b"1,1,12", b""]), np.uint8)
        beside = [0, 0, 7] if other != b"x" else [-1] * 3
        assert mirror._numbers(block, 3).tolist() == [[-1] * 3, beside, [1, 1, 12]]


def test_sample_keeps_whole_users(servers, tmp_path):
    _, whole = prepare("ali-ccp", tmp_path, asked=True)
    _, data = prepare("ali-ccp[sample=0.5]", tmp_path)
    place = [feature.name for feature in data.schema.features].index("101")
    kept = set(data.splits["test"].ids[:, place].tolist()) - {0}
    rows = np.isin(whole.splits["test"].ids[:, place], sorted(kept))
    users = data.splits["test"].ids[:, place]
    np.testing.assert_array_equal(users[users > 0], whole.splits["test"].ids[rows, place])
    assert 0.2 < len(users) / len(whole.splits["test"]) < 0.8


def test_other_protocols_need_the_archives(servers, tmp_path):
    for spec in ("ali-ccp[protocol=rechub]", "ali-ccp[protocol=full]"):
        with pytest.raises(MissingError, match="mirror") as caught:
            prepare(spec, tmp_path, asked=True)
        assert "--from DIR" in caught.value.hint
    assert servers[0].requests == []
    prepare("ali-ccp", tmp_path, asked=True)
    for spec in ("ali-ccp[protocol=full]", "ali-ccp[min_count=30]"):
        with pytest.raises(MissingError, match="mirror"):
            prepare(spec, tmp_path)


@pytest.mark.parametrize("names_one_file", [False, True])
@pytest.mark.parametrize("has_header", [True, False])
def test_the_files_of_the_mirror_can_be_brought(servers, tmp_path, names_one_file, has_header):
    """What ``fetch`` would download, and the same without the first line of the test file."""
    _, downloaded = prepare("ali-ccp", tmp_path / "home", asked=True)
    folder = tmp_path / "brought"
    folder.mkdir()
    (folder / "ctr_cvr.train").write_bytes(servers[0].content)
    test = servers[1].content
    (folder / "ctr_cvr.test").write_bytes(test if has_header else test.partition(b"\n")[2])
    origin = folder / "ctr_cvr.test" if names_one_file else folder
    source, brought = prepare("ali-ccp", tmp_path / "other", origin=origin)
    assert brought.fingerprint == downloaded.fingerprint
    assert (
        "ctr_cvr.test has no header line" in source.provenance(tmp_path / "other")
    ) != has_header
    assert str(origin) in source.provenance(tmp_path / "other")
    assert [len(server.requests) for server in servers] == [1, 1]

    # other protocols cannot be had from them; files that changed are told, and taken with --from
    with pytest.raises(MissingError, match="mirror"):
        prepare("ali-ccp[protocol=full]", tmp_path / "other", origin=origin)
    (folder / "ctr_cvr.train").write_bytes(content(2000, 0))
    with pytest.raises(MissingError, match="have changed since"):
        prepare("ali-ccp[fields=101:205]", tmp_path / "other")
    assert (
        prepare("ali-ccp", tmp_path / "other", origin=origin)[1].fingerprint != brought.fingerprint
    )


def test_a_file_of_other_columns_is_no_file_of_the_mirror(servers, tmp_path):
    for name in mirror.FILES.values():
        (tmp_path / name).write_bytes(b"1,0,5\n" * 10)
    with pytest.raises(MissingError, match="header lacks click"):
        prepare("ali-ccp", tmp_path / "home", origin=tmp_path)
