import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mtlkit.data.sources import prepare
from mtlkit.errors import UsageError
from mtlkit.grid.grid_settings import GridSettings, TuningSettings, read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.grid.relations import with_pairs
from mtlkit.grid.tuning import Tuning
from mtlkit.records import RunRecord
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import TrainingSettings
from mtlkit.store import ResultStore
from tests.conftest import DATA
from tests.fakes import failure

THREE_TASKS = "synthetic[tasks=3,rows=200,d=4]"

INAPPLICABLE = '''"""Funnel: only for some data."""
from mtlkit.models.shared_bottom import SharedBottom


class Funnel(SharedBottom):
    @classmethod
    def inapplicable(cls, schema):
        return "has no funnel" if schema.funnel is None else None
'''


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


@pytest.fixture
def plan(home, store):
    """Plans a grid of given settings, one seed and no reference unless told otherwise."""

    def make(settings=None, *assignments, tasks=None, dataset=DATA, **how):
        given = {"dataset": dataset, "seeds": 1, "references": [], "balancers": "uniform"} | (
            settings or {}
        )
        source, data = prepare(dataset, home)
        data = data.select(tasks) if tasks else data
        return make_plan(read_grid(None, given, list(assignments)), source, data, store, **how)

    return make


def names(plan):
    return [(p.cell.model, p.cell.balancer, p.cell.seed) for p in plan.cells]


def done(cell):
    metrics = {"test": {"t1": {"auc": 0.7}}}
    return RunRecord(key=cell.key, group=cell.group, status="ok", cell=cell, metrics=metrics)


def test_a_grid_is_a_product_seed_by_seed(plan):
    made = plan(
        {"models": "mmoe,cgc", "balancers": "uniform,uwl", "seeds": 2, "references": "single-task"}
    )
    once = [
        ("single-task", "none"),
        ("mmoe", "uniform"),
        ("mmoe", "uwl"),
        ("cgc", "uniform"),
        ("cgc", "uwl"),
    ]
    assert names(made) == [(*pair, seed) for seed in (0, 1) for pair in once]
    assert made.inapplicable == []
    assert len({p.cell.key for p in made.cells}) == 10
    assert len({p.cell.group for p in made.cells}) == 5
    assert made.to_run == [p.cell for p in made.cells]


def test_a_cell_specifies_the_run(plan, home):
    source, data = prepare(DATA, home)
    cell = plan({"models": "mmoe[experts=4]", "balancers": "static[w=1:2]"}, "lr=0.1").cells[0].cell
    assert (cell.dataset, cell.model, cell.balancer) == (DATA, "mmoe[experts=4]", "static[w=1:2]")
    resolved = cell.resolved
    assert resolved["dataset"]["fingerprint"] == data.fingerprint
    assert resolved["dataset"]["options"] == source.resolved_options()
    assert resolved["dataset"]["tasks"] == ["task-1", "task-2"]
    assert resolved["dataset"]["simulated"] is True
    assert resolved["model"]["options"] == MODELS.load("mmoe").Options(experts=4).model_dump(
        mode="json"
    )
    assert resolved["balancer"]["options"] == {"w": [1.0, 2.0]}
    assert resolved["training"]["lr"] == 0.1
    later = set(TrainingSettings.added_later)
    assert resolved["training"].keys() == GridSettings().training.model_dump().keys() - later


def test_defaults_that_are_typed_are_the_same_cell(plan):
    made = plan(
        {
            "models": "mmoe,mmoe[experts=8],mmoe[hidden=32,experts=8],mmoe[experts=9]",
            "balancers": "uwl,uwl",
        }
    )
    assert names(made) == [("mmoe", "uwl", 0), ("mmoe[experts=9]", "uwl", 0)]
    plain, typed = plan({"models": "mmoe"}), plan({"models": "mmoe[experts=8]"})
    assert plain.cells[0].cell.group == typed.cells[0].cell.group
    assert (
        plan({"models": "mmoe"}, "experts=8", "lr=4e-3").cells[0].cell.key
        == plain.cells[0].cell.key
    )


