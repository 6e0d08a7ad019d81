"""Balancers against the best fixed weights."""

import copy
import csv

import numpy as np
import pytest
from scipy import stats

from mtlkit.registry import MODELS
from mtlkit.report import write_report
from mtlkit.report.frame import load
from mtlkit.report.statistics import delta_m, holm, t_test
from mtlkit.report.summary import summarise
from mtlkit.report.verdicts import judge, verdict_table
from mtlkit.store import ResultStore
from tests.fakes import cell, record

SEEDS = 5
METRICS = ("income", "marital")
SWEEP = {"static[w=0.5:1.5]": 0.930, "uniform": 0.940, "static[w=1.5:0.5]": 0.935}
LUCK = np.array([0.0010, -0.0008, 0.0002, -0.0006, 0.0004])  # of a seed, the same for all
JITTER = np.array([0.0002, -0.0001, -0.0003, 0.0001, 0.0003])  # of a run


def save(store, balancer, value, seed, validation=None, model="mmoe", lowered=0.0):
    made = record(cell(model, balancer, seed))
    metrics = copy.deepcopy(made.metrics)
    for split, base in (
        ("test", value),
        ("validation", value if validation is None else validation),
    ):
        for task, shift in (("income", 0.0), ("marital", lowered)):
            metrics[split][task]["auc"] = base - shift + LUCK[seed]
    store.save(made.model_copy(update={"metrics": metrics}))


@pytest.fixture
def store(tmp_path):
    """uniform is the best of three on validation, though not on test."""
    store = ResultStore(tmp_path / "results")
    for seed in range(SEEDS):
        for balancer, value in SWEEP.items():
            save(
                store,
                balancer,
                value + (0.02 if balancer == "static[w=1.5:0.5]" else 0),
                seed,
                validation=value,
            )
        save(store, "pcgrad", 0.945 + JITTER[seed], seed)
        save(store, "mgda", 0.935 + JITTER[seed], seed)
        save(store, "uwl", 0.940 + JITTER[seed] - JITTER.mean(), seed)
        save(store, "none", 0.9, seed, model="single-task")
    return store


def found(store):
    frames = load(store)
    [block] = frames.blocks
    return judge(frames, summarise(frames, block)), summarise(frames, block)


def test_the_reference_is_chosen_on_validation(store):
    [verdicts], _ = found(store)
    assert (verdicts.model, verdicts.best.group.balancer, verdicts.weightings) == (
        "mmoe",
        "uniform",
        3,
    )
    assert not verdicts.at_end


def test_words(store):
    [verdicts], summary = found(store)
    assert {v.row.group.balancer: v.word for v in verdicts.verdicts} == {
        "pcgrad": "better",
        "uwl": "equivalent",
        "mgda": "worse",
    }
    best = verdicts.verdicts[0]
    differences = 0.005 + JITTER
    half = stats.t.ppf(0.975, 4) * differences.std(ddof=1) / np.sqrt(5)
    assert best.delta["income"].mean == pytest.approx(differences.mean())
    assert best.delta["income"].half == pytest.approx(half, rel=1e-6)
    metrics = {task.name: task.reading for task in summary.block.tasks}
    tasks = {name: name for name in metrics}
    gains = delta_m(best.row.values, verdicts.best.values, metrics, tasks)
    assert best.gain.interval.mean == pytest.approx(np.mean(list(gains.values())))
    assert [v.survives for v in verdicts.verdicts] == [True, False, True]
    assert "of 3 balancers 1 is better, 1 is worse, 1 is equivalent; 2 of" in verdicts.outcome
    assert "2 of the differences outlast Holm's correction" in verdicts.outcome


def test_gains_in_one_task_and_losses_in_the_other_cancel(store):
    for seed in range(SEEDS):
        save(store, "dwa", 0.950 + JITTER[seed] - JITTER.mean(), seed, lowered=0.020)
    [verdicts], _ = found(store)
    dwa = next(v for v in verdicts.verdicts if v.row.group.balancer == "dwa")
    assert dwa.delta["income"].excludes_zero
    assert dwa.delta["marital"].excludes_zero
    assert dwa.delta["income"].mean > 0 > dwa.delta["marital"].mean
    assert dwa.word == "equivalent"


