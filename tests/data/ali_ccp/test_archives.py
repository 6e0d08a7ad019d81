import gzip
import hashlib
import io
import json
import os
import tarfile

import pytest

from mtlkit.data.ali_ccp import archives as module
from mtlkit.data.ali_ccp.archives import Reading, find_source, read_texts
from mtlkit.errors import MissingError, UsageError

from . import raw


def read(origin):
    """(split, kind) to content of all texts, and what was noted."""
    reading, told = Reading(), []
    found = {}
    for split in ("train", "test"):
        for text in read_texts(
            find_source(origin, "hint"), split, reading, lambda *call: told.append(call), "hint"
        ):
            found[text.split, text.kind] = b"".join(bytes(block) for block in text.blocks)
    return found, reading, told


@pytest.fixture
def texts():
    return raw.small_texts()


def expected(texts):
    return {module.MEMBERS[name]: content for name, content in texts.items()}


def test_archives_are_read_where_they_lie(texts, tmp_path):
    origin = raw.write_archives(tmp_path / "in", texts)
    found, reading, told = read(origin)
    assert found == expected(texts)
    files = [origin / f"sample_{split}.tar.gz" for split in ("train", "test")]
    assert [entry["sha256"] for entry in reading.hashes] == [
        hashlib.sha256(f.read_bytes()).hexdigest() for f in files
    ]
    assert reading.text_bytes == sum(map(len, texts.values()))
    assert told[-1] == (
        "preparing sample_test.tar.gz",
        files[1].stat().st_size,
        files[1].stat().st_size,
    )


def test_one_of_the_files_names_the_folder(texts, tmp_path):
    origin = raw.write_archives(tmp_path / "in", texts)
    assert read(origin / "sample_test.tar.gz")[0] == expected(texts)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("deeper", [False, True])
def test_four_csv_files(texts, tmp_path, packed, deeper):
    for name, content in texts.items():
        folder = tmp_path / name.split("_")[-1][:-4] if deeper else tmp_path
        folder.mkdir(exist_ok=True)
        (folder / f"{name}{'.gz' * packed}").write_bytes(
            gzip.compress(content) if packed else content
        )
    assert read(tmp_path)[0] == expected(texts)


def test_csv_of_one_split_and_archive_of_the_other(texts, tmp_path):
    raw.write_archives(tmp_path, texts)
    (tmp_path / "sample_train.tar.gz").unlink()
    for name, content in texts.items():
        if "train" in name:
            (tmp_path / name).write_bytes(content)
    assert read(tmp_path)[0] == expected(texts)


def test_blocks_end_with_lines(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1000)
    texts["sample_skeleton_test.csv"] = texts["sample_skeleton_test.csv"][:-1]  # no last line feed
    origin = raw.write_archives(tmp_path / "in", texts)
    for text in read_texts(
        find_source(origin, "hint"), "test", Reading(), lambda *call: None, "hint"
    ):
        blocks = [bytes(block) for block in text.blocks]
        assert len(blocks) > 1 or text.kind == "common"
        assert all(block.endswith(b"\n") for block in blocks)
        name = next(name for name, of in module.MEMBERS.items() if of == (text.split, text.kind))
        assert b"".join(blocks).removesuffix(b"\n") == texts[name].removesuffix(b"\n")


def test_missing_files_are_named(texts, tmp_path):
    with pytest.raises(UsageError, match="no file or folder"):
        find_source(tmp_path / "nowhere", "hint")
    raw.write_archives(tmp_path, texts)
    (tmp_path / "sample_test.tar.gz").unlink()
    with pytest.raises(
        MissingError, match=r"neither sample_test\.tar\.gz nor sample_skeleton_test\.csv"
    ):
        find_source(tmp_path, "hint")


def test_member_missing_or_twice(texts, tmp_path):
    short = {name: content for name, content in texts.items() if name != "common_features_test.csv"}
    with pytest.raises(MissingError, match=r"common_features_test\.csv is in none"):
        read(raw.write_archives(tmp_path / "short", short))
    members = [(tarfile.TarInfo(name), texts[name]) for name in ("sample_skeleton_train.csv",) * 2]
    raw.write_archives(tmp_path / "twice", texts)
    (tmp_path / "twice" / "sample_train.tar.gz").write_bytes(gzip.compress(raw.tar_bytes(members)))
    with pytest.raises(MissingError, match="twice"):
        read(tmp_path / "twice")


def test_md5_beside_the_archive(texts, tmp_path):
    origin = raw.write_archives(tmp_path, texts)
    digest = hashlib.md5((origin / "sample_train.tar.gz").read_bytes()).hexdigest()
    beside = origin / "sample_train.tar.gz.md5"
    beside.write_text(f"{digest.upper()}  sample_train.tar.gz\n")
    assert read(origin)[0] == expected(texts)
    beside.write_text(f"{'0' * 32}  sample_train.tar.gz\n")
    with pytest.raises(MissingError, match="its md5 is not that of"):
        read(origin)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("suffix", ["tar.gz", "tar"])
def test_truncated_archives(texts, tmp_path, kept, suffix):
    origin = raw.write_archives(tmp_path, raw.small_texts(3000), suffix)
    path = origin / f"sample_test.{suffix}"
    content = path.read_bytes()
    keep = int(len(content) * kept) if suffix == "tar.gz" else int(100_000 * kept)
    path.write_bytes(content[:keep])
    with pytest.raises(MissingError, match=r"truncated or damaged|in none of the files"):
        read(origin)


