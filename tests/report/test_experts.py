"""Use of experts: numbers that do not depend on their order, and runs matched before averaging."""

import csv
import io
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text
from scipy import stats

from mtlkit.report import write_report
from mtlkit.report.experts import (
    ExpertLevel,
    effective_number,
    idle_in_gates,
    idle_share,
    levels_of,
    overlap,
    shares,
)
from mtlkit.report.figures import gate_usage
from mtlkit.report.figures.context import Context, Look
from mtlkit.report.figures.expert_grid import Level, _draw_model, _Layout
from mtlkit.report.figures.style import WIDTH
from mtlkit.report.frame import load
from mtlkit.report.probe_frames import load_probes
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from tests.fakes import cell, fill, probes, record

GATES = np.array([[[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.25, 0.25]]])
"""One run: two gates over four experts, which share the second one."""


def level(weights, experts=None, losses=None):
    weights = np.asarray(weights, float)
    runs, lines, count = weights.shape
    names = experts or tuple(f"expert {n}" for n in range(1, count + 1))
    if losses is None:
        losses = np.full((runs, 2, count), np.nan)
    return ExpertLevel("level 1", tuple("ab")[:lines], names, weights, losses)


# --- the numbers, by hand


def test_overlap_is_what_two_gates_share():
    assert overlap(GATES).tolist() == [0.5]
    assert overlap(GATES[:, [0, 0]]).tolist() == [1.0]
    assert np.isnan(overlap(GATES[:, :1])).all()
    total_variation = 0.5 * np.abs(GATES[0, 0] - GATES[0, 1]).sum()
    assert overlap(GATES)[0] == pytest.approx(1 - total_variation)


def test_overlap_is_the_mean_over_pairs():
    gates = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 4))
    for run, mean in zip(gates, overlap(gates), strict=True):
        pairs = [1 - 0.5 * np.abs(p - q).sum() for p, q in itertools.combinations(run, 2)]
        assert mean == pytest.approx(np.mean(pairs))


def test_effective_number_counts_experts_that_are_used_alike():
    assert effective_number(GATES[:, :1]).tolist() == pytest.approx([2.0])
    assert effective_number(np.full((1, 3, 8), 1 / 8)).tolist() == pytest.approx([8.0])
    assert effective_number(np.eye(4)[None]).tolist() == pytest.approx([1.0])
    by_hand = math.exp(stats.entropy([0.5, 0.25, 0.25]))
    assert effective_number(GATES).tolist() == pytest.approx([(2 + by_hand) / 2])


def test_an_expert_is_idle_below_a_tenth_of_an_equal_share():
    weights = np.array([[[0.026, 0.024, 0.95, np.nan], [0.024, 0.024, 0.952, np.nan]]])
    # three experts are seen: the limit is 1 / 30; four: it would be 1 / 40
    assert idle_in_gates(weights)[0].tolist() == [[True, True, False, True]] * 2
    weights = np.nan_to_num(weights)
    assert idle_in_gates(weights)[0].tolist() == [
        [False, True, False, True],
        [True, True, False, True],
    ]
    assert idle_share(idle_in_gates(weights)).tolist() == [0.5]


def test_shares_of_losses_leave_out_gains():
    lost = shares(np.array([[[3.0, -5.0, 1.0], [0.0, -1.0, 0.0]]]))
    assert lost[0, 0].tolist() == [0.75, 0, 0.25]
    assert np.isnan(lost[0, 1]).all()


def test_the_numbers_do_not_depend_on_the_order_of_experts():
    generator = np.random.default_rng(1)
    gates = generator.dirichlet(np.full(6, 0.3), size=(4, 3))
    turned = gates[:, :, generator.permutation(6)]
    for number in (overlap, effective_number, lambda w: idle_share(idle_in_gates(w))):
        assert number(turned) == pytest.approx(number(gates))


# --- matching


def test_runs_that_differ_in_the_order_of_experts_alone_become_equal():
    generator = np.random.default_rng(2)
    one = generator.dirichlet(np.full(8, 0.5), size=2)  # (gates, experts)
    orders = [generator.permutation(8) for _ in range(6)]
    runs = np.stack([one[:, order] for order in orders])
    assert runs.std(axis=0).max() > 0.05, "the mean by number would say nothing"
    aligned = level(runs).aligned().weights
    assert np.ptp(aligned, axis=0).max() == 0
    assert sorted(aligned[0, 0]) == pytest.approx(sorted(one[0]))


def test_experts_of_different_kinds_are_never_exchanged():
    names = ("a 1", "a 2", "shared 1", "shared 2")
    first = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]
    # the second run is the first, with its kinds the other way round: only within them may it move
    second = [[0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1]]
    aligned = level([first, second], names).aligned().weights
    for line in range(2):
        for places in ([0, 1], [2, 3]):
            assert sorted(aligned[1, line, places]) == sorted(np.array(second)[line, places])


def test_losses_move_with_the_experts_and_help_to_match_them():
    # gates tell nothing apart; what tasks lose does
    weights = np.full((2, 2, 3), 1 / 3)
    losses = np.array([[[0.1, 0.0, 0.0], [0.0, 0.2, 0.0]], [[0.0, 0.0, 0.1], [0.2, 0.0, 0.0]]])
    aligned = level(weights, losses=losses).aligned()
    assert aligned.losses[0].tolist() == aligned.losses[1].tolist()


def test_a_gate_that_does_not_see_an_expert_stays_blind():
    weights = [[[0.6, 0.4, np.nan], [np.nan, 0.3, 0.7]]] * 2
    aligned = level(weights, ("a 1", "shared 1", "b 1")).aligned().weights
    assert np.isnan(aligned[:, 0, 2]).all()
    assert np.isnan(aligned[:, 1, 0]).all()


