"""A funnel through the whole tool: what the plan says, what records hold, what the report shows."""

import numpy as np
import pytest

from mtlkit.data.sources import prepare
from mtlkit.errors import UsageError
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.plan import make_plan
from mtlkit.grid.run_cell import run_cell
from mtlkit.report.frame import load
from mtlkit.report.result_rows import rows
from mtlkit.report.summary import summarise
from mtlkit.report.tables import build_table, to_markdown
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore
from tests.conftest import DATA

FUNNEL = "funnel[rows=800,click_rate=.3,buy_rate=.4,bias=1,users=30,items=20]"
MODELS = "shared-bottom,shared-bottom[cvr=clicked],esmm,aitm"
SMALL = ["bottom=6", "tower=4", "embedding=3", "epochs=1", "batch_size=100"]
LABELS = ["CTR", "CTCVR", "CVR", "all-rows CVR"]


@pytest.fixture(scope="module")
def plan(home, tmp_path_factory):
    """Plans a grid on a data set, one seed of uniform weights."""
    store = ResultStore(tmp_path_factory.mktemp("none"))

    def make(models, dataset=FUNNEL, references=(), tasks=None, **how):
        flags = {"dataset": dataset, "models": models, "balancers": "uniform", "seeds": 1}
        flags["references"] = list(references)
        source, data = prepare(dataset, home)
        return make_plan(
            read_grid(None, flags, SMALL),
            source,
            data.select(tasks) if tasks else data,
            store,
            **how,
        )

    return make


@pytest.fixture(scope="module")
def store(plan, home, tmp_path_factory):
    """The records of a small grid."""
    store = ResultStore(tmp_path_factory.mktemp("results"))
    for planned in plan(MODELS, references=["single-task"]).cells:
        outcome = run_cell(planned.cell, home, ExecutionSettings(device="cpu"))
        assert outcome.record.ok, outcome.log
        store.save(outcome.record, outcome.arrays, outcome.log)
    return store


@pytest.mark.parametrize("model", ["esmm", "escm2", "aitm"])
def test_without_a_funnel_they_are_not_applicable_unless_forced(plan, model):
    made = plan(f"mmoe,{model}", dataset=DATA)
    assert made.inapplicable == [(model, "synthetic has no funnel (click -> purchase)")]
    assert [p.cell.model for p in made.cells] == ["mmoe"]
    assert [p.cell.model for p in plan(f"mmoe,{model}", dataset=DATA, force=True).cells] == [
        "mmoe",
        model,
    ]
    assert plan(model).inapplicable == []


def test_forced_models_take_the_declared_tasks_for_a_funnel(plan, home):
    for planned in plan("esmm,escm2[estimator=dr],aitm", dataset=DATA, force=True).cells:
        record = run_cell(planned.cell, home, ExecutionSettings(device="cpu")).record
        assert record.ok, record.error
        assert list(record.metrics["test"]) == ["task-1", "task-2"]
        assert {of["space"] for of in record.metrics["test"].values()} == {"all rows"}
        assert not any(of["derived"] for of in record.metrics["test"].values())


def test_forced_models_still_need_two_binary_tasks(plan):
    with pytest.raises(UsageError, match="all binary"):
        plan("esmm", dataset="synthetic[rows=200,d=4,kind=mixed]", force=True)
    with pytest.raises(UsageError, match="all binary"):
        plan("aitm", tasks=["purchase"], force=True)


def test_conversion_on_clicked_rows_needs_a_funnel_and_is_a_setting(plan):
    with pytest.raises(UsageError, match="asks for a CVR"):
        plan("mmoe[cvr=clicked]", dataset=DATA)
    with pytest.raises(UsageError, match="no option 'cvr'"):
        plan("esmm[cvr=clicked]")
    one, other = (
        planned.cell for planned in plan("shared-bottom,shared-bottom[cvr=clicked]").cells
    )
    assert one.group != other.group
    assert [cell.resolved["model"]["options"]["cvr"] for cell in (one, other)] == [
        "derived",
        "clicked",
    ]


def test_records_say_what_was_measured_where(store):
    for record, folder in store.scan():
        assert [task["label"] for task in record.tasks] == LABELS
        assert [task["task"] for task in record.tasks] == ["click", *["purchase"] * 3]
        assert [task["space"] for task in record.tasks][:3] == [
            "all rows",
            "all rows",
            "clicked rows",
        ]
        stored = store.arrays(folder, "scores")
        for task in record.tasks:
            metrics = record.metrics["test"][task["name"]]
            assert task["derived"] == metrics["derived"] == bool(stored[f"derived/{task['name']}"])
            assert task["space"] == metrics["space"] == str(stored[f"space/{task['name']}"])
            mask = stored.get(f"observed/{task['name']}", np.ones(metrics["rows"], bool))
            assert metrics["rows"] == mask.sum()
            assert metrics["positives"] == stored[f"label/{task['name']}"][mask].sum()
        networks = {"click", "purchase"}
        if record.cell.model == "single-task":
            networks.add("purchase-given-click")
        assert networks == record.best.keys() == set(record.curve[0]["train_loss"])


def test_the_report_shows_spaces_counts_and_what_is_derived(store):
    frames = load(store)
    (block,) = frames.blocks
    assert [task.title for task in block.tasks] == LABELS
    assert block.trained == 2
    summary = summarise(frames, block)
    assert {
        row.group.model: sorted(row.derived) for row in summary.rows if not row.group.is_reference
    } == {
        "shared-bottom": ["purchase-given-click", "purchase-if-click"],
        "shared-bottom[cvr=clicked]": ["purchase"],
        "esmm": [],
        "aitm": ["purchase-given-click", "purchase-if-click"],
    }
    table = build_table(summary)
    assert table.columns[2::2][:4] == tuple(f"{label} AUC" for label in LABELS)
    marked = {
        row[0].text: [bool("‡" in row[place].marks) for place in (2, 4, 6, 8)] for row in table.rows
    }
    assert marked["shared-bottom"] == [False, False, True, True]
    assert marked["single-task"] == [False] * 4
    assert marked["shared-bottom[cvr=clicked]"] == [False, True, False, False]
    assert marked["esmm"] == [False] * 4
    clicks, purchases = (summary.counts[name][0] for name in ("click", "purchase"))
    text = to_markdown(table)
    assert (
        f"CTR: AUC on the test split, all rows, n+ = {clicks:.0f}, n− = {400 - clicks:.0f}" in text
    )
    assert (
        f"CVR: AUC on the test split, clicked rows, n+ = {purchases:.0f}, n− = {clicks - purchases:.0f}"
        in text
    )


def test_rows_as_json_have_both_splits_with_their_counts(store):
    auc_rows = [
        row for row in rows(store) if row["metric"] == "auc" and row["model"] == "shared-bottom"
    ]
    keys = {(row["split"], row["task"], row["space"], row["derived"]) for row in auc_rows}
    assert {
        ("validation", "click", "all rows", False),
        ("validation", "purchase-given-click", "clicked rows", True),
        ("test", "purchase", "all rows", False),
        ("test", "purchase-if-click", "all rows, as if clicked", True),
    } <= keys
    assert not any(
        split == "validation" and task == "purchase-if-click" for split, task, *_ in keys
    )
    by_score = {(row["split"], row["task"]): row for row in auc_rows}
    for split in ("validation", "test"):
        given, click = by_score[split, "purchase-given-click"], by_score[split, "click"]
        assert given["rows"] == click["positives"]
        assert given["positives"] == by_score[split, "purchase"]["positives"]
