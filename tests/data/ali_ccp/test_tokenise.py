"""The tokeniser against the reference, line by line, on whatever hypothesis thinks of."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtlkit.data.ali_ccp import staging
from mtlkit.data.ali_ccp import tokenise as t
from mtlkit.data.ali_ccp.archives import Text
from mtlkit.data.ali_ccp.fields import NUMBER
from mtlkit.data.ali_ccp.hashing import mix, share
from mtlkit.data.ali_ccp.parse import AHEAD
from mtlkit.data.ali_ccp.protocols import PROTOCOLS, field_plan
from mtlkit.data.ali_ccp.staging import Keys, Stager

from . import raw, reference


@pytest.fixture(scope="module")
def stager(tmp_path_factory):
    return Stager(tmp_path_factory.mktemp("staging"), 1.0, 10**9, "hint")


def stage(stager, text: bytes, kind="skeleton", protocol="full"):
    keys = Keys()
    block = np.frombuffer(text if text.endswith(b"\n") else text + b"\n", np.uint8)
    plan = field_plan(PROTOCOLS[protocol], "row" if kind == "skeleton" else "user")
    return stager.stage(Text("train", kind, iter([block])), keys, plan), keys


def good_lines(text: bytes, kind: str) -> list[int]:
    """Line numbers that the reference takes."""
    good = []
    for number, line in enumerate(reference.lines_of(text), 1):
        try:
            labels, _, _ = reference.parse(line, kind == "skeleton")
        except reference.Bad:
            continue
        if labels != (0, 1):
            good.append(number)
    return good


def assert_same_lines(stager, text: bytes, kind: str):
    staged, _ = stage(stager, text, kind)
    lines = np.fromfile(staged.files["line"], np.int32)
    assert lines.tolist() == good_lines(text, kind)
    tally = staged.tally
    assert (
        tally[t.LINES]
        == len(reference.lines_of(text))
        == tally[t.ROWS] + tally[t.BAD] + tally[t.DIRTY]
    )


GOOD = raw.skeleton(1, 1, 0, "0f", ("205", 7, 1.0), ("210", 5, 0.5), ("999", "a", "b"))
USER = raw.common("0f", ("101", 7, 1.0), ("109_14", 5, 0.5))
CASES = [
    b"1,0,0,0f,0,\n",
    b"1,0,0,0f,0,\r\n",
    b"1,0,0,0f,0\n",
    b"1,0,0,,0,\n",
    b",0,0,f,0,\n",
    b"1,0,0,0f,,\n",
    b"1,0,0,0f,x,\n",
    b"1,0,0,0f,12345678901,\n",
    b"1,0,0,0g,0,\n",
    b"1,0,0,00000000000000001,0,\n",
    b"1,2,0,0f,0,\n",
    b"1,01,0,0f,0,\n",
    b"1,-1,0,0f,0,\n",
    b"1,0,1,0f,0,\n",
    b"1, 0,0,0f,0,\n",
    b"\n",
    b"\r\n",
    b",\n",
    b",,,,,\n",
    b"1,0,0,0f,9,205\x027\x031.0\n",
    b"1,0,0,0f,1,205\x027\x031.0\x01\n",
    b"1,0,0,0f,1,\x01205\x027\x031.0\n",
    b"1,0,0,0f,1,205\x02\x031.0\n",
    b"1,0,0,0f,1,205\x027\x03\n",
    b"1,0,0,0f,1,205\x027\n",
    b"1,0,0,0f,1,205\n",
    b"1,0,0,0f,1,\x02\x03\n",
    b"1,0,0,0f,1,205\x022147483647\x031.0\n",
    b"1,0,0,0f,1,205\x022147483648\x031.0\n",
    b"1,0,0,0f,1,205\x0299999999999999999999\x031.0\n",
    b"1,0,0,0f,1,205\x02-7\x031.0\n",
    b"1,0,0,0f,1,205\x027\x03inf\n",
    b"1,0,0,0f,1,205\x027\x031e39\n",
    b"1,0,0,0f,1,205\x027\x031e999\n",
    b"1,0,0,0f,1,205\x027\x031e-999\n",
    b"1,0,0,0f,1,205\x027\x031e9999\n",
    b"1,0,0,0f,1,205\x027\x031e\n",
    b"1,0,0,0f,1,205\x027\x031.0.0\n",
    b"1,0,0,0f,1,205\x027\x03.\n",
    b"1,0,0,0f,1,205\x027\x03-\n",
    b"1,0,0,0f,1,205_14\x027\x031\n",
    b"1,0,0,0f,1,109_14\x027\x031\n",
    b"1,0,0,0f,1,109_14\x02\xff\x031\n",
    b"1,0,0,0f,1,109_15\x02\xff\x031\n",
    b"1,0,0,0f,1,0205\x02x\x03y\n",
    b"1,0,0,0f,1,\xc3\x28\x02\xff\x03\xfe\r\n",
    b"1,0,0,0f,1,205\x027\x031.0\r\n",
    b"1,0,0,0f,1,205\x027\x031.0\r\r\n",
    b"1,0,0,0f,1,999\x02a\x03b\x03c\n",
    b"1,0,0,0f,1,999\x02a\x02b\x03c\n",
    b"1,0,0,0f,1,999\x02aaaaaaa,b\x03c\n" * 3,  # a comma where that of a longer index would be
    b"1,0,0," + bytes(16) + b",1,205\x027\x031.0\n",
]


@pytest.mark.parametrize("case", CASES)
def test_lines_of_all_shapes(stager, case):
    assert_same_lines(stager, GOOD + case + GOOD, "skeleton")
    assert_same_lines(stager, USER + case.split(b",", 3)[-1] + USER, "common")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from(list(b"0123456789af,._-e\r\n\x00\x01\x02\x03\xff")), max_size=40),
    st.data(),
)
def test_any_bytes_at_all(stager, noise, data):
    """Noise put into good lines, anywhere: nothing crashes, and both agree on every line."""
    for kind, line in (("skeleton", GOOD), ("common", USER)):
        at = data.draw(st.integers(0, len(line)))
        drop = data.draw(st.integers(0, 5))
        text = line + line[:at] + bytes(noise) + line[at + drop :] + b"\n" + line
        assert_same_lines(stager, text, kind)


@given(
    st.floats(-(2.0**127), 2.0**127, width=32),
    st.sampled_from(["{!r}", "{:.5f}", "{:.17g}", "{:e}", "{:.0f}"]),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_values_as_python_reads_them(stager, value, how):
    text = how.format(value)
    staged, _ = stage(stager, raw.skeleton(1, 0, 0, "1", ("508", 3, text)))
    if float(text) > 3.4028234663852886e38:
        return
    (chunk,) = staged.chunks(10)
    np.testing.assert_allclose(chunk.values[0, 0], np.float32(float(text)), rtol=1e-7)


def test_rows_of_2706_features(stager):
    items = [("109_14", k, k / 7) for k in range(2706)]
    staged, _ = stage(stager, raw.common("ab", *items), "common")
    (chunk,) = staged.chunks(10)
    ids, weights = chunk.bags[field_plan(PROTOCOLS["full"], "user").bags.index(NUMBER["109_14"])]
    assert ids.tolist() == list(range(2706))
    assert staged.ranges[NUMBER["109_14"]].tolist() == [0, 2705]
    np.testing.assert_array_equal(
        weights, np.array([float(str(k / 7)) for k in range(2706)], np.float32)
    )


def test_tables_and_output_grow_as_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "ROOM_ROWS", 7)
    stager = Stager(tmp_path, 1.0, 0, "hint")
    lines = [
        raw.skeleton(n, 0, 0, f"{n // 3:x}", ("205", n * 977, 1.0), ("210", n % 91, 1))
        for n in range(20_000)
    ]
    staged, keys = stage(stager, b"".join(lines))
    assert len(staged) == 20_000
    assert keys.table.keys[: len(keys)].tolist() == list(range(6667))
    ids = np.concatenate([chunk.ids[:, 0] for chunk in staged.chunks(999)])
    np.testing.assert_array_equal(ids, np.arange(20_000) * 977)


def test_by_words_and_by_bytes_the_same(tmp_path):
    """A feature near the end of its block is read byte by byte: a line in a block of its own, or
    many in one.
    """
    rng = np.random.default_rng(2)
    lines = []
    for _ in range(3000):
        id = int(rng.integers(0, 10 ** int(rng.integers(1, 10))))
        whole, part = (
            int(rng.integers(0, 10 ** int(n))) for n in (rng.integers(0, 3), rng.integers(0, 9))
        )
        value = f"{whole}.{part}" if rng.random() < 0.9 else f"{whole}.0e{part % 30}"
        lines.append(
            raw.skeleton(1, 0, 0, "1", (str(rng.choice(["508", "702", "853", "7"])), id, value))
        )
    found = []
    for number, blocks in enumerate(([b"".join(lines)], lines)):
        folder = tmp_path / str(number)
        folder.mkdir()
        arrays = iter([np.frombuffer(block, np.uint8) for block in blocks])
        plan = field_plan(PROTOCOLS["full"], "row")
        staged = Stager(folder, 1.0, 0, "hint").stage(
            Text("train", "skeleton", arrays), Keys(), plan
        )
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
        assert len(staged) == len(lines)
    assert len(max(lines, key=len)) <= AHEAD + 10, "read by bytes alone, from the feature on"
    assert found[0] == found[1]


def test_what_is_odd_but_harmless_is_counted(stager):
    text = raw.skeleton(1, 0, 0, "1", ("205", 1, 1), ("999", 1, 1), ("101", 5, 1)).replace(
        b",3,", b",7,"
    )
    staged, _ = stage(stager, text)
    counted = staged.report()
    assert counted["unknown features"] == counted["features in the wrong file"] == 1
    assert counted["feature counts that differ from the list"] == 1
    staged, _ = stage(stager, USER + USER + raw.common("0e"), "common")
    assert staged.report()["common indexes that came again"] == 1
    assert staged.report()["rows without a user id"] == 1


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**16))
def test_hashes_are_those_of_the_reference(value, salt):
    assert int(mix(np.uint64(value))) == reference.mix(value)
    assert share(np.uint64(value), np.uint64(salt)) == reference.share(value, salt)
