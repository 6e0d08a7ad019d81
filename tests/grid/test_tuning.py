"""Tuned grids, with records of a planted score instead of training."""

import contextlib
import copy
import json

import numpy as np
import pytest

from mtlkit.data.sources import prepare
from mtlkit.errors import MtlkitError, UsageError
from mtlkit.grid.grid_settings import read_budget, read_grid, with_dataset
from mtlkit.grid.plan import make_plan
from mtlkit.grid.tuning import FIRST_SEED, Tuning
from mtlkit.report.frame import load
from mtlkit.report.importance import trial_points
from mtlkit.report.summary import summarise
from mtlkit.report.tuned_table import tuned_rows
from mtlkit.report.verdicts import judge
from mtlkit.settings import TrainingSettings
from mtlkit.store import ResultStore
from mtlkit.studies import Study, read_study
from tests.conftest import DATA
from tests.fakes import failure, record

GRID = {"models": "shared-bottom,mmoe", "balancers": "uniform,uwl", "seeds": 2}
DEFAULT_LR = TrainingSettings().lr


class Planted:
    """Runs cells by writing records.

    Args:
        store: Where to.
        score: A cell to its score on validation; NaN for a failure.
        test: A cell to its score on test; as on validation by default.
        stop: The number of records after which it is interrupted.
    """

    def __init__(self, store, score=lambda cell: 0.5, test=None, stop=None):
        self.store, self.score, self.test, self.stop = store, score, test or score, stop
        self.ran = []

    def __call__(self, plan):
        for cell in plan.to_run:
            if self.stop is not None and len(self.ran) == self.stop:
                raise KeyboardInterrupt
            self.ran.append(cell.key)
            self.store.save(self.outcome(cell))

    def outcome(self, cell):
        value = self.score(cell)
        if np.isnan(value):
            return failure(cell)
        made = record(cell)
        metrics = copy.deepcopy(made.metrics)
        for split, number in (("validation", value), ("test", self.test(cell))):
            for task in metrics[split].values():
                task["auc"] = number
        best = {name: point | {"value": value} for name, point in made.best.items()}
        timing = made.timing | {"total_seconds": 2.0}
        cost = made.cost | {"steps": 3}
        return made.model_copy(
            update={"metrics": metrics, "best": best, "timing": timing, "cost": cost}
        )


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


@pytest.fixture
def tuning(home, store):
    """A tuned grid of given settings: two models under two balancers by four trials."""

    def make(settings=None, *assignments, tune=None, **how):
        given = {"dataset": DATA} | GRID | (settings or {}) | {"tune": {"trials": 4} | (tune or {})}
        grid = with_dataset(read_grid(None, given, list(assignments)), DATA)
        return Tuning(grid, *prepare(DATA, home), store, **how)

    return make


def trials(tuned):
    """Model and balancer to the settings of all trials."""
    tuned.next_trials()
    return {
        (str(search.model), str(search.balancer)): [c.settings for c in search.candidates]
        for search in tuned.searches
    }


def noise(cell):
    """A score that follows from the cell alone."""
    return 0.9 + int(cell.key[:6], 16) / 2**30


# --- the trials


def test_every_model_under_every_balancer_has_the_same_budget(tuning):
    found = trials(tuning())
    assert list(found) == [
        ("single-task", "none"),
        ("shared-bottom", "uniform"),
        ("shared-bottom", "uwl"),
        ("mmoe", "uniform"),
        ("mmoe", "uwl"),
    ]
    assert {len(points) for points in found.values()} == {4}


def test_the_points_of_all_methods_are_the_same_where_they_share_dimensions(tuning):
    found = list(trials(tuning()).values())
    shared = {"lr", "embedding_lr", "l2_dense", "l2_embedding", "embedding", "dropout"}
    for number in range(4):
        points = [{name: points[number].get(name) for name in shared} for points in found]
        assert all(point == points[0] for point in points)
    # and those of a model under every balancer
    by_pair = trials(tuning())
    for number in range(4):
        plain, under_uwl = (by_pair["mmoe", name][number] for name in ("uniform", "uwl"))
        assert plain == {name: v for name, v in under_uwl.items() if name != "uwl.lr"}


