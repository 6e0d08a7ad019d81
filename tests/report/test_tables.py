"""Tables: what each field says, and that Markdown, LaTeX and CSV are well formed."""

import csv
import io
import re

import numpy as np
import pytest
from scipy import stats

from mtlkit.report.frame import load
from mtlkit.report.statistics import Interval
from mtlkit.report.summary import summarise
from mtlkit.report.tables import Table, TableCell, build_table, fixed, spread, to_csv, to_markdown
from mtlkit.store import ResultStore
from tests.fakes import BASE, cell, fill, record


@pytest.fixture(scope="module")
def summaries(grid):
    frames = load(ResultStore(grid))
    return {block.name: summarise(frames, block) for block in frames.blocks}


def test_numbers():
    assert fixed(-0.00001, 4) == "0.0000"
    assert fixed(-0.5, 2) == "−0.50"
    assert fixed(float("nan"), 2) == "NA"
    assert spread(Interval(0.94321, 0.00123, 3), 4) == "0.9432 ± 0.0012"
    assert spread(Interval(0.94321, 0.00002, 3), 4) == "0.94321 ± 0.00002"
    assert spread(Interval(0.94321), 4, sign=True) == "+0.9432"


def test_table_of_a_grid(summaries):
    table = build_table(summaries["census"])
    assert table.columns == (
        "model", "balancer", "income AUC", "Δ income", "marital AUC", "Δ marital", "Δm, %", "seeds", "failed",
        "parameters", "kFLOP/row", "rows/s", "train s",
    )  # fmt: skip
    rows = {(cells[0].text, cells[1].text): cells for cells in table.rows}
    assert len(rows) == 6
    assert sum(cell.best for cells in table.rows for cell in cells) == 2
    assert rows["single-task", "–"][3].text == "ref."
    assert rows["mmoe", "uwl"][7].text == "2"
    assert rows["mmoe", "uwl"][7].marks == "§"
    assert rows["ple", "mgda"][2].text == "NA"
    gains = [row.gain.mean for row in summaries["census"].rows if row.gain.known]
    assert gains == sorted(gains, reverse=True)
    assert table.rows[-1][1].text == "mgda"


def test_weighted_scores_have_a_column_of_their_own(tmp_path):
    store = ResultStore(tmp_path)
    chosen = {"select": "weighted", "select_weights": {"income": 1.0, "marital": 3.0}}
    records = [record(cell("mmoe", "uwl", seed, training=chosen)) for seed in range(3)]
    for saved in records:
        store.save(saved)
    frames = load(store)
    summary = summarise(frames, frames.blocks[0])
    aucs = [[saved.metrics["test"][task]["auc"] for task in BASE] for saved in records]
    means = [(income + 3 * marital) / 4 for income, marital in aucs]
    half = stats.sem(means) * stats.t.ppf(0.975, 2)
    weighted = summary.rows[0].weighted
    assert (weighted.mean, weighted.half) == pytest.approx((np.mean(means), half))

    table = build_table(summary)
    assert table.rows[0][table.columns.index("weighted mean")].text == spread(weighted, 4)
    assert any(note.startswith("Weighted mean: ") for note in table.notes)
    [line] = csv.DictReader(io.StringIO(to_csv(summary)))
    assert float(line["weighted_mean_mean"]) == pytest.approx(np.mean(means))


def test_marks_are_explained(summaries):
    table = build_table(summaries["census"])
    used = {mark for cells in table.rows for cell in cells for mark in cell.marks}
    assert used
    assert all(any(note.startswith(mark) for note in table.notes) for mark in used)
    for cells, row in zip(table.rows, summaries["census"].rows, strict=True):
        assert ("*" in cells[3].marks) == row.delta.get("income", Interval()).excludes_zero


def test_simulated_data_is_labelled(summaries):
    assert "simulated" in build_table(summaries["synthetic"]).title


def test_markdown_is_rectangular(summaries):
    for summary in summaries.values():
        lines = [
            line for line in to_markdown(build_table(summary)).splitlines() if line.startswith("|")
        ]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_csv_holds_the_numbers(summaries):
    summary = summaries["census"]
    lines = list(csv.DictReader(io.StringIO(to_csv(summary))))
    assert len(lines) == len(summary.rows)
    for line, row in zip(lines, summary.rows, strict=True):
        if row.metric["income"].known:
            assert float(line["income_auc_mean"]) == pytest.approx(row.metric["income"].mean)
        else:
            assert line["income_auc_mean"] == ""


def test_one_seed_has_no_interval(tmp_path):
    store = fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0,), with_probes=False)
    frames = load(store)
    table = build_table(summarise(frames, frames.blocks[0]))
    assert not any("±" in cell.text for cells in table.rows for cell in cells)


def test_derived_tasks_are_marked(tmp_path):
    run = record(cell())
    run.metrics["test"]["marital"]["derived"] = True
    ResultStore(tmp_path).save(run)
    frames = load(ResultStore(tmp_path))
    table = build_table(summarise(frames, frames.blocks[0]))
    assert [cell.marks for cell in table.rows[0] if "‡" in cell.marks] == ["‡"]
    assert any(note.startswith("‡") for note in table.notes)


@pytest.mark.parametrize(
    ("command", "span"),
    [
        ("mtlkit bench -d 'a_b'", "`mtlkit bench -d 'a_b'`"),
        ("a | b", r"`a \| b`"),
        ("echo `date`", "`` echo `date` ``"),
    ],
)
def test_commands_are_code(command, span):
    cells = (TableCell("rule"), TableCell("why"), TableCell(command))
    table = Table("t", ("finding", "evidence", "to type"), (cells,), (), commands=("to type",))
    assert f"| rule | why | {span} |" in to_markdown(table)


def test_the_command_of_a_sentence_is_code():
    table = Table("t", ("model", "balancer"), (), (), lead=(("Use *it*.", "mtlkit bench a_b"),))
    assert r"Use \*it\*. Type: `mtlkit bench a_b`" in to_markdown(table)
