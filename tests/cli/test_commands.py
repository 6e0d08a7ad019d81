"""The commands that are printed, as the command line reads them: they give the grid or the cell that
they were printed for, of which nothing runs again.
"""

import json
import shlex

import pytest

from mtlkit.commands import command_of
from mtlkit.data.sources import prepare
from mtlkit.grid.plan import make_plan
from mtlkit.grid.tuning import Tuning
from mtlkit.records import Cell
from mtlkit.report.findings import gather
from mtlkit.report.frame import load
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from mtlkit.studies import Study
from tests.conftest import DATA
from tests.fakes import cell
from tests.grid.test_tuning import Planted, noise, studies_of

SPACE = """
tune:
  space:
    epochs: {int: [1, 3]}
    l2_dense: null
    lr: {log: [1e-4, 1.0e-2]}
    dropout: {choice: [0.125]}
    mmoe: {experts: {choice: [3, 5]}, hidden: {choice: [[8], [8, 4]]}, gate_bias: {choice: [true]}}
    uwl: {lr: {float: [0.5, 0.6]}}
"""
BY_TASK = (
    "loss.task-1=bce,focal[gamma=2]",
    "loss.task-2=focal",
    "task_weights.task-2=2",
    "row_weights.task-2.indicator=task-1",
    "row_weights.task-2.outside=0.5",
    "select=task-1:logloss",
    "tower.task-1=4",
    "tower.task-2=8:4",
)
FORMS = {
    "nothing": "",
    "training": "--lr 0.01 --epochs 2.5 --seeds 0,5 --set warmup=0 --set clip_norm=1",
    "options": "--set dropout=0.25 --set bottom=16:8 --set experts=3 --set balancer.lr=0.02",
    "no references": "--references none --set bottom=16",
    "options of baselines": "--references single-task,base-rate,tree --set iterations=20",
    "brackets": "--models mmoe[experts=3,hidden=8:4],shared-bottom",
    "tasks": " ".join(f"--set {assignment}" for assignment in BY_TASK),
    "a hidden task": "--set auxiliary=task-2",
    "seeds and seed": "--tune 4 --set tune.seeds=2 --set tune.seed=7 --set tune.halving=3",
    "training rows": "--tune 15krows --set tune.seed=3",
    "optuna": "--tune 11 --set tune.sampler=optuna --models shared-bottom",
    "ranges": "--tune 4 --lr 0.01 --set tune.space.lr.log=0.001:0.03 --set tune.space.l2_dense=none"
    " --epochs 2 --set tune.space.epochs.int=1:4 --set tune.space.mmoe.experts.choice=2:4",
    "a file": "GRID --tune 4 --epochs 2",
    "tuned options": "--tune 4 --set dropout=0.25 --set bottom=16 --set balancer.lr=0.02",
    "tuned by task": "--tune 4 " + " ".join(f"--set {assignment}" for assignment in BY_TASK),
    "forced": "--models esmm,aitm,mmoe --force",
    "tuned and forced": "--models esmm,aitm --force --tune 3",
}


@pytest.fixture
def read(cli, monkeypatch):
    """The grid of a command, and what else it asks for, without running it."""

    def read(words):
        caught = []
        monkeypatch.setattr("mtlkit.cli.bench._run", lambda *grid: caught.append(grid) or 0)
        said = cli(*words)
        assert said.code == 0, said.err
        return caught[0]

    return read


def run(settings, how, home):
    """The cells of a grid, and those that had to run, by records of planted scores."""
    source, dataset = prepare(settings.dataset, home)
    if settings.tasks:
        dataset = dataset.select(settings.tasks)
    store = ResultStore(settings.out)
    planted, given = Planted(store, noise), (settings, source, dataset, store)
    if settings.tune.budget is None:
        plan = make_plan(*given, force=how.force)
    else:
        plan = Tuning(*given, force=how.force).run_trials(planted)
    planted(plan)
    return {planned.cell.key for planned in plan.cells}, planted.ran


