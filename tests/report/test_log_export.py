"""Exported logs hold what the records do, read back by the programs themselves."""

import json
import sys

import pytest

from mtlkit.store import ResultStore
from tests import fakes
from tests.conftest import files, run_cli

CURVE = [
    {
        "point": 0,
        "step": 100,
        "epoch": 1.0,
        "train_loss": {"income": 0.5, "marital": 0.25},
        "validation": {"income": {"space": "all rows", "derived": False, "auc": 0.75}},
    },
    {
        "point": 1,
        "step": 200,
        "epoch": 2.0,
        "train_loss": {"income": 0.25, "marital": 0.125},
        "validation": {"income": {"space": "all rows", "derived": False, "auc": None}},
    },
]
TIMES = {"started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T03:05:05+00:00"}


@pytest.fixture
def results(tmp_path):
    """Two finished runs and one that failed."""
    store = ResultStore(tmp_path / "results")
    for seed in (0, 1):
        run = fakes.record(fakes.cell(seed=seed))
        store.save(run.model_copy(update={"curve": CURVE, "environment": TIMES}))
    store.save(fakes.failure(fakes.cell(seed=2)).model_copy(update={"environment": TIMES}))
    return tmp_path / "results"


def export(results, program, out):
    pytest.importorskip(program, reason=f"{program} is an extra")
    before = files(results)
    ended = run_cli("export", results, "--to", program, "--out", out)
    assert ended.code == 0, ended.err
    assert files(results) == before
    return ended.out


def test_tensorboard_reads_curves_settings_and_metrics(results, tmp_path):
    assert "(runs written: 3)" in export(results, "tensorboard", tmp_path / "logs")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    expected = fakes.record(fakes.cell(seed=0))
    folder = tmp_path / "logs" / ResultStore(results).folder(expected.cell).relative_to(results)
    log = EventAccumulator(str(folder)).Reload()
    losses = [(event.step, event.value) for event in log.Scalars("curve/train_loss/income")]
    assert losses == [(100, 0.5), (200, 0.25)]
    assert [event.value for event in log.Scalars("curve/validation/income/auc")] == [0.75]
    (auc,) = log.Scalars("test/income/auc")
    assert auc.value == pytest.approx(expected.metrics["test"]["income"]["auc"], rel=1e-6)

    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["training.lr"].number_value == 0.002
    assert settings["model.name"].string_value == "mmoe"
    assert settings["seed"].number_value == 0


def test_mlflow_reads_curves_settings_and_metrics(results, tmp_path, monkeypatch):
    export(results, "mlflow", tmp_path / "logs")
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "logs").as_uri())
    experiment = client.get_experiment_by_name("census")
    runs = {run.data.params["seed"]: run for run in client.search_runs([experiment.experiment_id])}
    assert [runs[seed].info.status for seed in "012"] == ["FINISHED", "FINISHED", "FAILED"]
    expected = fakes.record(fakes.cell(seed=1))
    run = runs["1"]
    assert run.data.params["training.lr"] == "0.002"
    assert run.data.metrics["test/income/auc"] == expected.metrics["test"]["income"]["auc"]
    assert run.data.tags["mtlkit.key"] == expected.key
    assert run.info.end_time - run.info.start_time == 60_000
    history = client.get_metric_history(run.info.run_id, "curve/train_loss/income")
    assert [(metric.step, metric.value) for metric in history] == [(100, 0.5), (200, 0.25)]


@pytest.mark.slow
def test_wandb_writes_a_run_a_cell_offline(results, tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    export(results, "wandb", tmp_path / "logs")
    runs = list((tmp_path / "logs" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 3
    contents = [file.read_bytes() for file in runs]
    assert all(b"training.lr" in content for content in contents)
    assert sum(b"test/income/auc" in content for content in contents) == 2
    assert not list((tmp_path / "user").iterdir())


def test_a_second_export_adds_what_is_new(results, tmp_path):
    out = tmp_path / "logs"
    export(results, "tensorboard", out)
    before = files(out)
    assert "(runs written: 0; 3 exported before)" in export(results, "tensorboard", out)
    assert files(out) == before
    ResultStore(results).save(fakes.record(fakes.cell(seed=3)))
    assert "(runs written: 1; 3 exported before)" in export(results, "tensorboard", out)


@pytest.mark.parametrize("program", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_extra_is_a_sentence(results, tmp_path, monkeypatch, program):
    monkeypatch.setitem(sys.modules, program, None)
    ended = run_cli("export", results, "--to", program, "--out", tmp_path / "logs")
    assert ended.code == 3
    assert f"{program} is not installed." in ended.err
    assert f"pip install 'mtlkit[{program}]'" in ended.err
    assert not (tmp_path / "logs").exists()


def test_what_cannot_be_exported_is_a_sentence(results, tmp_path):
    assert run_cli("export", results, "--to", "paper", "--out", tmp_path / "x").code == 2
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    assert (
        run_cli("export", tmp_path / "none", "--to", "tensorboard", "--out", tmp_path / "x").code
        == 3
    )
    (tmp_path / "file").write_text("")
    ended = run_cli("export", results, "--to", "tensorboard", "--out", tmp_path / "file")
    assert ended.code == 3
    assert "Traceback" not in ended.err
    assert json.dumps(ended.err).isascii()
