"""A run is taken away: another machine, another data home, the same scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import mtlkit
from mtlkit.data import census_files
from mtlkit.data.sources import open_source, prepare
from mtlkit.errors import MissingError, MtlkitError, UsageError
from mtlkit.grid.export import FILES, export, input_names
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.loaded_run import load_run
from mtlkit.grid.plan import make_plan
from mtlkit.grid.run_cell import run_cell
from mtlkit.models._types import Batch
from mtlkit.registry import MODELS
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ENCODERS, ResultStore
from mtlkit.training.batches import DeviceSplit
from tests.data.datasets import test_census
from tests.data.table.test_row_encoders import OPTIONS
from tests.data.table.test_row_encoders import table as every_column
from tests.grid import raw_rows

MOST_LOGIT = np.log(1 - 1e-6) - np.log(1e-6)  # of a quotient of probabilities
ALI_CCP = "ali-ccp[simulate=2000,purchase_rate=0.2,protocol=full,min_count=2]"
CPU = ExecutionSettings(device="cpu", probes=False)
FUNNEL = ["buy"]


def own_table(folder):
    """A table with a column of every kind, two steps of a funnel, a number and grades to predict;
    and its rows of the test split.
    """
    frame = every_column()
    rng = np.random.default_rng(1)
    frame["buy"] = frame.click * rng.integers(0, 2, len(frame))
    frame["price"] = rng.normal(5, 2, len(frame))
    frame["grade"] = np.resize(["low", "middle", "high"], len(frame))
    path = folder / "own.parquet"
    frame.to_parquet(path)
    roles = {"user": "word", "item": "flag", "domain": "ratio"}
    options = OPTIONS | {"labels": ["click", "buy", "price", "grade"], "funnel": ["click", "buy"]}
    options["roles"] = roles
    (folder / "own.yaml").write_text(json.dumps({"files": "own.parquet", **options}))
    return str(folder / "own.yaml"), frame[frame.part == "test"].drop(columns=["click", "part"])


def small_census(folder, home):
    raw = test_census.make_folder(folder / "raw")
    open_source("census").download(home, raw)
    options = raw_rows.CENSUS_OPTIONS | {"names": list(census_files.COLUMNS)}
    rows = pd.read_csv(raw / "census-income.test", **options)
    return "census", rows.iloc[test_census.census._halves(len(rows))[1]]


@pytest.fixture(scope="module", params=["own", "census", "ali-ccp"])
def data(request, tmp_path_factory):
    """Name of a data set, data home, and raw rows of its test split."""
    folder = tmp_path_factory.mktemp(request.param)
    home = folder / "home"
    if request.param == "own":
        name, rows = own_table(folder)
    elif request.param == "census":
        request.getfixturevalue("monkeypatch_module")
        name, rows = small_census(folder, home)
    else:
        name = ALI_CCP
        prepare(name, home)
        (archives,) = (home / "ali-ccp" / "simulated").iterdir()
        rows = raw_rows.ali_ccp(archives)
    prepare(name, home)
    return name, home, rows


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(census_files, "ROWS", test_census.ROWS)
        yield patch


def run(name, home, folder, model, execution=CPU, *items, tasks=None):
    """Train a model for a moment, and take its folder elsewhere; also what it left behind."""
    source, dataset = prepare(name, home)
    dataset = dataset.select(tasks) if tasks else dataset
    store = ResultStore(folder / "results")
    flags = {"dataset": name, "models": model, "balancers": "uniform", "references": []}
    settings = ["epochs=0.5", "batch_size=60", "evaluations=2", "embedding=4", *items]
    grid = read_grid(None, flags | {"seeds": 1}, settings)
    (cell,) = make_plan(grid, source, dataset, store).to_run
    outcome = run_cell(cell, home, execution)
    assert outcome.record.ok, outcome.record.error
    shutil.move(outcome.save(store), folder / "taken")
    return folder / "taken", outcome


def applicable(name, home):
    _, dataset = prepare(name, home)
    return [
        model for model in MODELS.names() if not MODELS.load(model).inapplicable(dataset.schema)
    ]


def expected_scores(outcome):
    """Column to values, from the logits that were stored."""
    kinds = {task["name"]: task["kind"] for task in outcome.record.tasks}
    columns = {}
    for key, logits in outcome.arrays["scores"].items():
        kind, _, name = key.partition("/")
        if kind != "score" or "-if-" in name:
            continue
        logits = logits.astype(float)
        if kinds[name] == "multiclass":
            shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            columns |= {f"{name}-{k}": shares[:, k] for k in range(shares.shape[1])}
        elif kinds[name] == "regression":
            columns[name] = logits  # they were stored on the scale of the data
        else:
            bound = MOST_LOGIT if "given" in name else np.inf
            columns[name] = 1 / (1 + np.exp(-np.minimum(logits, bound)))
    return columns


def assert_scores(found, outcome):
    expected = expected_scores(outcome)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("model", MODELS.names())
def test_predictions_are_the_stored_scores(data, tmp_path, model):
    name, home, rows = data
    tasks = None
    if name.endswith("yaml") and MODELS.load(model).needs_funnel:
        tasks = ["click", "buy"]
    elif model not in applicable(name, home):
        pytest.skip("does not apply")
    # single tasks have several best points, and batch norm has statistics
    folder, outcome = run(name, home, tmp_path, f"{model}[norm=batch]", tasks=tasks)
    taken = mtlkit.load_run(folder)
    assert_scores(taken.predict(rows, batch_size=64), outcome)


# --- the files, and what is said of damaged ones


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A table of one's own, and a run on it that lies elsewhere."""
    folder = tmp_path_factory.mktemp("own")
    name, rows = own_table(folder)
    taken, outcome = run(name, folder / "home", folder, "mmoe[experts=2]")
    return taken, outcome, rows


