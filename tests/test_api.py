"""The public face: what ``import mtlkit`` offers, and that it does what the commands do."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mtlkit
from mtlkit.errors import UsageError
from mtlkit.grid.grid_settings import read_grid
from mtlkit.registry import BALANCERS, DATASETS, MODELS
from tests.conftest import DATA
from tests.fakes import fill

FACE = Path(mtlkit.__file__)
QUICK = {"epochs": 1, "batch_size": 50, "device": "cpu"}


@pytest.fixture(scope="module")
def data(home):
    return mtlkit.load_dataset(DATA, home)


# --- names


def imported_for_type_checkers() -> dict[str, str]:
    """Name to module, as the type checker sees them."""
    tree = ast.parse(FACE.read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: node.module.removeprefix("mtlkit.")
        for node in block.body
        for alias in node.names
    }


def test_users_and_type_checkers_see_the_same_names():
    names = imported_for_type_checkers()
    assert names == mtlkit._MODULE_OF
    assert sorted(mtlkit.__all__) == mtlkit.__all__
    assert set(mtlkit.__all__) == {*names, "__version__"}
    assert (FACE.parent / "py.typed").exists()


@pytest.mark.parametrize("name", mtlkit.__all__)
def test_every_name_is_there(name):
    assert getattr(mtlkit, name) is not None
    assert name in dir(mtlkit)
    if name in mtlkit._MODULE_OF:
        module = importlib.import_module(f"mtlkit.{mtlkit._MODULE_OF[name]}")
        assert getattr(mtlkit, name) is getattr(module, name)


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'mtlkit' has no attribute 'fitt'"):
        mtlkit.fitt  # noqa: B018 - the access is the test


def test_reading_results_needs_no_torch(tmp_path):
    store = fill(tmp_path, ["mmoe"], ["uniform"], seeds=[0], with_probes=False)
    driver = (
        "import sys, mtlkit\n"
        f"print(len(mtlkit.read_results({str(store.root)!r})), 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True)
    count, has_torch = ended.stdout.split()
    assert int(count) > 0
    assert has_torch == "False"


# --- fit


def test_a_fit_is_a_cell(home, data, tmp_path):
    """The same numbers as those of ``mtlkit bench``."""
    result = mtlkit.fit("mmoe[experts=2]", data, "pcgrad", seed=3, **QUICK)
    (record,) = mtlkit.run_grid(
        dataset=DATA,
        models="mmoe[experts=2]",
        balancers="pcgrad",
        references=[],
        seeds=[3],
        data_dir=home,
        out=tmp_path,
        **QUICK,
    )
    assert result.metrics == record.metrics
    assert result.curve == record.curve


def test_the_data_set_may_be_a_name(home, data, monkeypatch):
    monkeypatch.setenv("MTLKIT_DATA", str(home))
    by_name = mtlkit.fit("shared-bottom", DATA, **QUICK)
    assert by_name.metrics == mtlkit.fit("shared-bottom", data, **QUICK).metrics


def test_a_class_stands_for_its_defaults(data):
    by_class = mtlkit.fit(MODELS.load("mmoe"), data, BALANCERS.load("uwl"), **QUICK)
    assert by_class.metrics == mtlkit.fit("mmoe", data, "uwl", **QUICK).metrics


def test_an_instance_is_trained_in_place(data):
    mmoe, uwl = MODELS.load("mmoe"), BALANCERS.load("uwl")
    model = mmoe(data.schema, mmoe.Options(experts=2))
    balancer = uwl(data.schema.tasks, uwl.Options())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = mtlkit.fit(model, data, balancer, **QUICK)
    after = model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, value in result.weights.items():
        np.testing.assert_array_equal(value, after[name].numpy())


def test_a_model_that_shares_nothing_takes_no_balancer(data):
    results = [mtlkit.fit("single-task", data, name, **QUICK) for name in ("uniform", "pcgrad")]
    assert results[0].metrics == results[1].metrics


def test_random_numbers_of_the_caller_go_on(data):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    mtlkit.fit("shared-bottom", data, **QUICK)
    torch.testing.assert_close(torch.rand(2), expected)


def test_a_data_set_brings_its_training_settings(data, monkeypatch):
    monkeypatch.setattr(DATASETS.load("synthetic"), "training", {"batch_size": 100, "epochs": 2})
    suited = mtlkit.fit("shared-bottom", data, device="cpu")
    assert suited.cost["steps"] == 4
    asked = mtlkit.fit("shared-bottom", data, device="cpu", batch_size=50)
    assert asked.cost["steps"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "mmo"}, "There is no model called 'mmo'. Did you mean mmoe"),
        ({"model": "mmoe[expert=2]"}, "The model mmoe has no option 'expert'."),
        ({"model": "mmoe[tower.zz=4]"}, "mmoe names the task 'zz'"),
        ({"model": "esmm"}, "esmm does not apply: synthetic has no funnel"),
        ({"balancer": "pcgradd"}, "There is no balancer called 'pcgradd'."),
        ({"balancer": "static[w=1:2:3]"}, "static needs one positive weight"),
        ({"balancer": "moco", "scope": "representation"}, "moco compares gradients of several"),
        ({"epoch": 1}, "The training has no option 'epoch'. Did you mean epochs?"),
        ({"lr": -1}, "The option 'lr' of the training cannot be -1"),
        ({"device": "tpu"}, "The option 'device' of the run cannot be 'tpu'"),
        ({"select": "zz"}, "There is no task 'zz' in this data set."),
        ({"freeze": "x"}, "fit starts from the model's own weights"),
        ({"model": 3}, "3 is no model."),
        ({"model": None}, "None is no model."),
        ({"model": dict}, "<class 'dict'> is no model."),
        ({"model": mtlkit.Balancer}, "<class 'mtlkit.balancers._balancer.Balancer'> is no model."),
        ({"dataset": [DATA]}, "['synthetic"),
        ({"dataset": None}, "None is no name of a data set."),
        ({"balancer": 3}, "3 is no balancer."),
        (
            {"balancer": mtlkit.Architecture},
            "<class 'mtlkit.models._architecture.Architecture'> is",
        ),
        ({"seed": -1}, "The seed cannot be -1"),
        ({"seed": "a"}, "The seed cannot be 'a'"),
        ({"seed": True}, "The seed cannot be True"),
        ({"seed": 1.0}, "The seed cannot be 1.0"),
        ({"seed": 10**18}, "The seed cannot be 1000000000000000000"),
    ],
    ids=str,
)
def test_wrong_names_and_settings(data, arguments, message):
    with pytest.raises(mtlkit.UsageError) as caught:
        mtlkit.fit(**{"model": "mmoe", "dataset": data} | arguments)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_instances_must_fit_the_data(data):
    mmoe, uwl = MODELS.load("mmoe"), BALANCERS.load("uwl")
    one_task = data.select(["task-1"])
    with pytest.raises(mtlkit.UsageError, match="built for other features or tasks"):
        mtlkit.fit(mmoe(one_task.schema, mmoe.Options()), data)
    with pytest.raises(mtlkit.UsageError, match="The balancer was built for the tasks task-1, but"):
        mtlkit.fit("mmoe", data, uwl(one_task.schema.tasks, uwl.Options()))


def test_training_that_diverges(data):
    with pytest.raises(mtlkit.MtlkitError, match="Training diverged by step") as caught:
        mtlkit.fit("shared-bottom", data, **QUICK, lr=1e30, optimizer="sgd")
    assert caught.value.hint


def test_a_seed_may_come_from_an_array(data):
    by_array = mtlkit.fit("mmoe", data, seed=np.arange(4)[3], **QUICK)
    assert by_array.metrics == mtlkit.fit("mmoe", data, seed=3, **QUICK).metrics


# --- data, grids, results


@pytest.mark.parametrize("path", ["a\0b", Path("a\0b"), None, 3], ids=repr)
def test_what_can_be_no_path(path, tmp_path):
    calls = [lambda: mtlkit.read_results(path), lambda: mtlkit.write_report(path)]
    if path is not None:
        calls += [
            lambda: mtlkit.load_dataset(DATA, path),
            lambda: mtlkit.run_grid(path),
            lambda: mtlkit.run_grid(dataset=DATA, data_dir=path),
            lambda: mtlkit.run_grid(dataset=DATA, data_dir=tmp_path, out=path),
            lambda: mtlkit.write_report(tmp_path, path),
        ]
    for call in calls:
        with pytest.raises(mtlkit.UsageError, match="path"):
            call()


def test_data_that_do_not_exist(home):
    with pytest.raises(mtlkit.UsageError, match="There is no dataset called 'censu'"):
        mtlkit.load_dataset("censu", home)


def test_a_script_needs_no_guard(home, tmp_path):
    """Workers do not import the program that started them."""
    script = tmp_path / "script.py"
    script.write_text(
        "import mtlkit\n"
        f"records = mtlkit.run_grid(dataset={DATA!r}, models='shared-bottom', seeds=1,\n"
        f"    balancers='uniform', epochs=1, device='cpu', data_dir={str(home)!r}, out='out')\n"
        "print([record.status for record in records])\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(FACE.parents[1])},
        capture_output=True,
        text=True,
    )
    assert ended.stdout == "['ok', 'ok']\n", ended.stderr


def test_a_grid_from_a_file(home, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"dataset: {DATA}\nmodels: mmoe\nbalancers: [uniform]\nreferences: []\nseeds: 2\n"
        f"training: {{epochs: 3}}\nexecution: {{device: cpu}}\nout: {tmp_path / 'out'}\n"
    )
    records = mtlkit.run_grid(file, data_dir=home, epochs=1, experts=2, tasks=["task-2"])
    assert [record.cell.seed for record in records] == [0, 1]
    resolved = records[0].cell.resolved
    assert resolved["training"]["epochs"] == 1
    assert resolved["model"]["options"]["experts"] == 2
    assert resolved["dataset"]["tasks"] == ["task-2"]
    again = mtlkit.run_grid(file, data_dir=home, epochs=1, experts=2, tasks=["task-2"])
    assert again == records, "finished cells are not run again"


def test_a_grid_with_its_pairs_of_tasks(home, tmp_path):
    grid = {"models": "mmoe", "balancers": "uniform", "seeds": 1, **QUICK}
    data = DATA.replace("]", ",tasks=3]")
    records = mtlkit.run_grid(dataset=data, data_dir=home, out=tmp_path, relations=True, **grid)
    tasks = [record.cell.resolved["dataset"]["tasks"] for record in records]
    assert [len(names) for names in tasks] == [3, 3, 2, 2, 2]
    with pytest.raises(UsageError, match="--relations cannot go with --tune"):
        mtlkit.run_grid(dataset=data, data_dir=home, relations=True, tune={"trials": 2}, **grid)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"epochs": 1, "lr": 0.1}, {"training": {"epochs": 1, "lr": 0.1}}),
        ({"jobs": 2, "execution": {"device": "cpu"}}, {"execution": {"jobs": 2, "device": "cpu"}}),
        ({"training": {"lr": 0.1}, "epochs": 1}, {"training": {"epochs": 1, "lr": 0.1}}),
        ({"experts": 4, "models": "mmoe"}, {"model": {"experts": 4}, "models": ["mmoe"]}),
    ],
    ids=str,
)
def test_settings_find_their_section(settings, same):
    from mtlkit.api import _in_sections

    assert read_grid(None, _in_sections(settings), []) == read_grid(None, same, [])


def test_settings_of_a_grid_that_do_not_exist(home, tmp_path):
    with pytest.raises(mtlkit.UsageError, match="is called 'epoch'"):
        mtlkit.run_grid(dataset=DATA, models="mmoe", data_dir=home, out=tmp_path, epoch=1)


def test_results_and_report(tmp_path):
    store = fill(tmp_path, ["mmoe"], ["uniform", "uwl"], seeds=[0, 1], with_probes=False)
    rows = mtlkit.read_results(store.root)
    assert {"model", "balancer", "task", "metric", "mean", "ci_low", "seeds"} <= set(rows.columns)
    assert set(rows["balancer"]) == {"none", "uniform", "uwl"}
    files = mtlkit.write_report(store.root, tmp_path / "page")
    assert files.page == tmp_path / "page" / "index.html"
    assert files.page.exists()
    with pytest.raises(mtlkit.MissingError, match="There are no run records"):
        mtlkit.read_results(tmp_path / "nowhere")


# --- balancers in a loop of one's own


def test_a_balancer_by_name():
    balancer = mtlkit.balancer("mgda[normalize=l2]", ["click", "purchase"], update_every=2)
    assert isinstance(balancer, mtlkit.Balancer)
    assert balancer.options.update_every == 2
    assert [task.name for task in balancer.tasks] == ["click", "purchase"]
    with pytest.raises(mtlkit.UsageError, match="has no option 'strength'"):
        mtlkit.balancer("pcgrad", 2, strength=1)


@pytest.mark.parametrize(
    "tasks",
    [
        0,
        -1,
        True,
        1.5,
        None,
        [],
        "ab",
        ["a", "a"],
        [""],
        ["a\0b"],
        [3],
        pytest.param({"a", "b"}, id="set"),
    ],
    ids=repr,
)
def test_tasks_that_are_none(tasks):
    with pytest.raises(mtlkit.UsageError, match="There are no tasks") as caught:
        mtlkit.balancer("uwl", tasks)
    assert caught.value.hint


def test_tasks_of_a_balancer():
    task = mtlkit.Task(name="click")
    for tasks, names in (
        (2, ["task 1", "task 2"]),
        (("a", "b"), ["a", "b"]),
        ([task], ["click"]),
        ([task, "buy"], ["click", "buy"]),
    ):
        assert [task.name for task in mtlkit.balancer("uwl", tasks).tasks] == names


def test_read_results_says_what_it_leaves_out(tmp_path):
    store = fill(tmp_path, ["mmoe"], ["uniform"], seeds=[0, 1], with_probes=False)
    damaged = sorted(store.root.rglob("record.json"))[0]
    damaged.write_text("{")
    with pytest.warns(UserWarning, match="left out: .*record.json"):
        rows = mtlkit.read_results(store.root)
    assert len(rows)
