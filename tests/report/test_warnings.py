"""Warnings of runs: on the page, in Markdown, LaTeX and JSON, and on the console, once a kind."""

import pytest

from mtlkit.cli.results import results_table
from mtlkit.report import rows, write_report
from mtlkit.report.frame import load
from mtlkit.report.run_warnings import run_warnings
from mtlkit.store import ResultStore
from tests.fakes import cell, failure, record

COPIED = "copied 1 of 24 parameters, the others start anew"
UNREACHED = "no task reaches embedding.weight"


@pytest.fixture
def store(tmp_path):
    """Three rows: mmoe warns of two things, ple of one, and one run of uwl of nothing."""
    store = ResultStore(tmp_path)
    warned = {
        ("mmoe", "uniform", 0): [COPIED, UNREACHED],
        ("mmoe", "uniform", 1): [COPIED.replace("1 of", "2 of")],
        ("mmoe", "uniform", 2): [COPIED],
        ("mmoe", "uniform", 5): [COPIED],
        ("ple", "uwl", 0): [COPIED],
        ("ple", "uwl", 1): [],
    }
    for (model, balancer, seed), sentences in warned.items():
        run = record(cell(model, balancer, seed))
        store.save(run.model_copy(update={"warnings": sentences}))
    return store


EXPECTED = [
    f"Warned of by 5 runs: {COPIED}. Rows: mmoe + uniform (seeds 0-2, 5); ple + uwl (seed 0).",
    f"Warned of by 1 run: {UNREACHED}. Rows: mmoe + uniform (seed 0).",
]


def test_once_a_kind_with_the_rows(store):
    frames = load(store)
    assert run_warnings(frames, frames.blocks[0]) == EXPECTED


def test_a_failed_run_may_have_warned(tmp_path):
    store = ResultStore(tmp_path)
    store.save(failure(cell()).model_copy(update={"warnings": [UNREACHED]}))
    frames = load(store)
    [only] = run_warnings(frames, frames.blocks[0])
    assert UNREACHED in only


def test_many_rows_are_counted(tmp_path):
    store = ResultStore(tmp_path)
    for number in range(7):
        run = record(cell(balancer=f"static[w={number + 2}:1]"))
        store.save(run.model_copy(update={"warnings": [UNREACHED]}))
    frames = load(store)
    [only] = run_warnings(frames, frames.blocks[0])
    assert only.startswith("Warned of by 7 runs: ")
    assert only.endswith("; and 3 more rows.")


def test_page_and_table_of_results_have_them(store):
    built = write_report(store.root)
    assert built.warnings == tuple(EXPECTED)
    markdown = next(file for file in built.tables if file.suffix == ".md").read_text("utf-8")
    for text in (markdown.replace("\\", ""), built.page.read_text("utf-8")):
        for sentence in (COPIED, "ple + uwl (seed 0)"):
            assert sentence in text


def test_json_rows_have_those_of_their_runs(store):
    by_model = {row["model"]: row["warnings"] for row in rows(store)}
    assert by_model["ple"] == COPIED
    assert by_model["mmoe"] == "; ".join([COPIED, UNREACHED, COPIED.replace("1 of", "2 of")])


def test_the_command_says_them(store, cli):
    for arguments in ((), ("--json",)):
        said = cli("report", store.root, *arguments)
        for sentence in EXPECTED:
            assert f"warning: {sentence}\n" in said.err


def test_the_table_after_a_grid_has_them(store):
    from rich.console import Console

    console = Console(width=300, record=True)
    groups = {run.group for run, _ in store.scan()}
    console.print(results_table(store.root, groups, 300))
    text = console.export_text()
    assert all(sentence in text for sentence in EXPECTED)


def test_control_characters_of_a_warning_are_shown(tmp_path):
    store = ResultStore(tmp_path)
    store.save(record(cell()).model_copy(update={"warnings": ["one\x1b[31m\ntwo"]}))
    page = write_report(tmp_path).page.read_text("utf-8")
    assert r"one\x1b[31m\ntwo" in page