def evidence(root):
    frames = load(ResultStore(root))
    [block] = frames.blocks
    return gather(frames, summarise(frames, block), {}, root)


@pytest.fixture
def grid(read, home, tmp_path):
    """Runs a grid of a typed form; what a report reads of it."""

    def make(form):
        if "optuna" in form:
            pytest.importorskip("optuna")
        (tmp_path / "grid.yaml").write_text(SPACE)
        words = form.replace("GRID", str(tmp_path / "grid.yaml")).split()
        usual = ["-d", DATA, "--seeds", "2", "--balancers", "uniform,uwl"]
        usual += [] if "--models" in words else ["--models", "mmoe,shared-bottom"]
        out = tmp_path / "results"
        keys, ran = run(*read(["bench", *usual, *words, "--out", out]), home)
        assert ran
        return evidence(out), keys

    return make


@pytest.mark.parametrize("form", FORMS)
def test_a_command_gives_the_grid_of_its_row(grid, read, home, form):
    seen, keys = grid(FORMS[form])
    studies = studies_of(ResultStore(seen.out))
    rows = [row for row in seen.summary.rows if not row.reference_of]
    assert len(rows) >= 2
    for row in rows:
        command = shlex.split(seen.bench(row))
        planned, ran = run(*read(command[1:]), home)
        assert ran == [], (command, "runs again")
        records = [record for record, _ in ResultStore(seen.out).scan()]
        of_row = {run.key for run in records if run.group == row.group.id}
        of_row -= {key for study in row.group.studies for t in study.trials for key in t.keys}
        assert of_row <= planned <= keys
        assert ("--force" in command) == ("forced" in form and row.group.typed[0] != "mmoe")
    assert studies_of(ResultStore(seen.out)) == studies


@pytest.mark.parametrize("form", FORMS)
def test_a_command_gives_one_cell(grid, read, home, form):
    seen, _ = grid(FORMS[form])
    for record, _ in ResultStore(seen.out).scan():
        command = shlex.split(command_of(record.cell))
        planned, ran = run(*read([*command[1:], "--out", seen.out]), home)
        assert (planned, ran) == ({record.key}, []), command


@pytest.mark.parametrize("form", ["options", "ranges", "a file", "tuned options"])
def test_with_other_methods_it_says_what_these_know(grid, read, home, form):
    seen, _ = grid(FORMS[form])
    [row] = [row for row in seen.summary.rows if row.group.label == "mmoe + uwl"]
    settings, how = read(shlex.split(seen.bench(row, models="ple,stem", balancers="pcgrad"))[1:])
    run(settings, how, home)
    assert settings.model.get("dropout") == (0.25 if "options" in form else None)
    assert "experts" not in settings.model


def test_a_setting_that_is_advised_is_tuned_no_more(grid, read):
    seen, _ = grid(FORMS["a file"])
    [row] = [row for row in seen.summary.rows if row.group.label == "mmoe + uwl"]
    settings, _ = read(shlex.split(seen.bench(row, "dropout=0.3", "epochs=9"))[1:])
    assert (settings.model["dropout"], settings.training.epochs) == (0.3, 9)
    assert not {"dropout", "epochs"} & settings.tune.space.keys()
    assert settings.tune.space["lr"] == {"log": ["1e-4", 0.01]}  # as YAML reads it


def test_an_option_of_a_model_that_is_advised_is_tuned_no_more(grid, read):
    seen, _ = grid(FORMS["a file"])
    [row] = [row for row in seen.summary.rows if row.group.label == "mmoe + uwl"]
    settings, _ = read(shlex.split(seen.bench(row, models="mmoe[experts=2]"))[1:])
    assert settings.tune.space["mmoe"].keys() == {"hidden", "gate_bias"}