# --- in a report


@pytest.fixture(scope="module")
def turned_runs(tmp_path_factory):
    """Three runs of one model that differ in the order of their experts alone."""
    root = tmp_path_factory.mktemp("turned")
    store = ResultStore(root)
    generator = np.random.default_rng(3)
    last = generator.dirichlet(np.full(8, 0.3), size=2)
    for seed in range(3):
        run = cell("mmoe", "uniform", seed)
        arrays = probes(run)
        order = generator.permutation(8)
        for line, task in enumerate(("income", "marital")):
            mean = np.array(arrays[f"gate/level-1/{task}/mean"])
            mean[-1] = last[line, order]
            arrays[f"gate/level-1/{task}/mean"] = mean
        if seed:  # one run recorded no ablation
            arrays["ablation/level-1"] = -0.01 * last[:, order].T
            arrays["ablation/level-1/experts"] = arrays["gate/level-1/income/experts"]
        store.save(record(run), {"probes": arrays})
    return store, last


def test_probes_become_levels(turned_runs):
    store, last = turned_runs
    frames = load(store)
    [block] = frames.blocks
    [probed] = load_probes(frames, block).by_group.values()
    [only] = levels_of(probed)
    assert only.gates == ("income", "marital")
    assert only.weights.shape == (3, 2, 8)
    assert np.isnan(only.losses[0]).all()
    aligned = only.aligned()
    assert np.ptp(aligned.weights, axis=0).max() == 0
    assert aligned.losses[1] == pytest.approx(0.01 * aligned.weights[1])
    assert sorted(aligned.weights[0, 0]) == pytest.approx(sorted(last[0]))


def test_the_table_has_each_number_with_its_interval(turned_runs):
    store, last = turned_runs
    built = write_report(store.root)
    [file] = [file for file in built.tables if file.name.endswith("-experts.csv")]
    lines = {line["quantity"]: line for line in csv.DictReader(io.StringIO(file.read_text()))}
    by_hand = {
        "gate overlap": np.minimum(*last).sum(),
        "effective experts": np.mean([math.exp(stats.entropy(gate)) for gate in last]),
        "idle experts": np.mean((last < 1 / 80).all(axis=0)),
        "overlap of losses": np.minimum(*last).sum(),
        "experts that matter": np.mean([math.exp(stats.entropy(gate)) for gate in last]),
        "idle by ablation": np.mean((0.01 * last < 1e-4).all(axis=0)),
    }
    assert lines.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert float(lines[name]["mean"]) == pytest.approx(value, abs=1e-7), name
        assert float(lines[name]["low"]) == pytest.approx(value, abs=1e-7), name
    assert [lines[name]["seeds"] for name in ("gate overlap", "idle by ablation")] == ["3", "2"]
    page = built.page.read_text("utf-8")
    assert "use of experts" in page
    assert "Experts are interchangeable" in page


def test_intervals_are_over_seeds(tmp_path):
    store = fill(tmp_path, ("mmoe",), ("uniform",), seeds=range(4))
    overlaps = []
    for seed in range(4):
        arrays = probes(cell("mmoe", "uniform", seed))
        gates = [arrays[f"gate/level-1/{task}/mean"][-1] for task in ("income", "marital")]
        overlaps.append(np.minimum(*gates).sum())
    low, high = stats.t.interval(0.95, 3, np.mean(overlaps), stats.sem(overlaps))
    [file] = [file for file in write_report(store.root).tables if "-experts.csv" in file.name]
    line = next(csv.DictReader(io.StringIO(file.read_text())))
    assert line["quantity"] == "gate overlap"
    assert [float(line[end]) for end in ("low", "high")] == pytest.approx([low, high])


def test_the_path_that_tasks_share_is_no_task(tmp_path):
    """PLE's shared gate sees all experts; what it has in common with a task is no sharing of tasks."""
    store = fill(tmp_path, ("ple",), ("uniform",), seeds=(0,), reference=False)
    frames = load(store)
    summary = summarise(frames, frames.blocks[0])
    from mtlkit.report.expert_table import expert_use

    first, _ = expert_use(summary, load_probes(frames, frames.blocks[0]).by_group)
    arrays = probes(cell("ple", "uniform", 0))
    income, marital = (arrays[f"gate/level-1/{task}/mean"][-1] for task in ("income", "marital"))
    shared = [2, 3]  # after the two of the task's own
    by_hand = np.minimum(income[shared], marital[shared]).sum()
    assert first.columns["gate overlap"].mean == pytest.approx(by_hand)


def test_tuned_rows_of_a_model_may_differ_in_levels_and_experts():
    def level(experts):
        names = tuple(f"{number}" for number in range(experts))
        return Level("level", ("a", "b"), names, np.ones((2, experts)))

    def row(balancer):
        return SimpleNamespace(group=SimpleNamespace(balancer=balancer))

    rows = [(row("uniform"), [level(4)]), (row("uwl"), [level(2), level(8)]), (row("dwa"), [])]
    layout = _Layout.of([levels for _, levels in rows], WIDTH)
    assert layout.widths == pytest.approx([layout.label + layout.cell * n for n in (4, 8)])
    summary = SimpleNamespace(block=SimpleNamespace(label="census"))
    context = Context(summary, {}, Look({}, {}))
    drawing = _draw_model(context, "ple", rows, gate_usage._figure(1.0), "")
    shown = {text.get_text() for text in drawing.figure.findobj(Text)}
    assert shown >= {"uniform", "uwl", "0", "7"}