def test_the_first_trial_is_what_would_run_untuned(tuning, home, store):
    tuned = tuning()
    grid = read_grid(None, {"dataset": DATA} | GRID | {"seeds": f"{FIRST_SEED},"}, [])
    untuned = make_plan(grid, *prepare(DATA, home), store)
    cells = tuned.next_trials().cells[: len(untuned.cells)]
    assert [entry.cell.key for entry in cells] == [entry.cell.key for entry in untuned.cells]
    assert all(search.candidates[0].settings == {} for search in tuned.searches)


def test_a_trial_is_the_cell_that_would_be_typed(tuning, home, store):
    tuned = tuning()
    tuned.next_trials()
    search = tuned.searches[-1]
    candidate = search.candidates[2]
    settings = dict(candidate.settings)
    model = f"mmoe[experts={settings.pop('mmoe.experts')},hidden="
    model += ":".join(map(str, settings.pop("mmoe.hidden"))) + "]"
    grid = read_grid(
        None,
        {
            "dataset": DATA,
            "models": model,
            "balancers": f"uwl[lr={settings.pop('uwl.lr')}]",
            "references": [],
            "seeds": f"{FIRST_SEED},",
        },
        [f"{name}={value}" for name, value in settings.items()],
    )
    [typed] = make_plan(grid, *prepare(DATA, home), store).to_run
    assert [typed.key] == [cell.key for cell in candidate.cells]
    assert store.folder(typed) == store.folder(candidate.cells[0])


def test_trials_follow_from_the_settings(tuning):
    assert trials(tuning()) == trials(tuning())
    assert trials(tuning(tune={"seed": 1})) != trials(tuning())


def test_a_larger_budget_begins_with_the_same_trials(tuning):
    small, large = trials(tuning()), trials(tuning(tune={"trials": 11}))
    assert {pair: points[:4] for pair, points in large.items()} == small


def test_seeds_of_trials_are_never_reported(tuning):
    tuned = tuning({"seeds": f"0,{FIRST_SEED},{FIRST_SEED + 2}"}, tune={"seeds": 3})
    assert tuned.seeds == (FIRST_SEED + 1, FIRST_SEED + 3, FIRST_SEED + 4)


def test_what_was_set_stays_as_it_was_set(tuning):
    found = trials(tuning({"models": "mmoe[experts=3],shared-bottom"}, "lr=0.5", "dropout=0.25"))
    for point in found["mmoe[experts=3]", "uwl"] + found["shared-bottom", "uwl"]:
        assert not {"lr", "dropout", "mmoe.experts"} & point.keys()


def test_a_setting_that_has_its_default_is_tuned(tuning):
    assert "lr" in trials(tuning(None, f"lr={DEFAULT_LR}"))["mmoe", "uwl"][1]


def test_a_space_of_the_user(tuning):
    space = {
        "lr": None,
        "epochs": {"int": [1, 3]},
        "dropout": {"choice": [0.125]},
        "mmoe": {"experts": {"int": [20, 30]}, "gate_bias": {"choice": [True]}, "hidden": None},
        "uwl": {"lr": {"float": [0.5, 0.6]}},
    }
    found = trials(tuning(None, "dropout=0.5", tune={"space": space}))
    for pair, points in found.items():
        for point in points[1:]:
            assert "lr" not in point
            assert 1 <= point["epochs"] <= 3
            assert point["dropout"] == 0.125
            if pair[0] == "mmoe":
                assert 20 <= point["mmoe.experts"] <= 30
                assert point["mmoe.gate_bias"] is True
                assert "mmoe.hidden" not in point
            assert ("uwl.lr" in point) == (pair[1] == "uwl")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rate": {"log": [1e-4, 1]}}, "is called 'learning_rate'"),
        ({"drop_out": None}, "is called 'drop_out'. Did you mean dropout"),
        ({"mmoe": {"expert": {"int": [1, 2]}}}, "is called 'mmoe.expert'"),
        ({"ple": {"levels": {"int": [1, 2]}}}, "is called 'ple'"),
    ],
)
def test_unknown_dimensions(tuning, space, message):
    with pytest.raises(UsageError, match=message) as caught:
        tuning(tune={"space": space})
    assert caught.value.hint