def test_a_hint_that_follows_a_hint_keeps_both(grid, read, home):
    seen, _ = grid("--tune 4 --set tune.seed=7")
    [row] = [row for row in seen.summary.rows if row.group.label == "mmoe + uwl"]
    wider = "tune.space.lr.log=0.001:0.1"
    run(*read(shlex.split(seen.bench(row, wider))[1:]), home)
    seen = evidence(seen.out)
    by_space = [row for row in seen.summary.rows if row.group.study.space["lr"]["log"][1] == 0.1]
    assert by_space
    for row in by_space:
        settings, _ = read(shlex.split(seen.bench(row, seeds=9))[1:])
        assert settings.tune.space == {"lr": {"log": [0.001, 0.1]}}
        assert (settings.tune.seed, len(settings.seeds)) == (7, 9)


def test_a_setting_that_is_advised_wins_over_brackets(grid, read):
    seen, _ = grid("--models mmoe[dropout=0.1,experts=3]")
    [row] = [row for row in seen.summary.rows if row.group.balancer == "uwl"]
    settings, _ = read(shlex.split(seen.bench(row, "dropout=0.3"))[1:])
    assert settings.models == ("mmoe[experts=3]",)
    assert settings.model == {"dropout": 0.3}


@pytest.mark.parametrize("tune", ["", " --tune 3"])
def test_a_row_that_starts_from_a_run_names_its_folder(grid, read, home, tune):
    store = ResultStore(grid("--models mmoe --references none")[0].out)
    folder = next(path for _, path in store.scan())
    (folder / "weights.npz").touch()
    form = f"--models mmoe,shared-bottom --set bottom=16 --freeze towers.* --init-from {folder}"
    seen, _ = grid(form + tune)
    rows = [row for row in seen.summary.rows if row.group.resolved["training"]["init_from"]]
    assert len(rows) == 4
    for row in rows:
        _, ran = run(*read(shlex.split(seen.bench(row))[1:]), home)
        assert ran == []
    for record, _ in store.scan():
        words = [*shlex.split(command_of(record.cell))[1:], "--out", store.root]
        assert run(*read(words), home) == ({record.key}, [])
    settings, _ = read(shlex.split(seen.bench(rows[0], models="ple"))[1:])
    assert (settings.execution.init_from, settings.training.freeze) == (None, ())

    # what an earlier version wrote does not say where that folder was
    for path in (path for _, path in store.scan()):
        forget(path)
    for path in (store.root / "studies").glob("*"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"typed": None}))
    for row in evidence(store.root).summary.rows:
        started = bool(row.group.resolved["training"]["init_from"])
        assert ("--init-from RUN" in evidence(store.root).bench(row)) == started


def forget(folder):
    """Make the record in a folder one of before cells said what a command needs."""
    written = json.loads((folder / "record.json").read_text())
    del written["cell"]["common"], written["cell"]["forced"]
    (folder / "record.json").write_text(json.dumps(written))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_row_of_two_versions_says_what_the_later_one_knows(grid, read, home, seed):
    seen, _ = grid("--models esmm --force --set dropout=0.25")
    for record, path in ResultStore(seen.out).scan():
        if record.cell.seed == seed:
            forget(path)
    seen = evidence(seen.out)
    for row in seen.summary.rows:
        assert run(*read(shlex.split(seen.bench(row))[1:]), home)[1] == []


def test_what_a_command_needs_is_no_part_of_a_key():
    plain = cell()
    told = plain.model_copy(update={"common": {"model.dropout": 0.1}, "forced": True})
    assert Cell.model_validate(told.model_dump()).key == plain.key
    written = json.loads(plain.model_dump_json())
    del written["common"], written["forced"]
    assert Cell.model_validate(written) == plain


def test_a_study_of_an_earlier_version_says_what_it_knows(grid, read):
    seen, _ = grid("--tune 4 --lr 0.01 --set tune.seeds=2 --set tune.seed=7")
    for file in (seen.out / "studies").glob("*.json"):
        study = Study.model_validate_json(file.read_bytes())
        file.write_text(study.model_copy(update={"typed": None}).model_dump_json())
    for row in evidence(seen.out).summary.rows:
        settings, _ = read(shlex.split(evidence(seen.out).bench(row))[1:])
        assert (settings.tune.trials, settings.tune.seeds, settings.tune.seed) == (4, 2, 7)
        assert settings.training.lr == 0.01
