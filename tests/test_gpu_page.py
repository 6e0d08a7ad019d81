"""docs/gpu.md and benchmarks/gpu.py: the commands run, and no section takes the others with it."""

import json
import os
import shlex
import subprocess
import sys
from functools import partial

import pytest

from mtlkit.store import ResultStore
from tests.documents import ROOT, marked_blocks, run_commands

PAGE = ROOT / "docs" / "gpu.md"


@pytest.fixture
def main(monkeypatch):
    """The script's own module; ``gpu_checks`` is its package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_checks import main

    return main


def run_script(folder, *flags):
    """The command of the page, on a CPU; its rows by section."""
    ((_, command),) = [block for block in marked_blocks(PAGE, "run") if block[0] == "script"]
    arguments = [sys.executable, *shlex.split(command)[1:], "--device", "cpu", *flags]
    environment = os.environ | {"MTLKIT_DATA": str(folder / "data")}
    ended = subprocess.run(
        [*arguments, "--out", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads((folder / "gpu.json").read_text(encoding="utf-8"))


def test_the_script_runs_on_a_cpu(tmp_path):
    sections = run_script(tmp_path, "--only", "env,syncs")
    assert [row["passed"] for row in sections["syncs"]] == [True, True, True, None]
    assert "versions" in [row["what"] for row in sections["env"]]


@pytest.mark.slow
def test_all_its_sections_run_on_a_cpu(tmp_path):
    sections = run_script(tmp_path, "--budget", "1500")
    assert len(sections) == 10
    assert not [
        row for rows in sections.values() for row in rows if "stopped" in str(row["figure"])
    ]


def test_settings_of_the_page_are_recorded(tmp_path):
    flags = f"-d 'synthetic[rows=400,d=4]' --device cpu --jobs 1 --out {tmp_path}/results"
    (ended,) = run_commands(PAGE, tmp_path, "bench", flags)
    assert ended.returncode == 0, ended.stderr
    records = [record for record, _ in ResultStore(tmp_path / "results").scan()]
    assert [record.environment["deterministic"] for record in records] == [True, True]


def test_a_section_that_hangs_or_dies_is_a_row(main, tmp_path, monkeypatch):
    programs = {
        "env": "import time; time.sleep(600)",
        "smoke": "import sys; input(); sys.exit(3)",
        "parity": "import sys; sys.exit(4)",
        "syncs": "input()",
    }
    parts = dict.fromkeys(programs, ("", 30)) | {"env": ("", 0.3)}
    monkeypatch.setattr(main, "SECTIONS", parts)
    monkeypatch.setattr(
        main, "command_of", lambda name, *more: [sys.executable, "-c", programs[name]]
    )
    results = main.Results(tmp_path)
    results.clear()
    main.run(list(programs), main.Job("cpu", ""), 300, results)
    found = {name: [row["figure"] for row in rows[:-1]] for name, rows in results.read().items()}
    assert found == {
        "env": ["stopped after 1 s"],
        "smoke": ["exit code 3"],
        "parity": ["exit code 4"],
        "syncs": [],
    }


def test_a_check_that_raises_is_a_row_and_the_next_one_goes_on(main):
    def good():
        yield main.Row("good", 1)

    def bad(name):
        raise ZeroDivisionError(f"of {name}")
        yield

    def checks():
        yield partial(bad, "one")
        yield partial(good)
        raise RuntimeError("at the end")

    rows = list(main.rows_of(checks()))
    assert [(row.what, row.figure) for row in rows] == [
        ("bad one", "ZeroDivisionError: of one"),
        ("good", 1),
        ("the rest", "RuntimeError: at the end"),
    ]