@pytest.mark.parametrize("name", ["dropout", "warmup"])
def test_a_value_that_does_not_fit(tuning, name):
    with pytest.raises(UsageError, match=name):
        tuning(tune={"space": {name: {"float": [2, 3]}}}).next_trials()


def test_too_many_trials(tuning):
    with pytest.raises(UsageError, match="but the most is"):
        tuning(tune={"trials": 10_000, "seeds": 100})


def test_equal_points_of_a_small_space_are_one_cell(tuning, store):
    names = ["lr", "embedding_lr", "l2_dense", "l2_embedding", "embedding"]
    space = dict.fromkeys(names) | {"dropout": {"choice": [0.25, 0.5]}}
    tuned = tuning(
        {"models": "shared-bottom", "references": [], "balancers": "uniform"},
        "bottom=4",
        tune={"trials": 30, "space": space},
    )
    run = Planted(store, noise)
    tuned.run_trials(run)
    assert len(run.ran) == len(set(run.ran)) == 3


# --- the choice


def test_the_choice_is_made_on_validation(tuning, store):
    def validation(cell):
        return 0.9 if cell.resolved["model"]["options"]["dropout"] > 0.25 else 0.8

    def on_test(cell):
        return 1.7 - validation(cell)

    chosen = tuning().run_trials(Planted(store, validation, on_test))
    assert len(chosen.cells) == 10
    assert {entry.cell.seed for entry in chosen.cells} == {0, 1}
    for entry in chosen.cells:
        assert entry.cell.resolved["model"]["options"]["dropout"] > 0.25


def test_by_the_rule_of_the_settings(tuning, store):
    """The rule names a task; the mean over tasks says otherwise."""

    class ByTask(Planted):
        def outcome(self, cell):
            made = super().outcome(cell)
            high = cell.resolved["model"]["options"]["dropout"] > 0.25
            values = {"task-1": 0.6 if high else 0.5, "task-2": 0.1 if high else 0.9}
            best = {name: {"value": value} for name, value in values.items()}
            return made.model_copy(update={"best": best})

    by_mean, by_task = (
        tuning({"models": "mmoe"}, f"select={rule}").run_trials(ByTask(store))
        for rule in ("mean", "task-1")
    )
    weighted = tuning({"models": "mmoe"}, "select=weighted", "select_weights.task-2=0.01")
    assert all(e.cell.resolved["model"]["options"]["dropout"] <= 0.25 for e in by_mean.cells)
    for plan in (by_task, weighted.run_trials(ByTask(store))):
        assert all(e.cell.resolved["model"]["options"]["dropout"] > 0.25 for e in plan.cells)


def test_equals_keep_the_defaults(tuning, store, home):
    chosen = tuning().run_trials(Planted(store))
    untuned = make_plan(read_grid(None, {"dataset": DATA} | GRID, []), *prepare(DATA, home), store)
    assert [e.cell.key for e in chosen.cells] == [e.cell.key for e in untuned.cells]


def test_failed_trials_are_spent_and_never_chosen(tuning, store):
    def score(cell):
        return float("nan") if cell.resolved["training"]["lr"] != DEFAULT_LR else 0.5

    run = Planted(store, score)
    tuned = tuning()
    chosen = tuned.run_trials(run)
    assert len(run.ran) == 5 * 4
    assert {entry.cell.resolved["training"]["lr"] for entry in chosen.cells} == {DEFAULT_LR}
    [study, *_] = tuned.save()
    assert [trial.failed for trial in study.trials] == [0, 1, 1, 1]
    assert [trial.value for trial in study.trials] == [0.5, None, None, None]


def test_where_all_fail_the_defaults_run(tuning, store):
    chosen = tuning().run_trials(Planted(store, lambda cell: float("nan")))
    assert {entry.cell.resolved["training"]["lr"] for entry in chosen.cells} == {DEFAULT_LR}


