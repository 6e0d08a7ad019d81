"""A run that is repeated: what counts as the same, and what is said of differences."""

import json
import math
import statistics
from pathlib import Path

import pytest
from scipy.stats import t

from mtlkit.records import Cell, RunRecord
from mtlkit.store import ResultStore
from tests.conftest import DATA, files, run_cli


@pytest.fixture(scope="module")
def results(tmp_path_factory, home):
    """Three seeds of one group."""
    out = tmp_path_factory.mktemp("rerun") / "results"
    flags = ["--models", "shared-bottom", "--balancers", "uniform", "--references", "none"]
    flags += ["--seeds", "3", "--epochs", "1", "--batch-size", "50", "--device", "cpu"]
    ended = run_cli("bench", "-d", DATA, *flags, "--data-dir", home, "--out", out)
    assert ended.code == 0, ended.err
    return out


def folder_of(results, seed=0):
    (folder,) = results.glob(f"*/*/*/seed-{seed}-*")
    return folder


def changed(results, tmp_path, change):
    """A copy of all runs, in which the record of seed 0 is another one."""
    store = ResultStore(tmp_path / "copy")
    for record, _ in list(ResultStore(results).scan()):
        plain = record.model_dump(mode="json")
        if record.cell.seed == 0:
            change(plain)
            cell = Cell.model_validate(plain["cell"])
            plain |= {"key": cell.key, "group": cell.group}
        store.save(RunRecord.model_validate(plain))
    return tmp_path / "copy"


def rerun(target, home, *flags):
    ended = run_cli("rerun", target, "--data-dir", home, "--json", *flags)
    assert ended.code in (0, 1), ended.err
    repeated = json.loads(ended.out)
    assert repeated["matches"] == (ended.code == 0)
    return repeated


def test_a_record_carries_what_its_digits_depend_on(results):
    environment = json.loads((folder_of(results) / "record.json").read_text())["environment"]
    versions = {"mtlkit", "python", "torch", "numpy", "scipy", "numba"}
    hardware = {"device", "device_type", "machine", "cpu_capability", "cores", "cuda"}
    flags = {"threads", "deterministic", "cudnn_benchmark", "matmul_precision", "compiled"}
    assert versions | hardware | flags | {"git_commit", "plugin_commits"} <= set(environment)
    assert environment["execution"] == {"device": "cpu"}


def test_it_gives_the_same_digits_and_changes_nothing(results, home):
    before = files(results)
    by_folder = rerun(folder_of(results), home)
    assert by_folder["verdict"] == "same digits"
    assert by_folder["differences"] == []
    assert all(one["before"] == one["now"] for one in by_folder["metrics"])
    assert {"auc", "logloss", "calibration"} <= {one["metric"] for one in by_folder["metrics"]}
    assert files(results) == before


def test_several_processes_are_as_many_again(home, tmp_path):
    flags = ["--models", "shared-bottom", "--balancers", "uniform", "--references", "none"]
    flags += ["--seeds", "1", "--epochs", "1", "--batch-size", "50", "--device", "cpu"]
    out = tmp_path / "results"
    run_cli("bench", "-d", DATA, *flags, "--processes", "2", "--data-dir", home, "--out", out)
    assert rerun(folder_of(out), home)["verdict"] == "same digits"


def test_a_record_and_a_key_name_a_run(results, home):
    folder = folder_of(results)
    key = json.loads((folder / "record.json").read_text())["key"]
    by_key = rerun(key[:10], home, "--results", results)
    by_file = rerun(folder / "record.json", home)
    assert by_key["key"] == by_file["key"] == key


def test_other_digits_on_the_same_kernels_are_a_difference(results, home, tmp_path):
    def change(plain):
        plain["metrics"]["test"]["task-1"]["auc"] += 1e-12

    repeated = rerun(folder_of(changed(results, tmp_path, change)), home)
    assert repeated["verdict"] == "differs"
    assert "same" in repeated["reason"]
    different = [one for one in repeated["metrics"] if one["difference"]]
    assert [(one["split"], one["task"], one["metric"]) for one in different] == [
        ("test", "task-1", "auc")
    ]
    assert different[0]["difference"] == pytest.approx(-1e-12, rel=1e-3)


def on_other_kernels(shift):
    def change(plain):
        plain["environment"]["torch"] = "1.0"
        plain["metrics"]["test"]["task-1"]["auc"] += shift

    return change


def test_on_other_kernels_the_bound_is_what_seeds_do(results, home, tmp_path):
    copy = changed(results, tmp_path, on_other_kernels(1e-3))
    repeated = rerun(folder_of(copy), home)
    assert repeated["verdict"] == "within bound"
    (torch_version,) = repeated["differences"]
    assert (torch_version["what"], torch_version["before"]) == ("torch", "1.0")
    assert torch_version["moves_digits"]

    # t quantile of 2 degrees of freedom, 5 % over two scores and two sides
    values = [record.metrics["test"]["task-1"]["auc"] for record, _ in ResultStore(copy).scan()]
    expected = t.ppf(1 - 0.05 / 4, 2) * statistics.stdev(values) * math.sqrt(2)
    (auc,) = [one for one in repeated["metrics"] if one["difference"]]
    assert auc["bound"] == pytest.approx(expected)
    assert auc["difference"] == pytest.approx(-1e-3)


