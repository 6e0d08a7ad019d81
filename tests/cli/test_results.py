"""The table that a grid ends with: names are whole, and what does not fit is said."""

import io
import json
import re

import pytest
from rich.console import Console

from mtlkit.cli.results import LABELS, results_table
from mtlkit.store import ResultStore
from tests.fakes import cell, failure, fill

MODELS = ("mmoe", "shared-bottom[bottom=64:32]")
BALANCERS = ("uniform", "mgda[normalize=l2]")
ROWS = {("single-task", "–")} | {(model, balancer) for model in MODELS for balancer in BALANCERS}
TASKS = ["click", "like", "share", "follow", "purchase", "return"]


def show(root, width):
    """The lines of the closing table of all runs of a folder."""
    files = root.rglob("record.json")
    groups = {json.loads(file.read_text(encoding="utf-8"))["group"] for file in files}
    console = Console(width=width, file=io.StringIO())
    console.print(results_table(root, groups, width))
    return console.file.getvalue().splitlines()


def names_of(lines):
    """The first two words of each line."""
    return {tuple(line.split()[:2]) for line in lines}


@pytest.mark.parametrize("width", [80, 100, 140, 300])
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_names_are_whole(tmp_path, count, width):
    fill(tmp_path, MODELS, BALANCERS, tasks=TASKS[:count], with_probes=False)
    lines = show(tmp_path, width)
    assert names_of(lines) >= ROWS
    assert max(len(line) for line in lines) <= width
    # two blanks stand between cells, and one within
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    counts = {len(row) for row in rows if tuple(row[:LABELS]) in ROWS}
    assert len(counts) == 1
    assert counts.pop() > LABELS


def test_what_does_not_fit_is_said(tmp_path):
    fill(tmp_path, MODELS, BALANCERS, tasks=TASKS, with_probes=False)
    narrow, wide = show(tmp_path, 80), show(tmp_path, 300)
    head = " ".join(narrow[:6])
    shown = [task for task in TASKS if task in head]
    assert shown == TASKS[: len(shown)]
    assert "Δm" in head
    [note] = [line for line in narrow if "do not fit" in line]
    missing = len(TASKS) - len(shown)
    assert note == f"Intervals and {missing} more columns do not fit here; the report has them."
    assert not any("do not fit" in line for line in wide)
    assert all(task in " ".join(wide[:6]) for task in TASKS)


@pytest.mark.parametrize("width", [1, 20, 40])
def test_the_narrowest_terminal_shows_all_letters(tmp_path, width):
    fill(tmp_path, ("mmoe",), ("uniform",), tasks=TASKS, with_probes=False)
    text = "".join(show(tmp_path, width))
    assert "Traceback" not in text
    if width >= 20:
        assert {"m", "u"} <= set(text)


def test_names_are_measured_as_they_are_shown(tmp_path):
    """Letters of East Asia take two columns each."""
    name = "多任务学习[experts=4]"
    fill(tmp_path, (name,), BALANCERS, tasks=TASKS, with_probes=False)
    assert (name, "uniform") in names_of(show(tmp_path, 80))


def test_no_metric_is_named_where_no_run_finished(tmp_path):
    """Only finished runs say of which kind their tasks are."""
    store = ResultStore(tmp_path)
    store.save(failure(cell("mmoe", tasks=["price"])))
    text = "\n".join(show(tmp_path, 200))
    assert "price score" in text
    assert "AUC" not in text


def test_figures_that_are_too_high_for_a_picture_are_named(tmp_path, cli, monkeypatch):
    monkeypatch.setattr("mtlkit.report.figures.sheet.HIGHEST_PNG", 4)
    fill(tmp_path, MODELS, BALANCERS, tasks=TASKS[:2], with_probes=False)
    said = cli("report", tmp_path)
    figures = list((tmp_path / "report" / "figures").iterdir())
    pictures = {file.stem for file in figures if file.suffix == ".png"}
    [note] = [line for line in said.err.splitlines() if "too high for a PNG file" in line]
    named = set(note.partition(": ")[2].partition(": ")[2].split(", "))
    assert named
    assert pictures
    assert not named & pictures
    assert named | pictures == {file.stem for file in figures}
    assert "too high" not in cli("report", tmp_path, "--format", "svg").err