def test_one_failed_seed_of_several_fails_the_trial(tuning, store):
    def score(cell):
        broken = cell.seed == FIRST_SEED + 1 and cell.resolved["training"]["lr"] == DEFAULT_LR
        return float("nan") if broken else 0.5

    tuned = tuning(tune={"seeds": 2})
    tuned.run_trials(Planted(store, score))
    assert [study.choice for study in tuned.save()] == [1] * 5


def test_a_method_that_is_better_by_construction_is_found(tuning, tmp_path):
    """Trials have noise; one is better by four of its deviations. Each repeat draws other noise."""
    tuned = tuning({"references": []}, tune={"trials": 12})
    tuned.next_trials()
    search = tuned.searches[0]
    found = []
    for repeat in range(60):
        best = 1 + repeat % 11
        drawn = np.random.default_rng(repeat)
        tuned.store = ResultStore(tmp_path / str(repeat))
        tuned.records = {}
        for number, candidate in enumerate(search.candidates):
            value = 0.94 + 0.0005 * drawn.normal() + (0.002 if number == best else 0)
            for cell in candidate.cells:
                tuned.store.save(Planted(tuned.store, lambda cell, v=value: v).outcome(cell))
        found.append(tuned._study(search).choice == best)
    assert np.mean(found) >= 0.95


# --- other budgets

ROWS = 3 * 1024
"""That a planted run sees; it takes two seconds."""


@pytest.mark.parametrize(
    ("tune", "count"),
    [
        ({"seconds": 5}, 3),  # trials begin at 0, 2 and 4 seconds
        ({"seconds": 4}, 2),
        ({"seconds": 0.1}, 1),
        ({"seconds": 5, "seeds": 2}, 2),
        ({"rows": 2 * ROWS}, 2),
        ({"rows": 2 * ROWS + 1}, 3),
    ],
)
def test_a_trial_that_begins_within_the_budget_runs_to_its_end(tuning, store, tune, count):
    tuned = tuning(tune={"trials": None} | tune)
    tuned.run_trials(Planted(store, noise))
    studies = tuned.save()
    assert {(study.budget, len(study.trials)) for study in studies} == {(count, count)}
    assert all(study.choice is not None for study in studies)
    by_number = small_grid(tuning, trials=count)
    for search, more in zip(by_number.searches, tuned.searches[-2:], strict=True):
        by_number.next_trials()
        points = [candidate.settings for candidate in search.candidates]
        assert points == [candidate.settings for candidate in more.candidates]


def test_a_dear_method_gets_fewer_trials(tuning, store):
    class Dear(Planted):
        def outcome(self, cell):
            made = super().outcome(cell)
            seconds = 6.0 if cell.resolved["balancer"]["name"] == "uwl" else 2.0
            return made.model_copy(update={"timing": {"total_seconds": seconds}})

    tuned = small_grid(tuning, trials=None, seconds=11)
    run_both(tuned, store, run=Dear(store, noise))
    uniform, uwl = tuned.save()
    assert (uniform.budget, uwl.budget) == (6, 2)
    [note] = rows(store)[0].block.budget
    assert "of 2 to 6 trials that began within 11 s, and seeds" in note
    assert "not equal" not in note


def test_a_failed_trial_costs_as_much_as_the_others(tuning, store):
    tuned = small_grid(tuning, trials=None, seconds=7)
    tuned.run_trials(Planted(store, lambda cell: 0.5 if is_default(cell) else np.nan))
    assert [len(study.trials) for study in tuned.save()] == [4, 4]


def test_where_nothing_but_failures_comes_the_budget_ends(tuning, store):
    tuned = small_grid(tuning, trials=None, seconds=7)
    chosen = tuned.run_trials(Planted(store, lambda cell: np.nan))
    assert [len(study.trials) for study in tuned.save()] == [10, 10]
    assert all(is_default(entry.cell) for entry in chosen.cells)


def is_default(cell):
    return cell.resolved["training"]["lr"] == DEFAULT_LR