def test_numbers_are_equal_however_they_are_written(plan):
    texts = ["dropout=0", "dropout=0.0", "dropout=0e5"]
    assert len({plan({"models": "mmoe"}, text).cells[0].cell.key for text in texts}) == 1
    assert (
        plan({"models": "mmoe"}, "dropout=.1").cells[0].cell.key
        != plan({"models": "mmoe"}).cells[0].cell.key
    )


@pytest.mark.parametrize(
    "text", ["device=cpu", "jobs=3", "timeout=5", "probes=false", "metrics=f1", "out=/elsewhere"]
)
def test_how_it_runs_is_no_part_of_the_identity(plan, text):
    assert (
        plan({"models": "mmoe"}, text).cells[0].cell.key
        == plan({"models": "mmoe"}).cells[0].cell.key
    )


@pytest.mark.parametrize(
    "text",
    [
        "precision=bf16",
        "evaluations=11",
        "select=loss",
        "select=logloss",
        "batch_size=512",
        "heads=plain",
    ],
)
def test_whatever_moves_numbers_is(plan, text):
    changed, plain = (plan({"models": "mmoe"}, *given).cells[0].cell for given in ([text], []))
    assert changed.key != plain.key
    assert changed.group != plain.group


def test_a_cell_knows_the_ceiling_of_simulated_data(plan, home):
    _, data = prepare(DATA, home)
    planted = data.details["simulation"]["planted_auc"]
    cells = [p.cell for p in plan({"models": "mmoe,ple"}).cells]
    assert all(cell.ceiling == planted for cell in cells)
    assert "ceiling" not in cells[0].resolved["dataset"]
    assert plan({"models": "mmoe"}, tasks=["task-2"]).cells[0].cell.ceiling == {
        "task-2": planted["task-2"]
    }


def test_the_start_is_named_by_its_folder(plan, store):
    run = done(plan({"models": "mmoe"}).cells[0].cell)
    folder = store.save(run, {"weights": {"x": np.zeros(1)}})
    for text in ("init_from=results/x", f"training.init_from={run.key}"):
        with pytest.raises(
            UsageError, match=r"which mtlkit fills in; .* names no folder"
        ) as caught:
            plan({"models": "mmoe"}, text)
        assert caught.value.hint.startswith("mtlkit bench --init-from ")
    with pytest.raises(UsageError, match=r"but the run in .* has the key"):
        plan({"models": "mmoe"}, "training.init_from=else", f"execution.init_from={folder}")
    for items in ([], [f"training.init_from={run.key}"]):
        made = plan({"models": "mmoe"}, f"execution.init_from={folder}", *items)
        assert made.cells[0].cell.resolved["training"]["init_from"] == run.key


def test_a_start_without_weights_names_the_command_that_makes_them(plan, store):
    of = plan({"models": "mmoe[experts=4]", "balancers": "static[w=1:2]"}).cells[0].cell
    folder = store.save(done(of))
    with pytest.raises(UsageError, match="kept no weights") as caught:
        plan({"models": "mmoe"}, f"execution.init_from={folder}")
    words = shlex.split(caught.value.hint)
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given.pop("--set") == "save_weights=true"
    assert Path(given.pop("--out")) != store.root, "a finished cell is not run again"
    methods = {name: given[f"--{name}"] for name in ("models", "balancers", "seeds")}
    made = plan(methods, tasks=given["--tasks"].split(","))
    assert [p.cell.key for p in made.cells] == [of.key]