def test_a_tolerance_takes_the_place_of_seeds(results, home, tmp_path):
    copy = changed(results, tmp_path, on_other_kernels(2e-9))
    assert rerun(folder_of(copy), home, "--tolerance", "1e-8")["verdict"] == "within bound"
    assert rerun(folder_of(copy), home, "--tolerance", "1e-9")["verdict"] == "differs"


def test_without_seeds_there_is_no_bound(results, home, tmp_path):
    copy = changed(results, tmp_path, on_other_kernels(1e-9))
    alone = tmp_path / "alone" / "a" / "b" / "c" / folder_of(copy).name
    alone.parent.mkdir(parents=True)
    folder_of(copy).rename(alone)
    repeated = rerun(alone, home)
    assert repeated["verdict"] == "differs"
    assert "--tolerance" in repeated["reason"]


def test_other_data_are_named(results, home, tmp_path):
    def change(plain):
        plain["cell"]["resolved"]["dataset"]["fingerprint"] = "0" * 64

    repeated = rerun(folder_of(changed(results, tmp_path, change)), home)
    assert repeated["verdict"] == "same digits"  # the data are, whatever was noted
    (fingerprint,) = repeated["differences"]
    assert fingerprint["what"] == "data fingerprint"
    assert fingerprint["before"] == "0" * 64


def test_a_record_runs_no_file_unasked(home, tmp_path, plugin):
    name = plugin(tmp_path, "mine.py")
    flags = ["--models", "shared-bottom", "--references", "none", "--seeds", "1", "--epochs", "1"]
    flags += ["--batch-size", "50", "--data-dir", home, "--out", tmp_path / "results"]
    assert run_cli("bench", "-d", DATA, "--balancers", name, *flags).code == 0
    folder = folder_of(tmp_path / "results")
    refused = run_cli("rerun", folder, "--data-dir", home)
    assert refused.code == 2
    assert "mine.py" in refused.err
    assert rerun(folder, home, "--plugins")["verdict"] == "same digits"

    # a plugin that was edited is another one
    plugin(tmp_path, "mine.py", "return 2 * step.active.to(step.losses.dtype)")
    repeated = rerun(folder, home, "--plugins")
    assert "source of the balancer" in [one["what"] for one in repeated["differences"]]


def test_a_loss_is_a_file_as_well(home, tmp_path):
    """Named in the record it is asked for; left out there it is not run."""
    name, ran = str(tmp_path / "mine.py"), tmp_path / "ran"
    code = (
        f"from pathlib import Path\nfrom mtlkit.losses.bce import BCE\nPath({str(ran)!r}).touch()"
    )
    Path(name).write_text(f"{code}\n\n\nclass Mine(BCE):\n    pass\n")
    out = tmp_path / "results"
    flags = ["--models", "shared-bottom", "--references", "none", "--balancers", "uniform"]
    flags += ["--seeds", "1", "--epochs", "1", "--batch-size", "50", "--data-dir", home]
    loss = f"loss.task-1={name}"
    assert run_cli("bench", "-d", DATA, *flags, "--set", loss, "--out", out).code == 0
    assert rerun(folder_of(out), home, "--plugins")["verdict"] == "same digits"

    ran.unlink()
    refused = run_cli("rerun", folder_of(out), "--data-dir", home)
    assert refused.code == 2
    assert "mine.py" in refused.err
    hidden = changed(out, tmp_path, lambda plain: plain["cell"]["resolved"].pop("losses"))
    assert "has changed since the plan" in rerun(folder_of(hidden), home)["reason"]
    assert not ran.exists()


def test_what_failed_fails_again(home, tmp_path, plugin):
    name = plugin(tmp_path, "raises.py", "raise ValueError('bad luck')")
    flags = ["--models", "shared-bottom", "--references", "none", "--seeds", "1", "--epochs", "1"]
    flags += ["--batch-size", "50", "--data-dir", home, "--out", tmp_path / "results"]
    assert run_cli("bench", "-d", DATA, "--balancers", name, *flags).code == 1
    repeated = rerun(folder_of(tmp_path / "results"), home, "--plugins")
    assert repeated["matches"]
    assert "bad luck" in repeated["reason"]


@pytest.mark.parametrize("target", ["nowhere", "ffffff"])
def test_what_names_no_run_is_an_error(results, target):
    ended = run_cli("rerun", target, "--results", results)
    assert ended.code == 3
    assert "hint:" in ended.err


def test_an_ambiguous_key_is_an_error(results):
    assert run_cli("rerun", "", "--results", results).code == 2
    keys = [record.key for record, _ in ResultStore(results).scan()]
    shared = [key[:1] for key in keys if [other[:1] for other in keys].count(key[:1]) > 1]
    for letter in shared:
        assert run_cli("rerun", letter, "--results", results).code == 2


def test_it_says_so_in_words(results):
    ended = run_cli("rerun", folder_of(results), "--data-dir", results / "no-data-yet")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("same digits: ")