def test_one_budget(tuning):
    for tune in ({"seconds": 5}, {"trials": None, "seconds": 5, "rows": 5}):
        with pytest.raises(UsageError, match=r"choose one of (trials|seconds) and (seconds|rows)"):
            tuning(tune=tune)
    for tune in ({"trials": None, "seconds": 5}, {"sampler": "optuna"}):
        with pytest.raises(UsageError, match="halving needs a number of trials, and sampler"):
            tuning(tune=tune | {"halving": 3})


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("20", ("trials", 20)),
        ("90s", ("seconds", 90)),
        ("1.5h", ("seconds", 5400)),
        ("20Mrows", ("rows", 20e6)),
        ("2e7rows", ("rows", 2e7)),
        ("500krows", ("rows", 5e5)),
    ],
)
def test_budgets_as_typed(tmp_path, text, budget):
    file = tmp_path / "grid.yaml"
    file.write_text("tune: {trials: 3, seed: 5}")
    tune = read_grid(file, {"tune": read_budget(text)}, []).tune
    assert (tune.budget, tune.seed) == (budget, 5)


# --- halving


def by_rate(cell):
    return 0.5 + cell.resolved["training"]["lr"]


def test_the_best_third_goes_on_to_three_times_the_rows(tuning, store):
    tuned = small_grid(tuning, trials=12, halving=3)
    run = Planted(store, by_rate)
    chosen = tuned.run_trials(run)
    assert len(run.ran) == len(set(run.ran)) == 2 * (12 + 4 + 2)
    for study in tuned.save():
        rates = [trial.settings.get("lr", DEFAULT_LR) for trial in study.trials]
        best = sorted(range(12), key=lambda number: -rates[number])
        reached = [len(trial.rungs) for trial in study.trials]
        assert reached == [3 if n in best[:2] else 2 if n in best[:4] else 1 for n in range(12)]
        assert study.choice == best[0]
        [*ladder] = study.trials[best[0]].rungs
        assert [rung.epochs for rung in ladder] == [0.6667, 2, 6]
        assert [rung.value for rung in ladder] == [study.trials[best[0]].value] * 3
        assert [trial.value is None for trial in study.trials] == [r < 3 for r in reached]
        assert [trial.rows for trial in study.trials] == [r * ROWS for r in reached]
    for entry in chosen.cells:
        assert entry.cell.resolved["training"]["epochs"] == 6
        assert entry.cell.resolved["training"]["evaluations"] == 10


def test_the_last_rung_chooses(tuning, store):
    """Of those that are left, the one that was worse before is better in the end."""

    def score(cell):
        sees_all = cell.resolved["training"]["epochs"] == 6
        return 1 - by_rate(cell) if sees_all else by_rate(cell)

    tuned = small_grid(tuning, trials=12, halving=3)
    tuned.run_trials(Planted(store, score))
    for study in tuned.save():
        rates = [trial.settings.get("lr", DEFAULT_LR) for trial in study.trials]
        assert study.choice == sorted(range(12), key=lambda number: -rates[number])[1]


def test_failures_never_climb(tuning, store):
    tuned = small_grid(tuning, trials=9, halving=3)
    tuned.run_trials(Planted(store, lambda cell: 0.5 if is_default(cell) else np.nan))
    for study in tuned.save():
        assert [len(trial.rungs) for trial in study.trials] == [3] + [1] * 8
        assert study.choice == 0


def test_where_all_finalists_fail_the_next_best_take_their_place(tuning, store):
    """Of 12 trials 4 go on, then 2, which fail; of the other two that went on, both run in full."""

    def score(cell):
        sees_all = cell.resolved["training"]["epochs"] == 6
        return np.nan if sees_all and by_rate(cell) > limit else by_rate(cell)

    first = small_grid(tuning, trials=12, halving=3).next_trials().cells
    limit = sorted({by_rate(entry.cell) for entry in first})[-3]
    tuned = small_grid(tuning, trials=12, halving=3)
    tuned.run_trials(Planted(store, score))
    for study in tuned.save():
        rates = [0.5 + trial.settings.get("lr", 0.002) for trial in study.trials]
        best = sorted(range(12), key=lambda number: -rates[number])
        assert [len(study.trials[number].rungs) for number in best] == [3] * 4 + [1] * 8
        assert study.choice == best[2]


