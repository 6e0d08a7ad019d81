"""A table of one's own from the command line: flags, YAML, lints, and public formats in one line."""

import numpy as np
import pandas as pd
import pytest

from mtlkit.cli.tables import with_table_flags
from mtlkit.data.data_home import last_fetched
from mtlkit.errors import UsageError
from mtlkit.store import ResultStore


def frame(rows=400):
    rng = np.random.default_rng(0)
    click = rng.random(rows) < 0.4
    return pd.DataFrame(
        {
            "user_id": rng.integers(0, 40, rows),
            "price": rng.normal(size=rows),
            "tags": rng.choice(["a|b", "b", "c"], rows),
            "date": pd.date_range("2024-01-01", periods=rows, freq="h"),
            "click": click.astype(int),
            "buy": (click & (rng.random(rows) < 0.5)).astype(int),
        }
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    frame().to_parquet(tmp_path / "clicks.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTLKIT_DATA", str(tmp_path / "data"))
    return tmp_path


SHORT = ["--models", "shared-bottom", "--balancers", "uniform", "--seeds", "1", "--epochs", "0.5"]


def test_one_line_trains_on_a_table(cli, folder):
    flags = ["--labels", "click,buy", "--funnel", "click,buy", "--split-by", "time"]
    ended = cli("bench", "-d", "clicks.parquet", *flags, *SHORT)
    assert ended.code == 0, ended.err
    records = [record for record, _ in ResultStore(folder / "results").scan()]
    assert {record.status for record in records} == {"ok"}
    (dataset,) = {record.cell.dataset for record in records}
    assert dataset == "clicks.parquet[labels=click:buy,funnel=click:buy,split=time]"
    assert "clicks.parquet, tasks click, buy" in ended.err

    # The same again is done, from brackets as well.
    again = cli("bench", "-d", dataset, *SHORT)
    assert "2 done" in again.err


def test_fetch_prints_the_card(cli, folder):
    ended = cli("fetch", "clicks.parquet", "--labels", "click,buy", "--split-by", "ratio")
    assert ended.code == 0, ended.err
    for text in ("user_id", "price", "tags", "date (the time of the row)", "user: user_id"):
        assert text in ended.out
    assert "user in two splits" in ended.out
    assert "time runs backwards" in ended.out
    remembered = last_fetched(folder / "data")
    assert remembered == f"{folder}/clicks.parquet[labels=click:buy,split=ratio]"


def test_a_lint_is_a_line_of_bench_and_strict_stops_at_it(cli, folder):
    flags = ["-d", "clicks.parquet", "--labels", "click"]
    ended = cli("bench", *flags, "--dry-run")
    assert "lint leak: buy alone" not in ended.err
    assert "lint user in two splits: " in ended.err
    strict = cli("bench", *flags, "--strict", "--dry-run")
    assert strict.code == 2
    assert "is not clean: user in two splits" in strict.err
    assert "hint: --split-by" in strict.err


def test_flags_decide_on_kinds(cli, folder):
    flags = ["--ids", "tags", "--dense", "user_id", "--drop", "price,date,buy"]
    ended = cli("fetch", "clicks.parquet", "--labels", "click", *flags)
    assert "columns of ids      tags" in ended.out
    assert "columns of numbers  user_id" in ended.out


def test_init_proposes_a_file_that_works(cli, folder):
    proposed = cli("init", "clicks.parquet")
    assert proposed.code == 0, proposed.err
    (folder / "clicks.yaml").write_text(proposed.out, encoding="utf-8")
    for line in ("funnel: [click, buy]", "  user: user_id", "  time: date", "  by: time"):
        assert line in proposed.out.splitlines()
    assert "  click: {}  # 0 or 1, " in proposed.out
    ended = cli("fetch", "clicks.yaml", "--strict")
    assert ended.code == 0, ended.err

    # What stands there as a comment works as well.
    extra = [line for line in proposed.out.splitlines() if line.startswith(("# min", "# transf"))]
    text = proposed.out + "\n".join(line.removeprefix("# ") for line in extra)
    (folder / "clicks.yaml").write_text(text, encoding="utf-8")
    assert len(extra) == 2
    assert cli("fetch", "clicks.yaml").code == 0


def test_init_quotes_odd_names(cli, folder):
    odd = {"price": "no: price # here", "tags": "- tags, 'quoted'", "user_id": "101", "date": "yes"}
    frame().rename(columns=odd).to_csv("odd.csv", index=False)
    (folder / "odd.yaml").write_text(cli("init", "odd.csv").out, encoding="utf-8")
    ended = cli("fetch", "odd.yaml")
    assert ended.code == 0, ended.err


def test_init_wants_a_likely_label(cli, folder):
    frame()[["user_id", "price"]].to_csv("plain.csv", index=False)
    ended = cli("init", "plain.csv")
    assert ended.code == 2
    assert "likely label" in ended.err
    assert "--labels" in ended.err
    assert cli("init", "plain.csv", "--labels", "price").code == 0


@pytest.mark.parametrize("name", ["", "a=b", "x[1]", "1e5", "none", "True"])
def test_names_that_brackets_would_change_are_refused(name):
    with pytest.raises(UsageError, match="cannot stand"):
        with_table_flags("t.csv", {"ids": f"a,{name}"})


def test_names_that_look_like_numbers_stay_names():
    text = with_table_flags("t.csv", {"labels": "click,101,109_14", "split_by": "group:101"})
    assert text == "t.csv[labels=click:101:109_14,split=group:101]"
    assert with_table_flags("t.csv[drop=a]", {"labels": None}) == "t.csv[drop=a]"
    with pytest.raises(UsageError, match="--split-by is about a table"):
        with_table_flags(None, {"split_by": "time"})


# --- files as other tools write them


def rechub_ali_ccp(rng, rows):
    sparse = "101 121 122 124 125 126 127 128 129 205 206 207 210 216 508 509 702 853 301".split()
    sparse += ["109_14", "110_14", "127_14", "150_14"]
    dense = [
        f"D{name}" for name in ["109_14", "110_14", "127_14", "150_14", "508", "509", "702", "853"]
    ]
    columns = {"click": rng.integers(0, 2, rows)}
    columns["purchase"] = columns["click"] * rng.integers(0, 2, rows)
    columns |= {name: rng.integers(0, 30, rows) for name in sparse}
    columns |= {name: rng.random(rows).round(4) for name in dense}
    return columns, "click,purchase", (23, 8)


def rechub_ali_express(rng, rows):
    columns = {"search_id": np.arange(rows)}
    columns |= {f"categorical_{k}": rng.integers(0, 9, rows) for k in range(1, 17)}
    columns |= {f"numerical_{k}": rng.random(rows).round(5) for k in range(1, 64)}
    columns["click"] = rng.integers(0, 2, rows)
    columns["conversion"] = columns["click"] * rng.integers(0, 2, rows)
    return columns, "click,conversion", (17, 63)


def rechub_census(rng, rows):
    texts = ["class of worker", "education", "major industry code", "race"]
    columns = {"age": rng.integers(0, 91, rows)}
    columns |= {name: rng.choice([" Not in universe", " Private", "?"], rows) for name in texts}
    columns["wage per hour"] = rng.random(rows).round(6)
    columns |= {name: rng.integers(0, 2, rows) for name in ("cvr_label", "ctr_label")}
    return columns, "cvr_label,ctr_label", (5, 1)


@pytest.mark.parametrize("make", [rechub_ali_ccp, rechub_ali_express, rechub_census])
def test_public_csv_samples_go_through_in_one_line(cli, folder, make):
    columns, labels, expected = make(np.random.default_rng(0), 100)
    pd.DataFrame(columns).to_csv("sample.csv", index=False)
    ended = cli("bench", "-d", "sample.csv", "--labels", labels, *SHORT)
    assert ended.code == 0, ended.err
    (folder / "sample.csv").rename("moved.csv")
    ended = cli("fetch", "moved.csv", "--labels", labels)
    ids, dense = expected
    assert f"{ids} ids, {dense} numbers" in ended.out
