"""The page on tuning goes as shown, on less data."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from tests.documents import ROOT, marked_blocks, run_python, write_files

PAGE = ROOT / "docs" / "tuning.md"
SHORTER = " --epochs 1 --batch-size 50 --seeds 2 --tune 3"


@pytest.mark.slow
def test_it_goes_as_shown(tmp_path):
    [file] = write_files(PAGE, tmp_path)
    small = "synthetic[rows=200,d=4]"
    file.write_text(file.read_text().replace("dataset: synthetic", f"dataset: {small}"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MTLKIT_DATA": str(tmp_path / "data")}

    blocks = [code for _, code in marked_blocks(PAGE, "run")]
    commands = [line for code in blocks for line in code.splitlines() if line]
    assert len(commands) == 7
    for command in commands:
        words = re.sub(r"-d synthetic\b", f"-d '{small}'", command)
        words = re.sub(r"^mtlkit\b", f"{sys.executable} -m mtlkit", words)
        if " bench " in words:
            tuned = "--tune" in command or ".yaml" in command
            by_number = tuned and "krows" not in command
            words += SHORTER if by_number else SHORTER.partition(" --tune")[0]
            words = words.replace(" --tune 20", "").replace("600krows", "300rows")
        ended = subprocess.run(
            ["bash", "-c", words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr

    # what it shows of Optuna's tools
    if importlib.util.find_spec("optuna"):
        [(_, code)] = marked_blocks(PAGE, "optuna")
        ended = run_python(code, tmp_path)
        assert ended.returncode == 0, ended.stderr
        check_copies(tmp_path)

    report = next((tmp_path / "results" / "report" / "tables").glob("*-2.md"))
    text = report.read_text()
    assert "mmoe (untuned)" in text
    assert "of 3 trials" in text


def check_copies(folder):
    """The database holds the trials of the study files, with their values and settings."""
    import optuna

    storage = f"sqlite:///{folder}/studies.db"
    summaries = optuna.get_all_study_summaries(storage)
    files = list((folder / "results" / "studies").glob("*.json"))
    assert len(summaries) == len(files) > 0
    for file in files:
        study = json.loads(file.read_text())
        [name] = [s.study_name for s in summaries if s.study_name.endswith(study["id"][:8])]
        copy = optuna.load_study(study_name=name, storage=storage)
        assert [trial.value for trial in copy.trials] == [t["value"] for t in study["trials"]]
        for trial, written in zip(copy.trials, study["trials"], strict=True):
            shown = {key: str(written["settings"][key]) for key in trial.params}
            assert {key: str(value) for key, value in trial.params.items()} == shown
            assert len(shown) >= len(written["settings"]) - 1  # but for weights that sum to T