def test_rungs_of_one_length_are_said(tuning):
    tuned = tuning({"models": "mmoe"}, "batch_size=100", tune={"trials": 9, "halving": 3})
    assert not any("halving" in note for note in tuned.next_trials().notes)
    tuned = tuning({"models": "mmoe"}, tune={"trials": 9, "halving": 3})
    assert any("halving have 1, 1, 1 steps" in note for note in tuned.next_trials().notes)


def test_failures_that_are_retried_are_waited_for(tuning, store):
    tune = {"trials": 9, "halving": 3}
    tuning(tune=tune).run_trials(Planted(store, lambda cell: np.nan))
    again = Planted(store, by_rate)
    tuned = tuning(tune=tune, retry_failed=True)
    tuned.run_trials(again)
    assert len(again.ran) == 5 * (9 + 3 + 1)
    assert all(sum(len(t.rungs) == 3 for t in study.trials) == 1 for study in tuned.save())


def test_runs_of_few_rows_are_no_rows_of_a_report(tuning, store):
    """Nor when a larger budget leaves a trial behind that had gone on before."""
    for count in (4, 27):
        tuned = small_grid(tuning, trials=count, halving=3)
        run_both(tuned, store, noise)
    summary, _ = rows(store)
    assert sorted(row.group.label for row in summary.rows) == ["mmoe + uniform", "mmoe + uwl"]
    assert "one in 3 went on to 3 times the rows, twice" in summary.block.budget[0]
    table = tuned_rows(summary)
    assert [row["trial"].partition(" of ")[2] for row in table] == ["27 → 9 → 3"] * 2
    assert min(len(points) for points in trial_points(summary).values()) == 26


# --- going on


def small_grid(tuning, **tune):
    """A model under two balancers."""
    return tuning({"references": [], "models": "mmoe"}, tune=tune)


BUDGETS = [
    {"trials": None, "seconds": 13},
    {"trials": None, "rows": 5 * ROWS},
    {"trials": 9, "halving": 3},
]


@pytest.mark.parametrize("tune", BUDGETS)
@pytest.mark.parametrize("stop", [0, 1, 8, 13])
def test_killed_under_any_budget_it_ends_in_the_same(tuning, store, tmp_path, tune, stop):
    whole = small_grid(tuning, **tune)
    whole.store = ResultStore(tmp_path / "whole")
    uninterrupted = Planted(whole.store, noise)
    expected = whole.run_trials(uninterrupted)

    first, second = Planted(store, noise, stop=stop), Planted(store, noise)
    with contextlib.suppress(KeyboardInterrupt):
        small_grid(tuning, **tune).run_trials(first)
    chosen = small_grid(tuning, **tune).run_trials(second)
    assert [e.cell.key for e in chosen.cells] == [e.cell.key for e in expected.cells]
    assert studies_of(store) == studies_of(whole.store)
    assert sorted(first.ran + second.ran) == sorted(uninterrupted.ran)


def studies_of(store):
    return {path.name: path.read_bytes() for path in (store.root / "studies").glob("*.json")}


@pytest.mark.parametrize("sampler", ["sobol", "optuna"])
@pytest.mark.parametrize("stop", [0, 1, 7, 19, 33])
def test_killed_at_any_moment_it_ends_in_the_same(tuning, store, tmp_path, sampler, stop):
    if sampler == "optuna":
        pytest.importorskip("optuna")
    tune = {"sampler": sampler, "trials": 12}
    settings = {"references": [], "models": "mmoe"}
    whole = tuning(settings, tune=tune)
    whole.store = ResultStore(tmp_path / "whole")
    expected = whole.run_trials(Planted(whole.store, noise))

    first = Planted(store, noise, stop=stop)
    second = Planted(store, noise)
    try:
        tuning(settings, tune=tune).run_trials(first)
        assert stop > 24
    except KeyboardInterrupt:
        pass
    chosen = tuning(settings, tune=tune).run_trials(second)
    assert [e.cell.key for e in chosen.cells] == [e.cell.key for e in expected.cells]
    assert studies_of(store) == studies_of(whole.store)
    assert len(first.ran + second.ran) == len(set(first.ran + second.ran)) == 24