@pytest.mark.parametrize(
    ("models", "pattern", "message", "hint"),
    [
        (
            "mmoe,shared-bottom",
            "experts.*",
            "No parameter of shared-bottom matches the pattern 'experts.*' of freeze.",
            "its parts are bottom.*, ",
        ),
        ("mmoe", "embeding.*", "No parameter of mmoe matches", "its parts are experts.*, "),
        ("mmoe", "*", "Everything of mmoe is frozen, so there is nothing to train.", "--freeze"),
    ],
)
def test_patterns_of_freeze_are_checked_for_every_model(
    plan, store, models, pattern, message, hint
):
    run = done(plan({"models": "mmoe"}).cells[0].cell)
    start = f"execution.init_from={store.save(run, {'weights': {'x': np.zeros(1)}})}"
    with pytest.raises(UsageError) as caught:
        plan({"models": models}, start, f"freeze={pattern}")
    assert caught.value.message.startswith(message)
    assert caught.value.hint.startswith(hint)
    frozen = plan({"models": "mmoe"}, start, "freeze=experts.*,gates.*")
    assert frozen.cells[0].cell.resolved["training"]["freeze"] == ["experts.*", "gates.*"]


def test_a_batch_larger_than_the_data_is_noted(plan):
    (note,) = plan({"models": "mmoe"}, "epochs=0.5").notes
    assert note.startswith("a step takes 1,024 rows, but the training split has 200: ")
    assert plan({"models": "mmoe"}, "batch_size=200").notes == ()


def test_paths_in_hints_are_quoted(plan, tmp_path):
    store = ResultStore(tmp_path / "my results")
    folder = store.save(
        done(plan({"models": "mmoe"}).cells[0].cell), {"weights": {"x": np.ones(1)}}
    )
    with pytest.raises(UsageError, match="has the key") as caught:
        plan({"models": "mmoe"}, "training.init_from=else", f"execution.init_from={folder}")
    command = caught.value.hint.partition(": ")[2]
    assert shlex.split(command) == ["mtlkit", "bench", "--init-from", str(folder)]


def test_tasks_and_their_order_are_part_of_the_identity(plan):
    groups = [
        plan({"models": "mmoe"}, tasks=t).cells[0].cell.group
        for t in (None, ["task-2"], ["task-2", "task-1"])
    ]
    assert len(set(groups)) == 3


def test_a_sweep_is_static_cells_and_shares_the_uniform_one(plan):
    made = plan({"models": "mmoe", "balancers": "uniform,scalarization[n=3],pareto[sweep=2]"})
    typed = [p.cell.balancer for p in made.cells]
    assert typed == [
        "uniform",
        "static[w=0.5:1.5]",
        "static[w=1.5:0.5]",
        "pareto[c=0.267:0.533]",
        "pareto[c=0.533:0.267]",
    ]
    again = plan({"models": "mmoe", "balancers": "static[w=0.5:1.5]"})
    assert again.cells[0].cell.key == made.cells[1].cell.key


def test_gradients_of_several_batches_need_parameters(plan):
    for name in ("moco", "db-mtl", "excessmtl", "sdmgrad"):
        with pytest.raises(UsageError, match="compares gradients"):
            plan({"models": "mmoe", "balancers": name}, "scope=representation")
    assert plan({"models": "mmoe", "balancers": "mgda"}, "scope=representation").cells


def test_wildcards(plan):
    made = plan({"models": "?moe[experts=4]", "balancers": "uniform"})
    assert {"mmoe[experts=4]", "omoe[experts=4]"} <= {p.cell.model for p in made.cells}
    every = plan({"models": "shared-bottom", "balancers": "*"})
    balancers = {p.cell.balancer for p in every.cells}
    assert set(BALANCERS.names()) - balancers == {"scalarization"}, (
        "which is the static cells of a sweep"
    )
    assert sum(name.startswith("static[w=") for name in balancers) == 8
    with pytest.raises(UsageError, match=r"No model matches 'zz\*'"):
        plan({"models": "zz*"})


def test_models_that_share_nothing_have_no_balancer(plan):
    made = plan({"models": "single-task,mmoe", "balancers": "uniform,uwl"})
    assert names(made) == [("single-task", "none", 0), ("mmoe", "uniform", 0), ("mmoe", "uwl", 0)]