def test_flipped_bytes(tmp_path):
    origin = raw.write_archives(tmp_path, raw.small_texts(3000))
    path = origin / "sample_test.tar.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(MissingError, match="truncated or damaged"):
        read(origin)


def test_not_a_tar_at_all(texts, tmp_path):
    origin = raw.write_archives(tmp_path, texts)
    (origin / "sample_test.tar.gz").write_bytes(b"<html>please log in</html>" * 100)
    with pytest.raises(MissingError, match="truncated or damaged"):
        read(origin)


def test_hostile_members_are_skipped_and_nothing_is_written(texts, tmp_path):
    members = []
    for name, kind in (
        ("../../escaped.csv", tarfile.REGTYPE),
        ("/etc/absolute.csv", tarfile.REGTYPE),
        ("sample_skeleton_train.csv", tarfile.SYMTYPE),
        ("common_features_train.csv", tarfile.LNKTYPE),
        ("sample_skeleton_train.csv", tarfile.DIRTYPE),
        ("sample_skeleton_train.csv", tarfile.CHRTYPE),
        ("sample_skeleton_train.csv", tarfile.FIFOTYPE),
    ):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "../../../../etc/passwd"
        members.append((info, b"x" * 700 if kind == tarfile.REGTYPE else b""))
    members += [
        (tarfile.TarInfo(f"../../{name}"), content)
        for name, content in texts.items()
        if "train" in name
    ]
    origin = raw.write_archives(tmp_path / "in", texts)
    (origin / "sample_train.tar.gz").write_bytes(gzip.compress(raw.tar_bytes(members)))
    before = sorted(tmp_path.rglob("*"))
    assert read(origin)[0] == expected(texts)
    assert sorted(tmp_path.rglob("*")) == before


def test_header_that_claims_gigabytes_is_refused(texts, tmp_path):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 40 << 30
    origin = raw.write_archives(tmp_path, texts)
    (origin / "sample_train.tar.gz").write_bytes(
        gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    )
    with pytest.raises(MissingError, match="header of"):
        read(origin)


@pytest.mark.parametrize("size", [b"-5", "²".encode(), b"9" * 30])
def test_strange_sizes_in_extended_headers(texts, tmp_path, size):
    record = b"16 size=" + size + b"\n"
    out = io.BytesIO()
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    out.write(info.tobuf(tarfile.GNU_FORMAT) + record + bytes(-len(record) % 512))
    out.write(
        raw.tar_bytes(
            [(tarfile.TarInfo(name), content) for name, content in texts.items() if "train" in name]
        )
    )
    origin = raw.write_archives(tmp_path, texts)
    (origin / "sample_train.tar.gz").write_bytes(gzip.compress(out.getvalue()))
    with pytest.raises(MissingError, match="truncated or damaged"):
        read(origin)


def test_gzip_bomb_ends_at_the_first_block(texts, tmp_path):
    content = raw.tar_bytes([(tarfile.TarInfo("sample_skeleton_train.csv"), bytes(64 << 20))])
    origin = raw.write_archives(tmp_path, texts)
    (origin / "sample_train.tar.gz").write_bytes(gzip.compress(content, 1))
    with pytest.raises(MissingError, match="a line of more than 4 MiB"):
        read(origin)


def test_text_beyond_all_bounds(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TEXT", 2000)
    with pytest.raises(MissingError, match="unpacks to more than"):
        read(raw.write_archives(tmp_path, texts))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(texts, tmp_path):
    origin = raw.write_archives(tmp_path, texts)
    (origin / "sample_test.tar.gz").chmod(0)
    with pytest.raises(MissingError, match="cannot be read"):
        read(origin)


DEEP = b"[" * 200_000
DEEP_OBJECT = b'{"planted_auc":' * 100_000


@pytest.mark.parametrize(
    "content", [DEEP, DEEP_OBJECT, b"[1]", b"7", b"null", b"{broken", b"\xff\xfe", b"1" * 5000]
)
def test_a_mark_that_is_none(content, texts, tmp_path):
    origin = raw.write_archives(tmp_path / "in", texts)
    members = [
        ("simulated.json", content),
        *((name, text) for name, text in texts.items() if "train" in name),
    ]
    packed = raw.tar_bytes([(tarfile.TarInfo(name), member) for name, member in members])
    (origin / "sample_train.tar.gz").write_bytes(gzip.compress(packed, 1))
    found, reading, _ = read(origin)
    assert found == expected(texts)
    assert reading.simulated is None


def test_a_mark_says_numbers_and_objects_of_them():
    content = b"""{"rows": 5, "planted_auc": {"click": 0.6, "purchase": NaN, "other": [1], "more": {"deep": {"er": 1}}},
        "seed": Infinity, "name": "x", "huge": 1e400, "long": 1%s, "counts": null, "purchase_rate": 0.5}""" % (
        b"0" * 400
    )
    noted = {"rows": 5, "planted_auc": {"click": 0.6, "more": {}}, "purchase_rate": 0.5}
    assert module._mark(content) == noted


def test_the_simulators_own_mark_is_kept_whole(archives):
    facts = (archives / "simulated.json").read_bytes()
    assert module._mark(facts) == json.loads(facts)