def test_raising_the_budget_runs_only_what_is_new(tuning, store):
    tuning().run_trials(Planted(store, noise))
    more = Planted(store, noise)
    tuned = tuning(tune={"trials": 6})
    tuned.run_trials(more)
    assert len(more.ran) == 5 * 2
    assert len(studies_of(store)) == 5
    assert {len(study.trials) for study in tuned.save()} == {6}


def test_a_smaller_budget_chooses_by_itself_and_forgets_no_trial(tuning, store):
    small = [s.choice for s in run_and_save(tuning(), store)]
    run_and_save(tuning(tune={"trials": 16}), store)
    again = run_and_save(tuning(), store)
    assert [study.choice for study in again] == small
    on_disk = [read_study(path) for path in (store.root / "studies").glob("*.json")]
    assert {(study.budget, len(study.trials)) for study in on_disk} == {(4, 16)}


def run_and_save(tuned, store):
    tuned.run_trials(Planted(store, noise))
    return tuned.save()


def test_trials_without_a_record(tuning):
    with pytest.raises(MtlkitError, match="20 trials have no record"):
        tuning().run_trials(lambda plan: None)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 1, "id": 3}'])
def test_a_damaged_study_is_said_and_made_again(tuning, store, content):
    tuning().run_trials(Planted(store, noise))
    sound = studies_of(store)
    file = store.root / "studies" / min(sound)
    file.write_text(content)
    said = load(store).unreadable
    assert [unreadable.path for unreadable in said] == [file]

    tuned = tuning()
    rerun = Planted(store, noise)
    tuned.run_trials(rerun)
    assert rerun.ran == []
    assert studies_of(store) == sound
    assert any(file.name in note and "made again" in note for note in tuned.notes)