def test_predict_writes_a_file_in_pieces(own, tmp_path, cli):
    folder, outcome, rows = own
    rows.to_parquet(tmp_path / "rows.parquet")
    for name, read in (("scores.parquet", pd.read_parquet), ("scores.csv", pd.read_csv)):
        out = tmp_path / "new" / name
        words = ["predict", folder, tmp_path / "rows.parquet", "--out", out, "--batch-size", 4]
        ended = cli(*words, "--device", "cpu")
        assert ended.code == 0, ended.err
        assert f"{len(rows)} rows" in ended.out
        assert_scores(read(out), outcome)
        assert [file.name for file in out.parent.iterdir() if file.name.startswith(".")] == []
    groups = pq.ParquetFile(tmp_path / "new" / "scores.parquet").num_row_groups
    assert groups == -(-len(rows) // 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "{run}", "{rows}", "--out", "scores.txt"], "no .parquet and no .csv"),
        (["predict", "{run}", "{none}", "--out", "{out}"], "no columns|has no column"),
        (["predict", "{run}", "{home}/nothing.csv", "--out", "{out}"], "no file"),
        (["predict", "{home}", "{rows}", "--out", "{out}"], "no finished run"),
        (["export", "{home}"], "no finished run"),
        (["export", "{run}", "--format", "pickle"], "pickle"),
    ],
)
def test_what_is_wrong_is_one_sentence(own, tmp_path, cli, words, said):
    folder, _, rows = own
    rows.to_parquet(tmp_path / "rows.parquet")
    pd.DataFrame({"other": [1.0]}).to_parquet(tmp_path / "none.parquet")
    places = {
        "run": folder,
        "rows": tmp_path / "rows.parquet",
        "none": tmp_path / "none.parquet",
        "home": tmp_path,
        "out": tmp_path / "scores.parquet",
    }
    ended = cli(*(word.format(**places) for word in words))
    assert ended.code != 0
    import re

    assert re.search(said, ended.err), ended.err
    assert "Traceback" not in ended.err
    assert "hint: " in ended.err
    assert not (tmp_path / "scores.parquet").exists()


def test_rows_that_there_are_none_of(own, tmp_path, cli):
    folder, _, rows = own
    rows.iloc[:0].to_parquet(tmp_path / "rows.parquet")
    ended = cli("predict", folder, tmp_path / "rows.parquet", "--out", tmp_path / "scores.csv")
    assert "has no rows" in ended.err
    assert load_run(folder).predict(rows.iloc[:0]).empty


@pytest.mark.parametrize("name", ["weights.npz", ENCODERS])
@pytest.mark.parametrize("damage", ["half", "gone", "foreign"])
def test_damaged_runs_are_refused(own, tmp_path, name, damage):
    folder = shutil.copytree(own[0], tmp_path / "copy")
    file = folder / name
    if damage == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "gone":
        file.unlink()
    elif name == ENCODERS:
        values = json.loads(file.read_text())
        values["columns"][0]["state"]["levels"].append("one more")
        file.write_text(json.dumps(values))
    else:
        np.savez(file, other=np.zeros(3))
    with pytest.raises(MtlkitError) as error:
        load_run(folder)
    assert "--save-weights best" in error.value.hint


# --- which weights are kept


def test_the_last_weights_or_none_can_be_kept(own, tmp_path):
    name, rows = own_table(tmp_path)
    home = tmp_path / "home"
    settings = ["lr=0.5", "epochs=40", "evaluations=8"]  # the best point is not the last one
    folders = {}
    for choice in ("best", "last", "none", True, False):
        execution = ExecutionSettings(device="cpu", save_weights=choice)
        place = tmp_path / str(choice)
        folders[choice], outcome = run(name, home, place, "mmoe", execution, *settings)
    best, last = (ResultStore.arrays(folders[key], "weights") for key in ("best", "last"))
    assert any(not np.array_equal(best[name], last[name]) for name in best)
    again = ResultStore.arrays(folders[True], "weights")
    assert all(np.array_equal(best[name], again[name]) for name in best)
    for choice in ("none", False):
        assert not (folders[choice] / "weights.npz").exists()
        assert not (folders[choice] / ENCODERS).exists()
        with pytest.raises(MtlkitError):
            load_run(folders[choice])

    # those of the last step are what the model was after it
    assert outcome.record.best["click"]["point"] < len(outcome.record.curve) - 1
    found = load_run(folders["last"]).predict(rows)
    assert not np.allclose(found["click"], load_run(folders["best"]).predict(rows)["click"])