def test_what_is_open_says_how_many_seeds_would_tell(store):
    luck = 10 * (JITTER - JITTER.mean()) + 0.001
    for seed in range(SEEDS):
        save(store, "dwa", 0.940 + luck[seed], seed)
    [verdicts], summary = found(store)
    dwa = next(v for v in verdicts.verdicts if v.row.group.balancer == "dwa")
    assert dwa.word == "not told apart"

    # The answer by trial: the first number of seeds whose interval of this spread excludes 0.
    gains = luck / 0.44
    ratio = gains.mean() / gains.std(ddof=1)
    seeds = next(n for n in range(2, 100) if ratio * np.sqrt(n) > stats.t.ppf(0.975, n - 1))
    assert dwa.gain.seeds_to_tell == pytest.approx(seeds, abs=1)
    row = next(r for r in verdict_table(summary, verdicts).rows if r[0].text == "dwa")
    assert row[-1].text == f"{dwa.gain.seeds_to_tell:.0f} seeds"


def test_one_seed_is_no_verdict(tmp_path):
    store = ResultStore(tmp_path / "results")
    for balancer in (*SWEEP, "pcgrad"):
        save(store, balancer, 0.94, 0)
    [verdicts], _ = found(store)
    assert [v.word for v in verdicts.verdicts if v.row.group.balancer == "pcgrad"] == ["unknown"]
    assert not any(v.survives for v in verdicts.verdicts)


def test_no_sweep_no_verdict(tmp_path):
    store = ResultStore(tmp_path / "results")
    for balancer in ("uniform", "static[w=0.5:1.5]", "pcgrad"):
        save(store, balancer, 0.94, 0)
    assert found(store)[0] == ()
    save(store, "static[w=1.5:0.5]", 0.95, 0)
    [verdicts] = found(store)[0]
    assert verdicts.at_end


def test_a_score_of_the_test_split_alone_does_not_choose(store):
    for old, _ in list(store.scan()):
        metrics = copy.deepcopy(old.metrics)
        del metrics["validation"]["marital"]
        (store.folder(old.cell) / "record.json").unlink()
        store.save(old.model_copy(update={"metrics": metrics}))
    [verdicts], _ = found(store)
    assert verdicts.best.group.balancer == "uniform"
    assert set(verdicts.verdicts[0].delta) == {"income", "marital"}


def test_table_and_files(store, tmp_path):
    [verdicts], summary = found(store)
    table = verdict_table(summary, verdicts)
    assert [row[0].text for row in table.rows] == ["uniform", "pcgrad", "uwl", "mgda"]
    assert [row[1].text for row in table.rows] == ["ref.", "better", "equivalent", "worse"]
    files = write_report(store.root, tmp_path / "report")
    [file] = [
        path for path in files.tables if "verdicts-mmoe" in path.name and path.suffix == ".csv"
    ]
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 3 * 3
    assert {(row["balancer"], row["verdict"]) for row in rows} == {
        ("pcgrad", "better"),
        ("uwl", "equivalent"),
        ("mgda", "worse"),
    }
    page = files.page.read_text()
    assert table.title in page
    assert "balancers against fixed weights" in page


def gains_of(summary, balancer, reference):
    """The relative gains of a row by hand: AUCs less 0.5, over those of the reference."""
    rows = {row.group.balancer: row for row in summary.rows if row.group.model == "mmoe"}
    means = {
        name: np.array([np.mean(list(rows[name].values[task].values())) for task in METRICS])
        for name in (balancer, reference)
    }
    return (means[balancer] - means[reference]) / (means[reference] - 0.5)


def test_how_far_a_balancer_lies_beyond_the_fixed_weights(store, tmp_path):
    for seed in range(SEEDS):
        save(store, "dwa", 0.960, seed, lowered=0.050)  # best on one task, worst on the other
        save(store, "static[w=0.2:1.8]", 0.930, seed, lowered=-0.030)
    [verdicts], summary = found(store)
    reference = verdicts.best.group.balancer
    weightings = (*SWEEP, "static[w=0.2:1.8]")
    front = np.array([gains_of(summary, name, reference) for name in weightings])
    for verdict in verdicts.verdicts:
        gains = gains_of(summary, verdict.row.group.balancer, reference)
        losses = np.linspace(-0.2, 0.2, 40_001)
        reached = [(front >= gains - loss).all(axis=1).any() for loss in losses]
        assert verdict.beyond == pytest.approx(losses[np.argmax(reached)], abs=2e-5)
    beyond = {verdict.row.group.balancer: verdict.beyond for verdict in verdicts.verdicts}
    assert beyond["dwa"] > 0 > beyond["mgda"]

    table = verdict_table(summary, verdicts)
    column = table.columns.index("beyond front, %")
    [dwa] = [row for row in table.rows if row[0].text == "dwa"]
    assert dwa[column].text == f"+{100 * beyond['dwa']:.2f}"
    alone, together = verdicts.volumes
    assert together > alone > 1
    assert any(f"{alone:.4f} of the fixed weights, {together:.4f} with" in n for n in table.notes)
    files = write_report(store.root, tmp_path / "out")
    [file] = [path for path in files.tables if path.name.endswith("verdicts-mmoe.csv")]
    first = next(row for row in csv.DictReader(file.open()) if row["balancer"] == "dwa")
    assert float(first["beyond_front"]) == pytest.approx(beyond["dwa"], rel=1e-6)
    assert float(first["hypervolume_all"]) == pytest.approx(together, rel=1e-6)