def test_states(plan, store):
    grid = {"models": "mmoe", "balancers": "uniform,uwl,dwa"}
    first, second, _ = (p.cell for p in plan(grid).cells)
    store.save(done(first))
    store.save(failure(second))
    made = plan(grid)
    assert [p.state for p in made.cells] == ["done", "failed before", "to run"]
    assert [cell.balancer for cell in made.to_run] == ["dwa"]
    again = plan(grid, retry_failed=True)
    assert [p.state for p in again.cells] == ["done", "to run", "to run"]


def test_a_record_of_other_settings_is_no_result(plan, store):
    store.save(done(plan({"models": "mmoe"}, "lr=0.5").cells[0].cell))
    assert [p.state for p in plan({"models": "mmoe"}).cells] == ["to run"]


def test_an_unreadable_record_is_run_again(plan, store):
    cell = plan({"models": "mmoe"}).cells[0].cell
    (store.save(done(cell)) / "record.json").write_text("{")
    assert [p.state for p in plan({"models": "mmoe"}).cells] == ["to run"]


def test_models_that_do_not_apply(plan, tmp_path):
    file = tmp_path / "funnel.py"
    file.write_text(INAPPLICABLE)
    made = plan({"models": f"mmoe,{file}"})
    assert names(made) == [("mmoe", "uniform", 0)]
    assert made.inapplicable == [(str(file), "synthetic has no funnel")]
    assert len(plan({"models": f"mmoe,{file}"}, force=True).cells) == 2
    with pytest.raises(UsageError, match=r"No model of this grid applies \(.*has no funnel\)"):
        plan({"models": str(file)})
    with pytest.raises(
        UsageError, match="No model of this grid applies"
    ):  # a reference alone compares nothing
        plan({"models": str(file), "references": "single-task"})


def test_a_plugin_is_known_by_its_content(plan, plugin, tmp_path):
    name = plugin(tmp_path, "mine.py")
    first = plan({"models": "mmoe", "balancers": name}).cells[0].cell
    assert first.balancer == name
    assert len(first.resolved["balancer"]["source_sha256"]) == 64
    plugin(tmp_path, "mine.py", "return 2 * step.active.to(step.losses.dtype)")
    assert plan({"models": "mmoe", "balancers": name}).cells[0].cell.key != first.key


def test_options_for_all_go_to_those_that_have_them(plan):
    made = plan(
        {"models": "mmoe,shared-bottom", "balancers": "uniform,gradnorm"},
        "experts=3",
        "balancer.alpha=0.5",
    )
    options = {p.cell.model: p.cell.resolved["model"]["options"] for p in made.cells}
    assert options["mmoe"]["experts"] == 3
    assert "experts" not in options["shared-bottom"]
    balancers = {p.cell.balancer: p.cell.resolved["balancer"]["options"] for p in made.cells}
    assert balancers["gradnorm"]["alpha"] == 0.5
    assert balancers["uniform"] == {}
    bracketed = plan({"models": "mmoe[experts=5],mmoe"}, "experts=3").cells
    assert [p.cell.resolved["model"]["options"]["experts"] for p in bracketed] == [5, 3]


