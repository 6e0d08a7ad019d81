"""A table as a data set: prepared when needed, and again when the file or an option changes."""

import os

import numpy as np
import pandas as pd
import pytest
import yaml

from mtlkit.data.sources import open_planned, open_source, prepare
from mtlkit.errors import MissingError, UsageError
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.store import ResultStore


def frame(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    click = rng.integers(0, 2, rows)
    return pd.DataFrame(
        {
            "user_id": rng.integers(0, 40, rows),
            "price": rng.normal(size=rows),
            "click": click,
            "buy": click * rng.integers(0, 2, rows),
        }
    )


@pytest.fixture
def file(tmp_path):
    frame().to_csv(tmp_path / "clicks.csv", index=False)
    return tmp_path / "clicks.csv"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "data"


def load(text, home):
    return prepare(str(text), home)[1]


def prepared_folders(home):
    return sorted(path.parent.name for path in home.rglob("manifest.json"))


def test_it_is_prepared_once(file, home):
    first = load(f"{file}[labels=click:buy]", home)
    written = {path: path.stat().st_mtime_ns for path in home.rglob("*.npy")}
    again = load(f"{file}[labels=click:buy]", home)
    assert first.fingerprint == again.fingerprint
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.npy")} == written
    assert not list(home.rglob("staging"))


def test_a_changed_option_is_another_data_set(file, home):
    load(f"{file}[labels=click:buy]", home)
    other = load(f"{file}[labels=click:buy,drop=price]", home)
    assert len(prepared_folders(home)) == 2
    assert [feature.name for feature in other.schema.features] == ["user_id"]


def test_a_changed_file_is_noticed_even_with_its_size_and_date(file, home):
    first = load(f"{file}[labels=click:buy]", home)
    before = file.stat()
    text = file.read_text()
    file.write_text(text.replace("0,0\n", "1,0\n", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert load(f"{file}[labels=click:buy]", home).fingerprint != first.fingerprint


def test_an_old_file_is_hashed_once_and_again_when_it_changed(file, home, monkeypatch):
    from mtlkit.data.table import files

    hashed = []
    digest = files.hashlib.file_digest
    monkeypatch.setattr(
        files.hashlib, "file_digest", lambda *args: hashed.append(1) or digest(*args)
    )
    os.utime(file, (1e9, 1e9))
    for _ in range(3):
        load(f"{file}[labels=click]", home)
    assert len(hashed) == 1
    file.write_text(file.read_text() + "1,0.5,1,0\n")
    os.utime(file, (1e9 + 1, 1e9 + 1))
    load(f"{file}[labels=click]", home)
    assert len(hashed) == 2


def test_the_place_of_a_file_does_not_count(file, home, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "clicks.csv"
    moved.write_bytes(file.read_bytes())
    load(f"{file}[labels=click]", home)
    load(f"{moved}[labels=click]", home)
    assert len(prepared_folders(home)) == 1


def test_a_record_leads_back_to_the_prepared_data_without_the_file(file, home):
    source, data = prepare(f"{file}[labels=click:buy,split=group]", home)
    file.unlink()
    options = source.resolved_options()
    assert str(file) not in str(options)
    again = open_planned(source.name, options).load(home)
    assert again.fingerprint == data.fingerprint


def test_prepared_data_that_are_gone_are_missed(file, home, tmp_path):
    source, _ = prepare(f"{file}[labels=click]", home)
    planned = open_planned(source.name, source.resolved_options())
    with pytest.raises(MissingError, match="gone"):
        planned.load(tmp_path / "other")


def test_yaml_and_brackets_are_one_data_set(file, home, tmp_path):
    options = {"labels": ["click", "buy"], "funnel": ["click", "buy"], "split": "group:user_id"}
    (tmp_path / "clicks.yaml").write_text(yaml.safe_dump({"files": "clicks.csv", **options}))
    by_yaml = load(tmp_path / "clicks.yaml", home)
    typed = f"{file}[labels=click:buy,funnel=click:buy,split=group:user_id]"
    by_brackets = load(typed, home)
    assert by_yaml.fingerprint == by_brackets.fingerprint
    assert by_yaml.schema.funnel == ("click", "buy")


def test_brackets_win_over_the_yaml_file(file, home, tmp_path):
    (tmp_path / "clicks.yaml").write_text("files: clicks.csv\nlabels: [click, buy]\n")
    data = load(f"{tmp_path}/clicks.yaml[labels=click]", home)
    assert data.schema.task_names == ("click",)


def test_a_folder_and_a_glob_are_one_table(home, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        frame(seed=number).to_parquet(folder / f"part-{number}.parquet")
    whole = load(f"{folder}[labels=click]", home)
    assert sum(len(split) for split in whole.splits.values()) == 900
    by_glob = load(f"{folder}/part-*.parquet[labels=click]", home)
    assert by_glob.fingerprint == whole.fingerprint
    assert open_source(f"{folder}[labels=click]").name == "shards.parquet"


def test_a_folder_of_everything_is_not_searched(home, tmp_path, monkeypatch):
    monkeypatch.setattr("mtlkit.data.raw_files.MOST_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.csv").write_text("a,click\n1,0\n")
    with pytest.raises(MissingError, match="more than 3 files and folders"):
        prepare(f"{tmp_path}[labels=click]", home)


def test_shards_may_differ_in_the_type_of_a_column(home, tmp_path):
    for number, column in enumerate((frame().price.round(), frame().price)):
        part = frame().assign(price=column.astype("int64") if number == 0 else column)
        part.to_parquet(tmp_path / f"part-{number}.parquet")
    data = load(f"{tmp_path}/part-*.parquet[labels=click]", home)
    assert [feature.kind for feature in data.schema.features] == ["id", "dense", "id"]

    frame().assign(price="x").to_parquet(tmp_path / "part-2.parquet")
    with pytest.raises(MissingError, match=r"'price' is string in .*part-2.parquet"):
        load(f"{tmp_path}/part-*.parquet[labels=click]", home)
    frame().drop(columns="price").to_parquet(tmp_path / "part-2.parquet")
    with pytest.raises(MissingError, match=r"part-2.parquet lacks the column 'price'"):
        load(f"{tmp_path}/part-*.parquet[labels=click]", home)


def test_a_built_in_name_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "census").mkdir()
    monkeypatch.chdir(tmp_path)
    assert type(open_source("census")).__name__ == "CensusIncome"
    with pytest.raises(MissingError, match="no table in the folder"):
        open_source("./census")


def test_a_table_takes_no_other_place_and_no_links(file, home, tmp_path):
    with pytest.raises(UsageError, match="read where it lies"):
        prepare(f"{file}[labels=click]", home, origin=tmp_path)
    with pytest.raises(UsageError, match="takes no links"):
        prepare(f"{file}[labels=click]", home, links={"train": "https://example.org"})


def test_force_prepares_again_and_leaves_other_options_alone(file, home):
    load(f"{file}[labels=click]", home)
    load(f"{file}[labels=buy]", home)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("manifest.json")}
    prepare(f"{file}[labels=click]", home, force=True)
    after = {path: path.stat().st_mtime_ns for path in home.rglob("manifest.json")}
    assert before.keys() == after.keys()
    assert sum(before[path] != after[path] for path in before) == 1


def test_damaged_prepared_data_are_told_with_the_command_that_mends_them(file, home):
    load(f"{file}[labels=click]", home)
    next(home.rglob("train.ids.npy")).write_bytes(b"")
    with pytest.raises(MissingError) as caught:
        load(f"{file}[labels=click]", home)
    assert caught.value.hint == f"mtlkit fetch '{file}[labels=click]' --force"


def test_a_table_that_changes_while_it_is_read_is_not_kept(file, home, monkeypatch):
    from mtlkit.data.table import source as source_module

    prepare_table = source_module.prepare_table

    def change_meanwhile(*args):
        dataset = prepare_table(*args)
        file.write_text(file.read_text() + "1,0.5,1,0\n")
        return dataset

    monkeypatch.setattr(source_module, "prepare_table", change_meanwhile)
    with pytest.raises(MissingError, match="changed while it was read"):
        load(f"{file}[labels=click]", home)
    assert prepared_folders(home) == []


def test_what_a_file_holds_cannot_be_claimed(file):
    with pytest.raises(UsageError, match="no option 'content'"):
        open_source(f"{file}[labels=click,content=0123]")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "no-such-data"])
def test_a_name_that_is_no_file_is_no_table(name):
    with pytest.raises(UsageError, match="no dataset called"):
        open_source(name)


def test_a_file_that_is_not_there_is_told(home):
    for name in ("./t.csv", "t.parquet", "shards/*.csv", f"{'x' * 5000}.csv"):
        with pytest.raises(MissingError, match="There is no file"):
            load(f"{name}[labels=click]", home)
    with pytest.raises(UsageError, match="Cannot read"):
        load("no.yaml", home)


def keys(typed, home):
    """The keys of the cells of a grid on a table."""
    settings = read_grid(None, {"dataset": str(typed), "models": "shared-bottom", "seeds": 1}, [])
    source, data = prepare(str(typed), home)
    plan = make_plan(settings, source, data, ResultStore(home / "results"))
    return [planned.cell.key for planned in plan.cells]


def test_a_table_is_one_data_set_to_the_results_however_it_was_typed(file, home, tmp_path):
    options = {"labels": ["click", "buy"], "funnel": ["click", "buy"], "split": "group:user_id"}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump({"files": "clicks.csv", **options}))
    # what is found out may as well be said
    said = options | {"files": "clicks.csv", "dense": ["price"], "ids": ["user_id"]}
    (tmp_path / "said.yaml").write_text(yaml.safe_dump(said))
    moved = tmp_path / "renamed.csv"
    moved.write_bytes(file.read_bytes())
    brackets = "[labels=click:buy,funnel=click:buy,split=group:user_id]"
    first, *others = [
        keys(typed, home)
        for typed in (
            f"{file}{brackets}",
            f"{moved}{brackets}",
            tmp_path / "table.yaml",
            tmp_path / "said.yaml",
        )
    ]
    assert first
    assert others == [first] * 3

    # other splits, other labels and other rows are other data
    for text in ("labels=click:buy,funnel=click:buy", "labels=click:buy,split=group:user_id"):
        assert not set(keys(f"{file}[{text}]", home)) & set(first)
    moved.write_text(file.read_text() + "1,0.5,1,0\n")
    assert not set(keys(f"{moved}{brackets}", home)) & set(first)
