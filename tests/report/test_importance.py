"""Importance of settings, on trials whose scores are planted."""

from types import SimpleNamespace

import numpy as np
import pytest

from mtlkit.report.figures import trials
from mtlkit.report.figures.context import Context, Look
from mtlkit.report.importance import UNSEEN, importance_rows, importance_table, trial_points
from mtlkit.report.tables import to_markdown
from mtlkit.studies import Study, Trial

SPACE = {
    "lr": {"log": [1e-4, 1e-1]},
    "dropout": {"float": [0, 0.5]},
    "mmoe.hidden": {"choice": [[32], [64, 32]]},
    "uwl.lr": {"log": [1e-3, 1e-1]},
    "static.weights": {"simplex": 0.1},
}


def study(balancer, space, spent):
    """A study of a model under a balancer."""
    return Study(
        id=balancer,
        model="mmoe",
        balancer=balancer,
        training="t",
        sampler="sobol",
        seed=0,
        seeds=(0,),
        select="mean",
        space=space,
        budget=len(spent),
        trials=tuple(spent),
    )


def of_studies(*studies):
    rows = [SimpleNamespace(group=SimpleNamespace(study=one)) for one in studies]
    return SimpleNamespace(rows=rows, block=SimpleNamespace(label="planted"))


def summary(score, points=40, balancers=("uwl", "pcgrad")):
    """A summary whose rows were tuned: each trial has the score of its settings."""
    draw = np.random.default_rng(0)
    tried = [
        {
            "lr": float(10 ** draw.uniform(-4, -1)),
            "dropout": float(draw.uniform(0, 0.5)),
            "mmoe.hidden": SPACE["mmoe.hidden"]["choice"][draw.integers(2)],
            "static.weights": [0.5, 1.5],
        }
        for _ in range(points)
    ]
    studies = []
    for balancer in balancers:
        own = {"uwl.lr": 0.01} if balancer == "uwl" else {}
        spent = [Trial(settings={}, keys=["0"], group="0", value=0.5)]
        for number, settings in enumerate(tried):
            value = score(settings, draw)
            spent.append(Trial(settings=settings | own, keys=[f"{number}"], group="", value=value))
        space = SPACE if own else {k: v for k, v in SPACE.items() if k != "uwl.lr"}
        studies.append(study(balancer, space, spent))
    return of_studies(*studies)


def test_points_are_those_of_all_balancers_and_count_the_trials_that_they_beat():
    tuned = summary(lambda settings, draw: settings["lr"], points=10)
    points = trial_points(tuned)["mmoe"]
    assert list(points) == ["lr", "dropout", "mmoe.hidden", "score"]
    assert set(points["mmoe.hidden"]) == {0, 1}
    # trial 0 has a value above all others, and is itself no point
    in_order = points.sort_values("lr")["score"]
    np.testing.assert_allclose(in_order, np.arange(10) / 10)


def trials_of(settings):
    tried = [{}, *settings]
    return [Trial(settings=s, keys=["0"], group="0", value=float(i)) for i, s in enumerate(tried)]


def test_a_choice_that_is_nothing_or_false_has_its_place():
    space = {"dropout": {"choice": [0.5, 0.1, 0.0]}, "flag": {"choice": [True, False]}}
    tried = [{"dropout": d, "flag": f} for d in (0.5, 0.1, 0.0) for f in (True, False)]
    tried.append({"dropout": 0.3, "flag": True})  # no choice: the file was edited
    points = trial_points(of_studies(study("uwl", space, trials_of(tried))))["mmoe"]
    places = set(zip(points["dropout"], points["flag"], strict=True))
    assert places == {(d, f) for d in range(3) for f in range(2)}


@pytest.mark.parametrize("shared", [(), ("lr",)])
def test_what_no_two_balancers_of_a_model_share_is_no_setting(shared):
    spaces = [{"uwl.lr": SPACE["lr"]}, {"dropout": SPACE["dropout"]}]
    spaces = [space | {name: SPACE[name] for name in shared} for space in spaces]
    tried = [{"uwl.lr": 0.01, "dropout": 0.1, "lr": 0.001 * n} for n in range(1, 10)]
    names = ("uwl", "pcgrad")
    studies = [study(n, s, trials_of(tried)) for n, s in zip(names, spaces, strict=True)]
    tuned = of_studies(*studies)
    assert [list(points) for points in trial_points(tuned).values()] == (
        [["lr", "score"]] if shared else []
    )
    drawings = trials.draw(Context(tuned, {}, Look({}, {})))
    assert len(drawings) == len(shared)


def test_the_setting_that_decides_is_found():
    rows = importance_rows(summary(lambda settings, draw: -abs(np.log10(settings["lr"]) + 2)))
    found = {row["setting"]: row["importance"] for row in rows}
    assert found[UNSEEN] > 0.8
    assert found["lr"] > 1
    assert max(found["dropout"], found["mmoe.hidden"]) < 0.02


def test_scores_by_chance_are_said_to_tell_nothing():
    rows = importance_rows(summary(lambda settings, draw: draw.random()))
    assert {row["setting"]: row["importance"] for row in rows}[UNSEEN] < 0.1


def test_failed_trials_are_left_out_and_few_make_no_table():
    tuned = summary(lambda settings, draw: None if settings["lr"] < 1e-3 else settings["lr"])
    assert trial_points(tuned)["mmoe"]["lr"].min() >= 1e-3
    assert importance_rows(summary(lambda settings, draw: 0.7, points=7)) == []


def test_the_table_has_a_line_a_setting_with_its_range():
    tuned = summary(lambda settings, draw: settings["dropout"])
    text = to_markdown(importance_table(tuned, importance_rows(tuned)))
    lines = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| ")]
    assert lines[1] == ["| dropout", "0 to 0.5"]
    assert ["| mmoe.hidden", "32, 64:32"] in lines
    assert ["| lr", "0.0001 to 0.1, logarithmic"] in lines
    assert lines[-1][0] == f"| {UNSEEN}"


@pytest.mark.parametrize(("points", "drawn"), [(40, 1), (7, 0)])
def test_the_figure_has_a_line_a_point(points, drawn):
    tuned = summary(lambda settings, draw: settings["lr"], points)
    drawings = trials.draw(Context(tuned, {}, Look({}, {})))
    assert len(drawings) == drawn
    for drawing in drawings:
        panel = drawing.figure.axes[0]
        lines = [line.get_ydata() for line in panel.lines if len(line.get_ydata()) > 2]
        assert len(lines) == points
        # the settings that all models share, and the score; bounds are 0 and 1
        assert len(lines[0]) == 4
        assert 0 <= np.min(lines) <= np.max(lines) <= 1
