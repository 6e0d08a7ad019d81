"""Published numbers beside measured ones."""

import csv
import math

import pytest
import yaml

from mtlkit.registry import MODELS
from mtlkit.report import write_report
from mtlkit.report.frame import load
from mtlkit.report.published import FILE, find_published, published_table
from mtlkit.report.summary import summarise
from mtlkit.store import ResultStore
from tests.fakes import cell, record

ENTRIES = yaml.safe_load(FILE.read_text(encoding="utf-8"))


def summary_of(folder, *runs, **changes):
    store = ResultStore(folder)
    for seed in (0, 1):
        for model, balancer in runs:
            store.save(record(cell(model, balancer, seed, **changes)))
    frames = load(store)
    return summarise(frames, frames.blocks[0])


def test_a_row_stands_beside_every_source(tmp_path):
    summary = summary_of(tmp_path, ("mmoe", "uniform"))
    found = find_published(summary)
    assert [each.source for each in found] == [
        entry["source"]
        for entry in ENTRIES
        if (entry["dataset"], entry["protocol"]) == ("census", "mmoe") and "mmoe" in entry["rows"]
    ]
    assert found[0].aucs == {"income": 0.9359, "marital": 0.9927}

    table = published_table(summary, found)
    measured = summary.rows[0].metric["income"].mean
    texts = [cell.text for cell in table.rows[0]]
    assert texts[:3] == ["mmoe", "Ma et al., KDD 2018", "0.9359"]
    assert float(texts[4].replace("−", "-")) == pytest.approx(measured - 0.9359, abs=5e-5)


def test_other_balancers_and_methods_have_no_published_number(tmp_path):
    summary = summary_of(tmp_path, ("mmoe", "pcgrad"), ("home", "uniform"))
    assert find_published(summary) == []


def test_a_task_beside_another_one_is_another_experiment(tmp_path):
    summary = summary_of(tmp_path, ("mmoe", "uniform"), tasks=("education", "marital"))
    assert find_published(summary) == []


def test_simulated_data_are_not_compared(tmp_path):
    summary = summary_of(tmp_path, ("mmoe", "uniform"), simulated=True)
    assert find_published(summary) == []


def test_the_report_writes_it(tmp_path):
    summary_of(tmp_path, ("mmoe", "uniform"))
    files = write_report(tmp_path)
    [path] = [path for path in files.tables if path.name.endswith("-published.csv")]
    lines = list(csv.DictReader(path.open(encoding="utf-8")))
    assert {line["task"] for line in lines} == {"income", "marital"}
    assert all(line["address"].startswith("https://") for line in lines)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["source"])
def test_entries_name_models_that_exist_and_plausible_aucs(entry):
    assert set(entry["rows"]) <= set(MODELS.names())
    for aucs in entry["rows"].values():
        assert all(0.5 < auc < 1 and math.isfinite(auc) for auc in aucs.values())