def test_a_choice_that_does_not_exist_is_damage(tuning, store):
    tuning().run_trials(Planted(store, noise))
    file = next((store.root / "studies").glob("*.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"choice": 99}))
    assert not isinstance(read_study(file), Study)


def test_failed_trials_run_again_if_asked_for(tuning, store):
    tuning().run_trials(Planted(store, lambda cell: float("nan")))
    again = Planted(store, noise)
    tuning().run_trials(again)
    assert again.ran == []
    tuned = tuning(retry_failed=True)
    tuned.run_trials(again)
    assert len(again.ran) == 20
    assert all(trial.value is not None for study in tuned.save() for trial in study.trials)


# --- the report


def rows(store, **how):
    frames = load(store, **how)
    [block] = frames.blocks
    summary = summarise(frames, block)
    return summary, judge(frames, summary)


def run_both(tuned, store, score=noise, run=None):
    run = run or Planted(store, score)
    chosen = tuned.run_trials(run)
    run(chosen)
    return chosen


def test_a_report_shows_the_chosen_settings_alone(tuning, store, home):
    run_both(tuning(), store)
    untuned = make_plan(read_grid(None, {"dataset": DATA} | GRID, []), *prepare(DATA, home), store)
    Planted(store, lambda cell: 0.4)(untuned)

    summary, _ = rows(store)
    labels = ["mmoe + uniform", "mmoe + uwl", "shared-bottom + uniform", "shared-bottom + uwl"]
    assert sorted(row.group.label for row in summary.rows) == [*labels, "single-task"]
    assert {row.group.seeds for row in summary.rows} == {(0, 1)}
    assert all(row.gain.known or row.reference_of for row in summary.rows)
    assert not any("different settings" in warning for warning in summary.warnings)


def test_untuned_rows_on_demand(tuning, store, home):
    run_both(tuning(), store, lambda cell: 0.5 + cell.resolved["training"]["lr"])
    untuned = make_plan(read_grid(None, {"dataset": DATA} | GRID, []), *prepare(DATA, home), store)
    Planted(store, lambda cell: 0.4)(untuned)
    summary, _ = rows(store, untuned=True)
    labels = {row.group.label: row.group.seeds for row in summary.rows}
    assert len(labels) == 10
    assert labels["mmoe (untuned) + uwl"] == labels["mmoe + uwl"] == (0, 1)


def test_while_trials_run_they_are_no_rows(tuning, store):
    with pytest.raises(KeyboardInterrupt):
        tuning().run_trials(Planted(store, noise, stop=7))
    assert load(store).blocks == ()


def test_the_budget_stands_below_every_table(tuning, store):
    from mtlkit.report import write_report

    run_both(tuning({"balancers": "uniform,uwl,scalarization"}), store)
    files = write_report(store.root)
    tables = [path for path in files.tables if path.suffix == ".md"]
    assert len(tables) == 6  # results, tuned settings, verdicts of two models, findings, relations
    for path in tables:
        text = path.read_text().replace("\\", "")
        assert "of 4 trials" in text
        assert "28 trials, 56 s, 86,016 training rows" in text
    settings = next(path for path in files.tables if path.name.endswith("-tuned.csv"))
    assert len(settings.read_text().splitlines()) == 1 + 7


def test_unequal_budgets_are_said(tuning, store):
    run_both(tuning({"balancers": "uniform"}), store)
    run_both(tuning({"balancers": "uwl"}, tune={"trials": 6}), store)
    summary, _ = rows(store)
    assert "of 4 to 6 trials" in summary.block.budget[0]
    assert "budgets are not equal" in summary.block.budget[0]


def test_two_studies_with_one_choice_are_both_counted(tuning, store):
    """The defaults win by four trials and by six of another space: one row, two budgets, and one
    trial 0, which ran once.
    """
    score = lambda cell: 0.8 if is_default(cell) else 0.7  # noqa: E731
    settings = {"models": "mmoe", "balancers": "uwl", "references": []}
    run_both(tuning(settings), store, score)
    run_both(tuning(settings, tune={"trials": 6, "space": {"dropout": None}}), store, score)
    summary, _ = rows(store)
    [row] = summary.rows
    assert row.group.study.budget == 6
    assert "of 4 to 6 trials" in summary.block.budget[0]
    assert "Spent on 1 such rows: 9 trials, 18 s, 27,648 training rows" in summary.block.budget[0]
    assert [line["trial"] for line in tuned_rows(summary)] == ["0 of 6", "0 of 4"]


def test_scalarization_is_tuned_by_its_weights(tuning, store):
    tuned = tuning({"models": "mmoe", "balancers": "scalarization[n=9],uwl", "seeds": 5})

    def score(cell):
        luck = 1e-4 * cell.seed % 0.003
        balancer = cell.resolved["balancer"]
        if balancer["name"] == "uwl":
            return 0.8 + luck + 1e-5 * (cell.seed % 2)
        weights = balancer["options"].get("w") or [1, 1]
        return (0.7 if weights[0] > weights[1] else 0.6) + luck

    chosen = run_both(tuned, store, score)
    pairs = [(str(search.model), str(search.balancer)) for search in tuned.searches]
    assert pairs == [("single-task", "none"), ("mmoe", "static"), ("mmoe", "uwl")]
    weights = {tuple(e.cell.resolved["balancer"]["options"].get("w", ())) for e in chosen.cells}
    assert any(w and w[0] > w[1] for w in weights)

    _, [verdicts] = rows(store)
    assert verdicts.tuned
    assert (verdicts.best.group.balancer, verdicts.weightings) == ("static", 4)
    assert [(v.row.group.balancer, v.word) for v in verdicts.verdicts] == [("uwl", "better")]
    assert "against tuned fixed weights" in verdicts.outcome


def test_typed_weights_are_no_tuned_ones(tuning, store):
    run_both(tuning({"models": "mmoe", "balancers": "static[w=1:2],uwl"}), store)
    assert rows(store)[1] == ()


def test_two_names_of_one_method_run_once(tuning, store):
    """With the experts of mmoe fixed at their default, both have the same trial 0."""
    settings = {"models": "mmoe,mmoe[experts=8]", "references": [], "balancers": "uniform"}
    tuned = tuning(settings)
    run = Planted(store, lambda cell: 0.9 - cell.resolved["training"]["l2_dense"])
    chosen = run_both(tuned, store, run.score)
    assert len({entry.cell.key for entry in chosen.cells}) == len(chosen.cells) == 2
