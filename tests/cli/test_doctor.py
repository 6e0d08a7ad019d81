"""What mtlkit needs, and what is said where it is missing."""

import json

import numpy as np
import pytest

from mtlkit.cli import doctor
from mtlkit.data.storage import MANIFEST
from tests.conftest import DATA, files, run_cli


def checks(*flags):
    ended = run_cli("doctor", "--json", *flags)
    found = json.loads(ended.out)
    assert ended.code == any(check["state"] == "bad" for check in found)
    return {check["name"]: check for check in found}


@pytest.fixture
def own_home(tmp_path):
    from mtlkit.data.sources import prepare

    prepare(DATA, tmp_path / "home")
    return tmp_path / "home"


def test_a_sound_machine_is_sound_and_nothing_changes(own_home, tmp_path):
    before = files(tmp_path)
    found = checks("--data-dir", own_home, "--out", tmp_path / "new" / "results")
    assert not [check for check in found.values() if check["state"] == "bad"]
    wanted = {"packages", "torch", "cuda", "kernels", "cores", "memory", "results", "data"}
    assert wanted | {"data set synthetic", "extra tensorboard"} <= set(found)
    assert "extra dev" not in found
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_every_finding_says_what_to_do(own_home, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_has", lambda name: False)
    monkeypatch.setattr(doctor, "LEAST_DISK", 1 << 80)
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 1 << 80)
    found = checks("--data-dir", own_home, "--out", tmp_path)
    assert found["packages"]["state"] == "bad"
    assert found["extra mlflow"]["fix"].endswith("pip install 'mtlkit[mlflow]'")
    assert {found[name]["state"] for name in ("results", "data", "memory")} <= {"note", "ok"}
    assert found["results"]["state"] == "note"
    for check in found.values():
        assert check["state"] == "ok" or check["fix"], check


def test_damaged_data_are_found(own_home):
    (array,) = own_home.glob("*/prepared/*/train.dense.npy")
    np.save(array, np.zeros(3))
    check = checks("--data-dir", own_home)["data set synthetic"]
    assert check["state"] == "bad"
    assert "train.dense.npy" in check["message"]


def test_data_of_another_version_are_a_note(own_home):
    (manifest,) = own_home.glob(f"*/prepared/*/{MANIFEST}")
    manifest.write_text("{}")
    assert checks("--data-dir", own_home)["data set synthetic"]["state"] == "note"
    assert checks("--data-dir", own_home / "empty")["data sets"]["fix"] == "mtlkit fetch census"


def test_a_folder_that_is_a_file_is_bad(tmp_path):
    (tmp_path / "file").write_text("")
    check = checks("--out", tmp_path / "file" / "results", "--data-dir", tmp_path)["results"]
    assert (check["state"], check["fix"]) == ("bad", "choose another with --out DIR")


def test_a_check_that_fails_is_a_finding(tmp_path, monkeypatch):
    def fails():
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "_torch", fails)
    check = checks("--data-dir", tmp_path, "--out", tmp_path)["torch"]
    assert "RuntimeError: no such thing" in check["message"]


def test_lines_are_for_people(tmp_path):
    ended = run_cli("doctor", "--data-dir", tmp_path, "--out", tmp_path)
    assert ended.code == 0
    assert all(line[:4] in ("ok  ", "note", "bad ") for line in ended.out.splitlines())
    assert "Traceback" not in ended.out + ended.err


def test_packages_are_those_of_pyproject():
    needed, extras = doctor._requirements()
    assert {"torch", "numba", "httpx"} <= set(needed)
    assert extras["wandb"] == ["wandb"]
    assert not {"test", "dev", "parity"} & set(extras)
