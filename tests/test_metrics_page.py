"""The page on metrics goes as shown, and names all of them."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from mtlkit.metrics.definitions import METRICS
from tests.documents import ROOT, marked_blocks, run_python, write_files

PAGE = ROOT / "docs" / "metrics.md"
SHORTER = " --models shared-bottom --balancers uniform --seeds 1 --epochs 0.3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the commands of the page have run."""
    folder = tmp_path_factory.mktemp("metrics")
    ((_, code),) = marked_blocks(PAGE, "python")
    assert run_python(code, folder).returncode == 0
    assert write_files(PAGE, folder)
    ((_, commands),) = marked_blocks(PAGE, "run")
    bench, report = commands.splitlines()
    for command in (bench + SHORTER, report):
        program = command.replace("mtlkit", f"{sys.executable} -m mtlkit", 1)
        code = f"import subprocess; subprocess.run({program!r}, shell=True, check=True)"
        ended: subprocess.CompletedProcess[str] = run_python(code, folder)
        assert ended.returncode == 0, ended.stderr
    return folder


def test_what_was_asked_for_is_in_the_records(folder):
    texts = [file.read_text() for file in (folder / "results").rglob("record.json")]
    assert len(texts) == 2
    for text in texts:
        record = json.loads(text)
        click, seconds = (record["metrics"]["test"][name] for name in ("click", "seconds"))
        asked_for = {"gauc@user", "ndcg@5@session", "f1@0.3", "gauc@item"}
        by_itself = {"gauc@session", "ndcg@10@session", "recall@10@session", "ece", "f1"}
        segments = {"auc@user=cold", "auc@user=warm", "auc@country=AT", "auc@country=DE"}
        assert asked_for | by_itself | segments <= set(click)
        assert {"rmse", "spearman", "r2@country=AT"} <= set(seconds)
        assert record["cell"]["resolved"]["training"]["select"] == "gauc"


def test_the_report_compares_by_what_was_named(folder):
    page = (folder / "results" / "report" / "index.html").read_text(encoding="utf-8")
    assert "click GAUC by user" in page
    assert "seconds R²" in page
    assert "AUC, country DE" in page
    (file,) = (folder / "results" / "report" / "tables").glob("*-metrics.csv")
    assert {"gauc@user", "auc@country=AT"} <= set(pd.read_csv(file)["metric"])


def test_it_names_every_metric():
    text = PAGE.read_text(encoding="utf-8")
    for name in METRICS:
        assert f"`{name}`" in text, name