@pytest.mark.parametrize(
    ("settings", "items", "message"),
    [
        ({"models": "mmo"}, [], "There is no model called 'mmo'. Did you mean mmoe"),
        ({"models": "MMoE"}, [], "There is no model called 'MMoE'. Did you mean mmoe?"),
        (
            {"models": "mmoe", "balancers": "PCGrad"},
            [],
            "There is no balancer called 'PCGrad'. Did you mean pcgrad?",
        ),
        (
            {"models": "mmoe"},
            ["Experts=4"],
            "No setting and no option of a model in this grid is called 'Experts'. "
            "Did you mean experts?",
        ),
        (
            {"models": "mmoe"},
            ["LR=1"],
            "No setting and no option of a model in this grid is called 'LR'. Did you mean lr?",
        ),
        ({"models": "mmoe[experts=4,experts=5]"}, [], "The option 'experts' is given twice in"),
        (
            {"models": "mmoe[experts=true]"},
            [],
            "The option 'experts' of the model mmoe cannot be True: true and false are no numbers",
        ),
        (
            {"models": "mmoe", "balancers": "scalarization[n=10000000]"},
            [],
            "The option 'n' of the balancer scalarization cannot be 10000000",
        ),
        (
            {"models": "mmoe", "balancers": "pareto[sweep=10000000]"},
            [],
            "The option 'sweep' of the balancer pareto cannot be 10000000",
        ),
        (
            {"models": "mmoe", "balancers": "uwll"},
            [],
            "There is no balancer called 'uwll'. Did you mean uwl",
        ),
        (
            {"models": "mmoe[expert=4]"},
            [],
            "The model mmoe has no option 'expert'. Did you mean experts?",
        ),
        ({"models": "mmoe[experts=0]"}, [], "The option 'experts' of the model mmoe cannot be 0"),
        (
            {"models": "mmoe", "balancers": "uniform[a=1]"},
            [],
            "The balancer uniform has no option 'a'.",
        ),
        (
            {"models": "mmoe", "balancers": "static[w=1:2:3]"},
            [],
            "static needs one positive weight for each",
        ),
        (
            {"models": "mmoe"},
            ["alpha=1"],
            "No setting and no option of a model in this grid is called 'alpha'.",
        ),
        ({"models": "mmoe"}, ["balancer.alpha=1"], "No setting and no option of a balancer"),
        (
            {"models": "mmoe"},
            ["tower.zz=4"],
            "mmoe names the task 'zz', which the data set does not have.",
        ),
        ({"models": "mmoe"}, ["embedding_dims.x1=4"], "mmoe names the embedded feature 'x1'"),
        (
            {"models": "dbmtl[parents.task-1=zz]"},
            [],
            "dbmtl names the task 'zz', which the data set does not have.",
        ),
        (
            {"models": "home[groups.task-1=a]"},
            [],
            "The groups of home must name a group for each task",
        ),
        ({"models": "mmoe"}, ["select=zz"], "There is no task 'zz' in this data set."),
        (
            {"models": "mmoe"},
            ["select=gauc"],
            "gauc needs rows grouped by user or session, which synthetic does not have.",
        ),
        ({"models": "mmoe"}, ["metrics=rmse"], "rmse needs a regression task; synthetic has none."),
        ({"models": "mmoe"}, ["metrics=auc,auk"], "There is no metric 'auk'."),
        ({"models": "mmoe"}, ["task_weights.zz=2"], "There is no task 'zz' in this data set."),
        ({"models": ""}, [], "The option 'models' of the grid cannot be '': it names nothing"),
        (
            {"models": "mmoe", "balancers": "scalarization[n=1000],*", "seeds": 9999},
            [],
            "This grid has ",
        ),
    ],
    ids=str,
)
def test_errors_are_found_before_anything_runs(plan, settings, items, message):
    with pytest.raises(UsageError) as caught:
        plan(settings, *items)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "items"),
    [
        ({"models": "mmoe", "balancers": "static[w=1:2:3]"}, []),
        ({"models": "mmoe", "balancers": "pareto[c=2]"}, []),
        ({"models": "mmoe", "balancers": "pareto[c=0.1,sweep=3]"}, []),
        ({"models": "mmoe", "balancers": "moco"}, ["scope=representation"]),
        ({"models": "mmoe[cvr=clicked]"}, []),
        ({"models": "home[groups.task-1=a]"}, []),
    ],
    ids=str,
)
def test_hints_are_commands_that_work(plan, settings, items):
    with pytest.raises(UsageError) as caught:
        plan(settings, *items)
    program, command, *words = shlex.split(caught.value.hint)
    assert (program, command) == ("mtlkit", "bench")
    given = dict(zip(words[::2], words[1::2], strict=True))
    assigned = [given.pop("--set")] if "--set" in given else []
    changed = {option.removeprefix("--"): value for option, value in given.items()}
    assert plan({"models": "mmoe"} | changed, *assigned).cells


