from pathlib import Path

import pytest
import yaml

from mtlkit.errors import UsageError
from mtlkit.grid import grid_settings
from mtlkit.grid.grid_settings import GridSettings, read_grid, with_dataset, write_grid
from mtlkit.registry import DATASETS
from mtlkit.settings import TrainingSettings

YAML = """
dataset: synthetic[rows=200]
models: mmoe,ple[levels=3]
balancers: [uwl, "static[w=1:2]"]
seeds: 2
training: {lr: 1e-3, epochs: 4}
model: {dropout: 0.1}
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(YAML)
    return file


def test_a_file(file):
    grid = read_grid(file, {}, [])
    assert grid.dataset == "synthetic[rows=200]"
    assert grid.models == ("mmoe", "ple[levels=3]")
    assert grid.balancers == ("uwl", "static[w=1:2]")
    assert grid.seeds == (0, 1)
    assert (grid.training.lr, grid.training.epochs, grid.training.batch_size) == (0.001, 4, 1024)
    assert grid.model == {"dropout": 0.1}
    assert grid.references == ("single-task",)
    assert grid.out == Path("results")


def test_flags_override_the_file_and_assignments_override_flags(file):
    flags = {"models": "cgc", "seeds": "5,7", "training": {"epochs": 0.5}, "execution": {"jobs": 2}}
    assert read_grid(file, flags, []).training.epochs == 0.5
    grid = read_grid(file, flags, ["lr=1", "epochs=9", "experts=16", "timeout=5", "seeds=3:4"])
    assert grid.models == ("cgc",)
    assert grid.balancers == ("uwl", "static[w=1:2]")
    assert grid.seeds == (3, 4)
    assert (grid.training.lr, grid.training.epochs) == (1, 9)
    assert (grid.execution.jobs, grid.execution.timeout) == (2, 5)
    assert grid.model == {"dropout": 0.1, "experts": 16}


@pytest.mark.parametrize(
    ("item", "where"),
    [
        ("lr=0.5", ("training", "lr")),
        ("training.lr=0.5", ("training", "lr")),
        ("task_weights.income=0.5", ("training", "task_weights", "income")),
        ("eval_batch_size=5", ("execution", "eval_batch_size")),
        ("execution.timeout=5", ("execution", "timeout")),
        ("alpha=0.5", ("model", "alpha")),
        ("tower.income=5", ("model", "tower", "income")),
        ("balancer.alpha=0.5", ("balancer", "alpha")),
    ],
)
def test_assignments_find_their_section(item, where):
    value = read_grid(None, {}, [item])
    for key in where:
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    assert value in (0.5, 5)


@pytest.mark.parametrize(
    ("value", "seeds"),
    [("3", (0, 1, 2)), (2, (0, 1)), ("0,5,7", (0, 5, 7)), ("7,", (7,)), ([4, 2], (4, 2))],
)
def test_seeds(value, seeds):
    assert read_grid(None, {"seeds": value}, []).seeds == seeds


def test_most_seeds():
    assert len(read_grid(None, {"seeds": 10_000}, []).seeds) == 10_000
    assert read_grid(None, {"seeds": "999999999999999999,"}, []).seeds == (10**18 - 1,)


@pytest.mark.parametrize("value", ["none", None, []])
def test_no_references(value):
    assert read_grid(None, {"references": value}, []).references == ()
    assert read_grid(None, {}, ["references=none"]).references == ()


@pytest.mark.parametrize("value", ["", ",", " , "])
def test_references_are_none_by_name_only(value):
    with pytest.raises(
        UsageError, match=r"The option 'references' of the grid .*: it names nothing"
    ):
        read_grid(None, {"references": value}, [])


@pytest.mark.parametrize("value", [",", " ", " , "])
def test_patterns_that_are_none(value):
    with pytest.raises(UsageError, match=r"'training\.freeze' of the grid .*: it names nothing"):
        read_grid(None, {"training": {"freeze": value}}, [])


@pytest.mark.parametrize("value", ["", " ", "a\0b", Path(" ")], ids=repr)
@pytest.mark.parametrize("key", ["out", "init_from"])
def test_folders_that_are_none(key, value):
    values = {key: value} if key == "out" else {"execution": {key: value}}
    with pytest.raises(UsageError, match="it is no path"):
        read_grid(None, values, [])


def test_files_of_other_kinds(tmp_path):
    """Binary, in another encoding, without an end; with a mark of UTF-8 it is read."""
    file = tmp_path / "grid.yaml"
    for content, message in (
        (b"\x89PNG\r\n\x1a\n\xff", "not UTF-8 text"),
        ("seeds: 2".encode("utf-16"), "not UTF-8 text"),
        (b"#" * (grid_settings.MAX_BYTES + 1), "more than 10,000,000 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_grid(file, {}, [])
    with pytest.raises(UsageError, match="Is a directory"):
        read_grid(tmp_path, {}, [])
    file.write_bytes("seeds: 2".encode("utf-8-sig"))
    assert read_grid(file, {}, []).seeds == (0, 1)


@pytest.mark.parametrize("key", ["models", "balancers", "tasks"])
@pytest.mark.parametrize("value", ["", ",", " , ", [], ()], ids=repr)
def test_names_that_are_none(key, value):
    """As of an unset shell variable."""
    with pytest.raises(UsageError, match=f"The option '{key}' of the grid .*: it names nothing"):
        read_grid(None, {key: value}, [])


@pytest.mark.parametrize(
    "value",
    [
        *("0", "-1", "x", "", "1,1", "1.5", 0, [1, 1], [], [-1], ["a"]),
        *(True, False, [True], "\u00b2", 10**9, "1000000000", "10001", "9" * 5000, [10**18]),
        list(range(10_001)),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_seeds_that_are_none(value):
    with pytest.raises(UsageError, match="'seeds"):
        read_grid(None, {"seeds": value}, [])


@pytest.mark.parametrize(
    ("flags", "items", "message"),
    [
        ({"modles": "a"}, [], "The grid has no option 'modles'. Did you mean models?"),
        ({"training": {"lrr": 1}}, [], "The grid has no option 'training.lrr'."),
        ({}, ["lr=-1"], "The option 'training.lr' of the grid cannot be -1"),
        ({}, ["optimizer=adamm"], "The option 'training.optimizer' of the grid cannot be 'adamm'"),
        ({}, ["lr"], "Cannot read the option 'training.lr' given to --set."),
        ({}, ["seeds.x=1"], "The option 'seeds"),
    ],
)
def test_settings_that_do_not_exist(flags, items, message):
    with pytest.raises(UsageError) as caught:
        read_grid(None, flags, items)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_files_that_cannot_be_read(tmp_path):
    binary, odd = tmp_path / "binary.yaml", tmp_path / "odd.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    odd.write_text("training: [1]")
    for file, message in [
        (tmp_path / "gone.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (binary, "not UTF-8"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_grid(file, {}, [])
    with pytest.raises(UsageError, match="must hold key: value pairs"):
        read_grid(odd, {"training": {"lr": 1}}, [])


def test_what_is_written_is_read_back(file, tmp_path):
    again = tmp_path / "again.yaml"
    items = [
        "clip_norm=1e-05",
        "task_weights.a=2",
        "tower.a=64:32",
        "precision=bf16",
        "hidden=64:32",
    ]
    for grid in (GridSettings(), read_grid(file, {"references": []}, items)):
        again.write_text(write_grid(grid))
        assert read_grid(again, {}, []) == grid
        assert write_grid(read_grid(again, {}, [])) == write_grid(grid)


def test_every_setting_is_written():
    plain = yaml.safe_load(write_grid(GridSettings()))
    assert plain.keys() == GridSettings.model_fields.keys()
    for section in ("training", "execution"):
        assert (
            plain[section].keys()
            == GridSettings.model_fields[section].annotation.model_fields.keys()
        )


def test_a_data_set_brings_training_settings_that_flags_outrank():
    plain = with_dataset(read_grid(None, {}, []), "ali-ccp")
    assert plain.training.model_dump(exclude_unset=True) == DATASETS.load("ali-ccp").training != {}
    asked = with_dataset(
        read_grid(None, {"training": {"epochs": 6}}, ["lr=.01"]), "ali-ccp[sample=.1]"
    )
    assert (asked.training.epochs, asked.training.batch_size, asked.training.lr) == (
        6,
        plain.training.batch_size,
        0.01,
    )
    assert with_dataset(read_grid(None, {}, []), "census").training == TrainingSettings()
