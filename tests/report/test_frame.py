"""From store to frames and rows: what may share a table, how it is called, what is missing."""

import json
import math

import pytest

from mtlkit.report import rows
from mtlkit.report.frame import load
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from tests.fakes import cell, failure, fill, record

KEYS = (
    "dataset protocol simulated model balancer group split task space metric mean ci_low ci_high "
    "seeds seeds_failed positives rows derived ceiling warnings"
).split()


def summaries(store):
    frames = load(store)
    return [summarise(frames, block) for block in frames.blocks]


def test_json_rows(grid):
    all_rows = rows(ResultStore(grid))
    json.dumps(all_rows, allow_nan=False)
    assert all(list(row) == KEYS for row in all_rows)
    [row] = [
        row
        for row in all_rows
        if (row["dataset"], row["model"], row["balancer"], row["split"], row["task"], row["metric"])
        == ("census", "mmoe", "uwl", "test", "income", "auc")
    ]
    assert (row["seeds"], row["seeds_failed"], row["protocol"]) == (2, 1, "mmoe")
    assert row["ci_low"] < row["mean"] < row["ci_high"]
    failed = [row for row in all_rows if row["balancer"] == "mgda"]
    assert {(row["task"], row["mean"], row["seeds"], row["seeds_failed"]) for row in failed} == {
        ("income", None, 0, 2),
        ("marital", None, 0, 2),
    }
    assert {row["protocol"] for row in all_rows if row["dataset"] == "synthetic"} == {None}


def test_other_tasks_protocols_and_contents_never_share_a_table(tmp_path):
    for options in ({}, {"protocol": "rechub"}, {"tasks": ["education", "marital"]}):
        fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0,), with_probes=False, **options)
    all_summaries = summaries(ResultStore(tmp_path))
    assert len(all_summaries) == 3
    assert len({summary.block.title for summary in all_summaries}) == 3
    assert len({summary.block.slug for summary in all_summaries}) == 3
    assert all(len(summary.rows) == 2 for summary in all_summaries)


def test_spelling_makes_no_row_and_settings_do(tmp_path):
    store = ResultStore(tmp_path)
    store.save(record(cell("mmoe", seed=0)))
    store.save(record(cell("mmoe[experts=8]", seed=1)))
    store.save(record(cell("mmoe", seed=0, training={"lr": 0.001})))
    store.save(record(cell("mmoe[experts=16]", seed=0)))
    [summary] = summaries(store)
    assert {row.group.model for row in summary.rows} == {
        "mmoe (lr=0.001)",
        "mmoe (lr=0.002)",
        "mmoe[experts=16]",
    }
    assert next(
        row for row in summary.rows if row.group.model == "mmoe (lr=0.002)"
    ).group.seeds == (0, 1)
    assert "lr" in " ".join(summary.warnings)


def test_delta_needs_single_task_with_the_same_training(tmp_path):
    fill(tmp_path, ("mmoe",), ("uniform",), with_probes=False)
    store = fill(
        tmp_path, ("ple",), ("uniform",), reference=False, with_probes=False, training={"lr": 0.001}
    )
    [summary] = summaries(store)
    by_model = {row.group.model: row for row in summary.rows}
    mmoe, single, ple = by_model["mmoe"], by_model["single-task"], by_model["ple"]
    by_hand = [mmoe.values["income"][seed] - single.values["income"][seed] for seed in range(3)]
    assert mmoe.delta["income"].mean == pytest.approx(sum(by_hand) / 3)
    assert mmoe.delta["income"].n == 3
    assert not ple.delta
    assert not ple.gain.known


def test_unequal_seeds_are_said(grid):
    summary = next(
        summary for summary in summaries(ResultStore(grid)) if summary.block.name == "census"
    )
    [warning] = [text for text in summary.warnings if "same seeds" in text]
    assert "mmoe + uwl (seeds 0, 2)" in warning
    row = next(row for row in summary.rows if row.group.label == "mmoe + uwl")
    assert row.delta["income"].n == 2


def test_missing_metrics_are_na(tmp_path):
    store = ResultStore(tmp_path)
    for seed in range(2):
        store.save(record(cell("mmoe", seed=seed), missing=["marital"]))
    [summary] = summaries(store)
    assert summary.rows[0].metric["income"].known
    assert not summary.rows[0].metric["marital"].known
    assert "marital" not in summary.best
    [row] = [
        row
        for row in rows(store)
        if (row["split"], row["task"], row["metric"]) == ("test", "marital", "auc")
    ]
    assert row["mean"] is None
    assert row["seeds"] == 0


def test_only_failures(tmp_path):
    store = ResultStore(tmp_path)
    store.save(failure(cell()))
    [summary] = summaries(store)
    assert not summary.finished
    assert not summary.references.groups
    assert all(math.isnan(row.seconds) for row in summary.rows)


def test_copies_at_two_tasks_are_named(tmp_path):
    store = fill(tmp_path, ("mmoe",), ("nash", "imtl-g"), seeds=(0,), with_probes=False)
    [summary] = summaries(store)
    assert any("imtl-g and nash are one method" in text for text in summary.warnings)


def test_balancers_have_families(tmp_path):
    names = ("static[w=1:2]", "uwl", "gradnorm", "pcgrad", "moco", "not-a-balancer")
    (block,) = load(fill(tmp_path, ("mmoe",), names, seeds=(0,), with_probes=False)).blocks
    families = {group.balancer: group.family for group in block.groups if group.has_balancer}
    assert families == {
        "static[w=1:2]": "fixed weights",
        "uwl": "from losses",
        "gradnorm": "from gradient norms",
        "pcgrad": "from inner products of gradients",
        "moco": "from whole gradients",
        "not-a-balancer": "",
    }


def test_blocks_of_one_name_are_told_apart_by_what_they_differ_in(tmp_path):
    data = ("synthetic[p=0.5]", "synthetic[p=1]", "census", "census", "adult")
    tasks = [("task-1", "task-2")] * 2 + [("income", "marital"), ("income", "age"), ("income",)]
    cells = [cell(dataset=d, tasks=t, protocol=None) for d, t in zip(data, tasks, strict=True)]
    store = ResultStore(tmp_path)
    for one in cells:
        store.save(record(one))
    assert [block.title for block in load(store).blocks] == [
        "adult",
        "census, tasks income, age",
        "census, tasks income, marital",
        "synthetic, p=0.5",
        "synthetic, p=1",
    ]
