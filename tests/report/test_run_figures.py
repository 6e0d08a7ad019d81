"""What figures show of the runs: their numbers, computed another way."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from mtlkit.report.figures import (
    attained,
    conflict_rate,
    learning_curves,
    pareto_front,
    published_dots,
)
from mtlkit.report.figures import task_similarity as similarity
from mtlkit.report.verdicts import find_sweeps
from mtlkit.store import ResultStore
from tests.fakes import cell, probes, record
from tests.report.full_grid import TASKS, context_of, curve

SEEDS = range(3)


def lines_of(axes, colour):
    """The lines of a colour, without those at one value."""
    lines = [line for line in axes.lines if line.get_color() == colour]
    return [np.array(line.get_xydata()) for line in lines if len(line.get_xydata()) > 2]


def row_of(context, label):
    return next(row for row in context.summary.rows if row.group.label == label)


def test_learning_curves_are_means_over_seeds_and_the_band_their_range(full_contexts):
    context = full_contexts["two"]
    [drawing] = learning_curves.draw(context)
    income = drawing.figure.axes[0]
    assert income.get_title(loc="left") == "income"
    tasks = TASKS["two"]
    cells = [cell("mmoe", "uniform", seed, training={"batch_size": 1024}) for seed in SEEDS]
    aucs = np.array(
        [[point["validation"]["income"]["auc"] for point in curve(one, tasks)] for one in cells]
    )
    shown = lines_of(income, context.look.colour(row_of(context, "mmoe + uniform")))
    expected = np.column_stack([102_400 * np.arange(1, 11), aucs.mean(axis=0)])
    assert any(line.shape == expected.shape and np.allclose(line, expected) for line in shown)
    bands = [one.get_paths()[0].vertices for one in income.collections]
    ends = [(band[:, 1].min(), band[:, 1].max()) for band in bands]
    assert any(np.allclose(end, (aucs.min(), aucs.max())) for end in ends)


def test_a_run_that_ended_early_shortens_the_line(tmp_path):
    tasks = TASKS["two"]
    for seed, points in ((0, 10), (1, 4)):
        one = cell("mmoe", "uniform", seed, training={"batch_size": 10})
        ResultStore(tmp_path).save(
            record(one).model_copy(update={"curve": curve(one, tasks)[:points]})
        )
    [drawing] = learning_curves.draw(context_of(tmp_path))
    assert {len(line.get_xdata()) for line in drawing.figure.axes[0].lines} == {4}


def test_without_points_or_rows_there_are_no_learning_curves(tmp_path):
    one = cell("mmoe", "uniform", 0)  # of which nobody knows the batch size
    made = record(one).model_copy(update={"curve": curve(one, TASKS["two"])})
    ResultStore(tmp_path / "rows").save(made)
    ResultStore(tmp_path / "points").save(record(cell("mmoe", "uniform", 0)))
    for folder in ("rows", "points"):
        assert learning_curves.draw(context_of(tmp_path / folder)) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (950, "950"), (20_000, "20k"), (1.5e6, "1.5M"), (2e9, "2G")]
)
def test_numbers_of_rows_are_short(full_contexts, value, text):
    [drawing] = learning_curves.draw(full_contexts["two"])
    assert drawing.figure.axes[0].xaxis.get_major_formatter()(value) == text


def test_the_conflict_rate_counts_pairs_over_seeds(full_contexts):
    context, tasks = full_contexts["many"], TASKS["many"]
    [drawing] = conflict_rate.draw(context)
    assert "here 30." in drawing.caption
    counted = np.zeros(10)
    for seed in SEEDS:
        one = cell("mmoe", "uwl", seed, tasks=tasks, training={"batch_size": 1024})
        cosine = probes(one)["gradient_cosine"]
        for first in range(5):
            for second in range(first):
                counted += cosine[:, 0, first, second] < 0
    mmoe = next(axes for axes in drawing.figure.axes if axes.get_title(loc="left") == "mmoe")
    [line] = lines_of(mmoe, context.look.colour(row_of(context, "mmoe + uwl")))
    np.testing.assert_allclose(line[:, 1], counted / 30)


def test_of_fewer_than_three_pairs_no_rate_is_drawn(tmp_path):
    one = cell("mmoe", "uniform", 0)
    ResultStore(tmp_path).save(record(one), {"probes": probes(one)})
    assert conflict_rate.draw(context_of(tmp_path)) == []


def test_similarity_has_a_symmetric_matrix_a_kind(full_contexts):
    context = full_contexts["many"]
    [drawing] = similarity.draw(context)
    texts = {text.get_text() for text in drawing.figure.texts}
    assert {"labels", "predictions", "gradients"} <= texts
    pair = context.relations.pairs.iloc[0]
    tasks = list(TASKS["many"])
    for kind in ("labels", "predictions", "gradients"):
        matrix = similarity._matrix(context, kind, tasks)
        places = tasks.index(pair["task"]), tasks.index(pair["other"])
        assert matrix[places] == matrix[places[::-1]] == pair[kind]
        assert np.isnan(np.diag(matrix)).all()
    assert similarity.draw(full_contexts["two"]) == []  # the table has all there is


def test_published_numbers_stand_beside_ours(full_contexts):
    context = full_contexts["two"]
    [drawing] = published_dots.draw(context)
    income = drawing.figure.axes[0]
    names = [text.get_text() for text in income.texts]
    place = names.index("mmoe\nMa et al., KDD 2018")
    [diamonds] = [one for one in income.collections if len(one.get_offsets()) == len(names)]
    assert diamonds.get_offsets()[place][0] == 0.9359
    mean = row_of(context, "mmoe + uniform").metric["income"]
    [dots] = [line for line in income.lines if len(line.get_xdata()) == len(names)]
    assert dots.get_xdata()[place] == mean.mean


def test_no_published_number_lies_outside_of_its_panel(full_contexts, monkeypatch):
    context = full_contexts["two"]
    some = published_dots.find_published(context.summary)[:2]
    mean = some[0].row.metric["income"].mean
    far = [replace(some[0], aucs={"income": mean - 0.3}), replace(some[1], aucs={"income": mean})]
    monkeypatch.setattr(published_dots, "find_published", lambda summary: far)
    [drawing] = published_dots.draw(context)
    low, high = drawing.figure.axes[0].get_xlim()
    assert low < mean - 0.3 < mean < high


# --- what fixed weights reach


def test_a_surface_bounds_what_points_are_as_good_as():
    random = np.random.default_rng(0)
    for _ in range(20):
        points = random.random((6, 2))
        for x, y in random.random((50, 2)):
            reached = ((points[:, 0] >= x) & (points[:, 1] >= y)).any()
            assert (y <= attained.attained(points, np.array([x]))[0]) == reached


def test_the_band_of_fixed_weights_is_what_some_seeds_reach_but_not_all(full_contexts):
    [drawing] = pareto_front.draw(full_contexts["two"])
    axes = drawing.figure.axes[0]
    bands = [band for band in axes.collections if isinstance(band, PolyCollection)]
    sweeps = find_sweeps(full_contexts["two"].summary.finished)
    random = np.random.default_rng(1)
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    for sweep, band in zip(sweeps, bands, strict=True):
        [outline] = band.get_paths()
        metrics = [(row.values["income"], row.values["marital"]) for row in sweep]
        for x, y in random.uniform(low, high, (100, 2)):
            reached = [any(a[seed] >= x and b[seed] >= y for a, b in metrics) for seed in SEEDS]
            assert outline.contains_point((x, y)) == (any(reached) and not all(reached))


def test_the_front_of_fixed_weights_has_the_sweeps_of_each_model(full_contexts):
    rows = full_contexts["two"].summary.finished
    sweeps = find_sweeps(rows)
    assert sorted(sweep[0].group.model for sweep in sweeps) == ["mmoe", "ple", "shared-bottom"]
    for sweep in sweeps:
        balancers = {row.group.balancer for row in sweep}
        assert balancers == {"uniform", "static[w=0.667:1.33]", "static[w=1.33:0.667]"}
    assert find_sweeps([row for row in rows if row.group.balancer != "uniform"]) == []


def test_of_many_pairs_those_with_the_longest_fronts_are_shown(tmp_path):
    tasks = [f"t{number}" for number in range(7)]
    # On the first task one row is best and on the others it is not; those rank the rows alike.
    scores = np.tile(np.array([[0.7], [0.71], [0.72]]), len(tasks))
    scores[:, 0] = [0.72, 0.71, 0.7]
    for model, aucs in zip(("shared-bottom", "mmoe", "ple"), scores, strict=True):
        made = record(cell(model, "uniform", 0, tasks=tasks))
        for task, auc in zip(tasks, aucs, strict=True):
            made.metrics["test"][task]["auc"] = auc
        ResultStore(tmp_path).save(made)
    [drawing] = pareto_front.draw(context_of(tmp_path))
    pairs = [(axes.get_xlabel()[:2], axes.get_ylabel()[:2]) for axes in drawing.figure.axes]
    assert len(pairs) == pareto_front.MOST_PAIRS
    of_first = [("t0", task) for task in tasks[1:]]
    assert pairs == of_first + list(combinations(tasks[1:], 2))[: len(pairs) - len(of_first)]
    assert "Of 21 pairs of tasks the 15 with most rows on their front" in drawing.caption
    assert drawing.figure.get_figheight() < 20