def test_weights_hardly_better_than_useless_are_no_front(tmp_path):
    store = ResultStore(tmp_path / "results")
    for seed in range(SEEDS):
        for balancer in (*SWEEP, "pcgrad"):
            save(store, balancer, 0.5, seed)
    [verdicts], summary = found(store)
    table = verdict_table(summary, verdicts)
    assert "beyond front, %" not in table.columns
    assert not any("Hypervolume" in note for note in table.notes)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.04]) == [True]
    assert holm([0.03, 0.03]) == [False, False]
    assert holm([]) == []


@pytest.mark.parametrize("effects", [0, 4], ids=["nulls alone", "beside effects"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_holm_keeps_the_chance_of_any_false_rejection(seeds, effects):
    """Eight tests without an effect, whatever is beside them; all share their reference."""
    repeats, nulls = 3000, 8
    random = np.random.default_rng(0)
    values = random.normal(size=(repeats, nulls + effects, seeds))
    values[:, nulls:] += 1e6
    differences = values - random.normal(size=(repeats, 1, seeds))
    p_values = stats.ttest_1samp(differences, 0, axis=2).pvalue
    assert np.mean(p_values[:, :nulls].min(axis=1) <= 0.05) > 0.2  # without the correction
    wrong = np.mean([any(holm(row)[:nulls]) for row in p_values])
    assert 0.03 <= wrong <= 0.06


def test_t_test():
    values = [0.3, -0.1, 0.4, 0.2]
    assert t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert t_test([0.1]) == t_test([0.0, 0.0]) == t_test([]) == 1
    assert t_test([0.1, 0.1, float("nan")]) == 0


PLUGIN = '''"""Plugin: of a test."""


class Plugin:
    {}
'''


def relabelled(old, part, name, **resolved):
    """A record of another model or balancer."""
    settings = copy.deepcopy(old.cell.resolved)
    settings[part] = {**settings[part], "name": name, **resolved}
    made = old.cell.model_copy(update={part: name, "resolved": settings})
    made = type(made).model_validate(made.model_dump())
    return old.model_copy(update={"cell": made, "key": made.key, "group": made.group})


@pytest.fixture
def plugins(tmp_path):
    """Files that are called like methods of the package, and one that says what it is."""
    for name, body in (
        ("single-task", "pass"),
        ("none", "pass"),
        ("static", "pass"),
        ("mine", "is_reference = True"),
    ):
        (tmp_path / f"{name}.py").write_text(PLUGIN.format(body))
    return tmp_path


def groups(store):
    [block] = load(store).blocks
    return {group.label: group for group in block.groups}


def test_a_name_does_not_make_a_reference(plugins):
    store = ResultStore(plugins / "results")
    for part, name in (("model", "single-task"), ("balancer", "none"), ("balancer", "static")):
        file = plugins / f"{name}.py"
        source = MODELS.source_digest(str(file))
        store.save(relabelled(record(cell()), part, str(file), source_sha256=source))
    found = groups(store)
    assert set(found) == {"single-task + uniform", "mmoe + none", "mmoe + static"}
    assert not any(group.is_reference for group in found.values())
    assert all(group.has_balancer for group in found.values())
    assert not found["mmoe + static"].constant_weights
    assert found["single-task + uniform"].constant_weights


def test_a_plugin_may_be_the_reference_as_long_as_its_file_says_so(plugins):
    file = plugins / "mine.py"
    store = ResultStore(plugins / "results")
    source = MODELS.source_digest(str(file))
    store.save(relabelled(record(cell()), "model", str(file), source_sha256=source))
    assert groups(store)["mine + uniform"].is_reference
    file.write_text(PLUGIN.format("is_reference = True  # changed since"))
    assert not groups(store)["mine + uniform"].is_reference
    file.unlink()
    assert not groups(store)["mine + uniform"].is_reference