# --- exports


def encoded(taken, rows):
    """Raw rows as the inputs of an exported model, by name."""
    (split,) = taken.encoders.batches(taken.encoders.open(rows), 10**6)
    inputs = {"ids": split.ids, "dense": split.dense}
    for name, bag in split.bags.items():
        inputs |= {f"{name}-offsets": bag.offsets, f"{name}-values": bag.values}
        inputs[f"{name}-weights"] = bag.weights
    return {name: inputs[name] for name in input_names(taken.schema)}


NUMBERS = ["stem[numbers=piecewise]", "mmoe[numbers=periodic]"]


@pytest.mark.parametrize("model", [*MODELS.names(), *NUMBERS])
def test_onnx_gives_the_same_scores(tmp_path, model):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    name, rows = own_table(tmp_path)
    tasks = ["click", "buy"] if MODELS.load(model.partition("[")[0]).needs_funnel else None
    folder, _ = run(name, tmp_path / "home", tmp_path, model, CPU, "norm=batch", tasks=tasks)
    taken = load_run(folder)
    files = export(taken, tmp_path / "exported")
    assert [file.name for file in files] == ["model.onnx", ENCODERS]

    # from nothing but the files, any number of rows at a time
    described = json.loads(files[1].read_text())
    session = runtime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    assert [tensor.name for tensor in session.get_inputs()] == described["inputs"]
    assert [tensor.name for tensor in session.get_outputs()] == described["outputs"]
    for part in (rows, rows.iloc[:1], rows.iloc[3:7]):
        expected = taken.predict(part)
        found = session.run(None, encoded(taken, part))
        for output, values in zip(described["outputs"], found, strict=True):
            np.testing.assert_allclose(values, expected[output], rtol=1e-5, atol=1e-5)


def test_a_torch_program_gives_the_same_scores(own, tmp_path, cli):
    folder, _, rows = own
    ended = cli("export", folder, "--format", "torch", "--out", tmp_path)
    assert ended.code == 0, ended.err
    program = torch.export.load(tmp_path / FILES["torch"]).module(check_guards=False)
    taken = load_run(folder)
    for part in (rows, rows.iloc[:1]):
        inputs = [torch.from_numpy(array) for array in encoded(taken, part).values()]
        expected = taken.predict(part)
        for name, values in zip(expected, program(*inputs), strict=True):
            np.testing.assert_allclose(values.numpy(), expected[name], rtol=1e-5, atol=1e-5)


def test_a_missing_extra_is_one_sentence(own, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("mtlkit.grid.export.EXTRA", ("onnx", "not_installed_package"))
    ended = cli("export", own[0], "--out", tmp_path / "exported")
    assert ended.code == MissingError.exit_code
    assert "pip install 'mtlkit[onnx]'" in ended.err
    assert not (tmp_path / "exported").exists()


def test_an_export_that_differs_is_refused(own, tmp_path, monkeypatch):
    def other(file, names, examples):
        return [tuple(torch.zeros(len(example[0])) for _ in range(7)) for example in examples]

    pytest.importorskip("onnxscript")
    monkeypatch.setattr("mtlkit.grid.export._run_onnx", other)
    with pytest.raises(MtlkitError, match="differ by"):
        export(load_run(own[0]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_generated_data_have_encoded_rows(home, tmp_path):
    name = "synthetic[rows=200,d=4]"
    folder, outcome = run(name, home, tmp_path, "mmoe")
    taken = load_run(folder)
    split = prepare(name, home)[1].splits["test"]
    names = [feature.name for feature in taken.schema.features]
    frame = pd.DataFrame(split.dense, columns=names)
    assert_scores(taken.predict(frame), outcome)


def test_the_module_is_a_module(own):
    taken = load_run(own[0])
    (split,) = taken.encoders.batches(taken.encoders.open(own[2]), 100)
    batch = DeviceSplit.load(split, torch.device("cpu")).columns
    assert isinstance(batch, Batch)
    output = taken.model(batch)
    names = [prediction.task for prediction in output.predictions]
    assert names == list(taken.schema.task_names)
    assert not taken.model.training
    with pytest.raises(UsageError, match="is no path"):
        mtlkit.load_run(3)
    assert isinstance(own[0], Path)