def test_what_names_an_existing_task_is_fine(plan):
    made = plan({"models": "mmoe"}, "tower.task-1=4", "select=task-2", "task_weights.task-1=2")
    assert made.cells[0].cell.resolved["model"]["options"]["tower"] == {"task-1": [4]}


def test_finished_runs_without_a_metric_are_told_and_not_run_again(plan, store):
    small = ({"models": "mmoe"}, "batch_size=200")
    run = done(plan(*small).cells[0].cell)
    measured = {"test": {"task-1": {"auc": 0.5, "logloss": None}}}
    store.save(run.model_copy(update={"metrics": measured}))
    assert plan(*small, "metrics=logloss").notes == ()
    made = plan(*small, "metrics=f1@0.3,logloss")
    assert not made.to_run
    (note,) = made.notes
    assert note.startswith("some finished runs were not measured by f1@0.3, and are not run again")


def test_pairs_of_tasks_are_ordinary_cells(home, tmp_path):
    source, dataset = prepare(THREE_TASKS, home)
    store = ResultStore(tmp_path)
    flags = {"dataset": THREE_TASKS, "models": "mmoe", "seeds": 2, "balancers": "uwl"}
    settings = read_grid(None, flags, ["task_weights.task-1=2", "experts=3"])
    plan = make_plan(settings, source, dataset, store)
    paired = with_pairs(plan, settings, source, dataset, store)
    assert paired.cells[: len(plan.cells)] == plan.cells
    added = [planned.cell for planned in paired.cells[len(plan.cells) :]]
    assert len(added) == 3 * 2
    assert "3 pairs of tasks alone, 6 cells" in paired.notes[-1]

    # what a grid of the two tasks plans
    pair = read_grid(
        None,
        flags | {"tasks": "task-1,task-2", "balancers": "uniform"},
        ["task_weights.task-1=2", "experts=3"],
    )
    alone = make_plan(pair, source, dataset.select(("task-1", "task-2")), store)
    keys = {planned.cell.key for planned in alone.cells if planned.cell.model == "mmoe"}
    assert keys < {cell.key for cell in added}


def test_two_tasks_are_a_pair_already(home, tmp_path):
    data = THREE_TASKS.replace("tasks=3", "tasks=2")
    source, dataset = prepare(data, home)
    settings = read_grid(None, {"dataset": data, "models": "mmoe", "seeds": 2}, [])
    plan = make_plan(settings, source, dataset, ResultStore(tmp_path))
    paired = with_pairs(plan, settings, source, dataset, ResultStore(tmp_path))
    assert paired.cells == plan.cells


def test_too_many_pairs_are_refused(home, tmp_path):
    source, dataset = prepare(THREE_TASKS, home)
    settings = read_grid(None, {"dataset": THREE_TASKS, "models": "mmoe", "seeds": 200}, [])
    plan = make_plan(settings, source, dataset, ResultStore(tmp_path))
    with pytest.raises(UsageError, match="3 pairs, which are 600 cells"):
        with_pairs(plan, settings, source, dataset, ResultStore(tmp_path))


