"""The files of a report: page, figures, determinism, odd stores, the command."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from mtlkit.cli.report import report
from mtlkit.errors import MissingError, UsageError
from mtlkit.report import write_report
from mtlkit.store import ResultStore
from tests.fakes import cell, failure, fill, record
from tests.report.conftest import WRITTEN

FIGURES = set(
    "metrics pareto published cosine-end cosine-run conflict gates-mmoe gates-ple gate-entropy "
    "weights".split()
)


def names(files, slug):
    return {
        file.stem.removeprefix(f"{slug}-") for file in files.figures if file.name.startswith(slug)
    }


def test_all_files_are_there(grid, built):
    assert built.page == grid / "report" / "index.html"
    assert names(built, "census-mmoe-income-marital") == FIGURES
    assert {file.suffix for file in built.tables} == {".csv", ".md", ".tex"}
    assert all(file.stat().st_size for file in (*built.tables, *built.figures))
    assert len(built.unreadable) == 1


def test_figures_are_well_formed(built):
    assert {file.suffix for file in built.figures} == {".svg", ".png"}
    for file in built.figures:
        if file.suffix == ".svg":
            ElementTree.parse(file)


def test_page_is_self_contained(built):
    page = built.page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert not re.search(
        r"url\(\s*['\"]?(?:https?:)?//|@import|<script src|<link[^>]+stylesheet", page
    )
    assert "default-src 'none'; script-src 'sha256-" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    files = re.findall(r'href="((?:tables|figures)/[^"]+)"', page)
    assert files
    assert all((built.page.parent / file).is_file() for file in files)


def test_page_says_what_matters(built):
    page = built.page.read_text(encoding="utf-8")
    assert "2030-01-02 03:04 UTC" in page
    assert "simulated data" in page
    assert "is not finite &lt;nan&gt; &amp; cannot recover" in page
    assert "Not all rows are means over the same seeds" in page
    assert "Student t" in page
    assert re.search("<p>Use [a-z-]+ [+] [a-z]+, the best of", page)


def test_same_input_same_bytes(tmp_path):
    fill(tmp_path / "results", ("mmoe",), ("uwl",), seeds=(0, 1))
    first, second = (
        write_report(tmp_path / "results", tmp_path / name, WRITTEN, formats=["png", "pdf"])
        for name in ("one", "two")
    )
    begins = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    assert {file.suffix for file in first.figures} == begins.keys()
    assert all(file.read_bytes().startswith(begins[file.suffix]) for file in first.figures)
    pairs = zip(
        (first.page, *first.tables, *first.figures),
        (second.page, *second.tables, *second.figures),
        strict=True,
    )
    assert all(one.read_bytes() == two.read_bytes() for one, two in pairs)


def test_only_failures(tmp_path):
    ResultStore(tmp_path).save(failure(cell()))
    built = write_report(tmp_path)
    assert built.figures == ()
    assert "No run has finished" in built.page.read_text(encoding="utf-8")


def test_one_seed_one_task_and_no_probes(tmp_path):
    fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0,), tasks=["income"], with_probes=False)
    built = write_report(tmp_path)
    assert names(built, "census-mmoe-income") == {"metrics"}


def test_broken_probes_are_passed_over(tmp_path):
    store = fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0,))
    for file in store.root.rglob("probes.npz"):
        file.write_bytes(b"PK nonsense")
    assert "weights" not in names(write_report(tmp_path), "census-mmoe-income-marital")


def test_long_names_and_many_tasks(tmp_path):
    tasks = [f"a task with quite a long name, number {index}" for index in range(3)]
    long = "mmoe[experts=16,hidden=256:128:64,dropout=0.25,normalisation=batch]"
    fill(tmp_path, (long,), ("uwl",), seeds=(0, 1), tasks=tasks, kinds={tasks[0]: "regression"})
    built = write_report(tmp_path)
    assert len(built.figures) == 18  # SVG and PNG


def test_nothing_to_report(tmp_path):
    with pytest.raises(MissingError) as caught:
        write_report(tmp_path / "nowhere")
    assert caught.value.hint == "mtlkit bench"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        write_report(tmp_path / "file")


def command(*arguments):
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_command_prints_only_json(grid):
    result = command(grid, "--json")
    assert result.exit_code == 0
    assert {row["dataset"] for row in json.loads(result.stdout)} == {"census", "synthetic"}
    assert "seed-9-deadbeef" in result.stderr


def test_command_prints_paths(tmp_path):
    fill(tmp_path / "results", ("mmoe",), ("uniform",), seeds=(0,), with_probes=False)
    out, formats = tmp_path / "out", ("--format", "pdf", "--format", "png")
    result = command(tmp_path / "results", "--out", out, *formats, "--top", "1")
    assert result.exit_code == 0
    endings = {file.suffix for file in (out / "figures").iterdir()}
    assert endings == {".svg", ".pdf", ".png"}
    command(tmp_path / "results", "--out", out)
    assert {file.suffix for file in (out / "figures").iterdir()} == {".svg", ".png"}
    command(tmp_path / "results", "--out", out, "--format", "svg")
    assert {file.suffix for file in (out / "figures").iterdir()} == {".svg"}
    assert str(tmp_path / "out" / "index.html") in result.stdout
    assert "hint: open" in result.stderr
    assert not (tmp_path / "results" / "report").exists()


def test_no_torch_and_a_thin_command(tmp_path):
    fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0,), with_probes=False)
    code = (
        "import sys, pathlib; import mtlkit.cli.report as command; "
        "assert not {'pandas', 'matplotlib', 'mtlkit.report'} & set(sys.modules), 'the command imports too much'; "
        f"command.report(pathlib.Path({str(tmp_path)!r}), None, True); "
        "assert 'matplotlib' not in sys.modules, 'json needs no figures'; "
        f"command.report(pathlib.Path({str(tmp_path)!r}), None, False); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[2]
    )


def test_a_report_compares_by_another_metric(grid, tmp_path):
    by_auc = write_report(grid, tmp_path / "auc", metric="auc")
    by_loss = write_report(grid, tmp_path / "loss", metric="logloss")
    texts = [built.page.read_text(encoding="utf-8") for built in (by_auc, by_loss)]
    assert "income AUC" in texts[0]
    assert "income log loss" in texts[1]
    assert "income AUC" not in texts[1].split("All metrics")[0]
    assert "log loss on the test split" in texts[1]
    assert "lower is better" in texts[1]
    # a task without it keeps its own, and the ceiling was measured by another metric
    assert "level R²" in texts[1]
    (csv,) = [table for table in by_loss.tables if table.name.startswith("synthetic-a-b-c-1")][:1]
    header = csv.read_text(encoding="utf-8").splitlines()[0]
    assert "a & b_logloss_mean" in header
    assert "a & b_logloss_ceiling" not in header
    assert "level_r2_ceiling" in header


def test_a_metric_that_no_run_has_is_an_error(grid, tmp_path):
    for metric, message in [("gauc", "No run was measured by gauc"), ("auk", "no metric 'auk'")]:
        with pytest.raises(UsageError, match=message) as caught:
            write_report(grid, tmp_path, metric=metric)
        assert "logloss" in caught.value.hint


def test_all_metrics_stand_in_one_file(built):
    (file,) = [t for t in built.tables if t.name.endswith("-metrics.csv") and "census" in t.name]
    frame = pd.read_csv(file)
    assert {"auc", "logloss"} <= set(frame["metric"])
    in_page = built.page.read_text(encoding="utf-8")
    assert in_page.count("<details><summary>income") == 1
    best = frame[(frame["metric"] == "logloss") & (frame["task"] == "income")]
    assert len(best) == frame["group"].nunique()


def test_a_metric_that_is_best_in_between_ranks_rows_by_their_distance(tmp_path):
    store = ResultStore(tmp_path)
    for model, calibrations in [("single-task", (1.5, 1.7)), ("mmoe", (0.9, 0.8))]:
        for seed, calibration in enumerate(calibrations):
            run = record(cell(model, "none" if model == "single-task" else "uniform", seed))
            for scores in run.metrics.values():
                for values in scores.values():
                    values["calibration"] = calibration
            store.save(run)
    files = write_report(tmp_path, metric="calibration", written=WRITTEN)
    assert not [file for file in files.figures if "pareto" in file.name]
    page = files.page.read_text(encoding="utf-8")
    assert "calibration on the test split" in page
    assert "nearest to 1 is best" in page
    frame = pd.read_csv(next(table for table in files.tables if table.suffix == ".csv"))
    assert list(frame["model"]) == ["mmoe", "single-task"]
    # relative to the distance of single-task from 1, seed by seed
    assert frame["delta_m"][0] == pytest.approx(((-0.1 + 0.5) / 0.5 + (-0.2 + 0.7) / 0.7) / 2)


def test_options_that_are_off_are_settings(tmp_path):
    fill(tmp_path, ["mmoe"], ["uniform"], model_options={"dropout": 0.0, "norm": False})
    page = write_report(tmp_path).page.read_text(encoding="utf-8")
    assert "model: mmoe[experts=8,dropout=0,norm=false]" in page