@pytest.mark.parametrize(
    ("item", "message", "hint"),
    [
        (
            "select=task-3:logloss",
            "select=task-3:logloss goes by a task",
            "--set select=mean:logloss",
        ),
        ("select=task-1", "select=task-1 goes by a task", "--set select=mean"),
        (
            "row_weights.task-1.indicator=task-2",
            "The rows of task-1 are weighted by task-2",
            "--tasks task-1,task-2",
        ),
    ],
)
def test_pairs_without_a_task_that_is_needed_are_refused(home, tmp_path, item, message, hint):
    source, dataset = prepare(THREE_TASKS, home)
    store = ResultStore(tmp_path)
    settings = read_grid(None, {"dataset": THREE_TASKS, "models": "mmoe", "seeds": 1}, [item])
    plan = make_plan(settings, source, dataset, store)
    with pytest.raises(UsageError, match=message) as caught:
        with_pairs(plan, settings, source, dataset, store)
    assert caught.value.hint == f"mtlkit bench --relations {hint}"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("select=logloss", "no binary or multiclass task is there to select by logloss"),
        ("metrics=ece", "ece needs a binary task; synthetic has none"),
    ],
)
def test_pairs_without_the_kind_of_a_metric_are_refused(home, tmp_path, item, message):
    data = THREE_TASKS.replace("tasks=3", "tasks=4,kind=mixed")
    source, dataset = prepare(data, home)
    store = ResultStore(tmp_path)
    settings = read_grid(None, {"dataset": data, "models": "mmoe", "seeds": 1}, [item])
    plan = make_plan(settings, source, dataset, store)
    with pytest.raises(UsageError, match=f"trains task-2 and task-4 alone, .* wrong: {message}"):
        with_pairs(plan, settings, source, dataset, store)

    # a grid of such tasks alone, tuned or not, is refused in the same words
    alone = settings.model_copy(update={"tune": TuningSettings(trials=2)})
    for planned in (make_plan, Tuning):
        with pytest.raises(UsageError, match=f"(?i){message}"):
            planned(alone, source, dataset.select(("task-2", "task-4")), store)


def test_a_task_that_is_not_trained_is_in_no_pair(home, tmp_path):
    source, dataset = prepare(THREE_TASKS, home)
    store = ResultStore(tmp_path)
    flags = {"dataset": THREE_TASKS, "models": "mmoe", "seeds": 1}
    settings = read_grid(None, flags, ["scored_by.task-2=task-1"])
    plan = make_plan(settings, source, dataset, store)
    added = with_pairs(plan, settings, source, dataset, store).cells[len(plan.cells) :]
    tasks = [planned.cell.resolved["dataset"]["tasks"] for planned in added]
    assert tasks == [["task-1", "task-3"]]


REFUSED_BY_PROCESSES = {
    "batch norm": ({"models": "mmoe,shared-bottom[norm=batch]"}, (), "The batch norm "),
    "session losses": ({}, ("loss.click=bce,jrc",), "A loss compares the rows of a session"),
    "scope": (
        {"models": "ple", "balancers": "uniform,graddrop"},
        ("scope=representation",),
        "The balancer asks for the representation",
    ),
    "batch size": ({}, ("batch_size=1",), "A batch of 1 rows"),
}


@pytest.mark.parametrize("what", REFUSED_BY_PROCESSES)
def test_what_processes_cannot_train_is_refused_before_anything_runs(plan, tmp_path, what):
    grid, assignments, message = REFUSED_BY_PROCESSES[what]
    grid = {"models": "mmoe"} | grid
    dataset = sessions(tmp_path) if what == "session losses" else DATA
    plan(grid, *assignments, dataset=dataset)
    with pytest.raises(UsageError, match=message) as caught:
        plan(grid, *assignments, "processes=2", dataset=dataset)
    assert "--processes 1" in caught.value.hint
    assert re.match(r"[a-z-]+\S* under [a-z]+: ", caught.value.message)


def sessions(folder):
    """A table of rows in sessions."""
    rng = np.random.default_rng(0)
    lines = ["session_id,item_id,click,buy"]
    lines += [f"{row // 4},{rng.integers(9)},{rng.integers(2)},{row % 2}" for row in range(400)]
    file = folder / "visits.csv"
    file.write_text("\n".join(lines) + "\n")
    return f"{file}[labels=click:buy]"


def test_what_processes_can_train_is_planned_as_ever(plan, tmp_path):
    grid = {"models": "mmoe,logistic", "references": "single-task", "seeds": 2}
    grid |= {"balancers": "uniform,uwl,pcgrad"}
    assert plan(grid, "processes=2").to_run == plan(grid).to_run

    # what is wrong with a cell alone is told by the cell
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    assert len(plan({"models": str(broken)}, "processes=2").to_run) == 1


BROKEN = '''"""Broken: it cannot be built."""
from mtlkit.models.shared_bottom import SharedBottom


class Broken(SharedBottom):
    def forward(self, batch):
        raise RuntimeError("broken")
'''
