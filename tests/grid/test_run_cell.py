import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlkit.data.sources import prepare
from mtlkit.errors import MissingError, UsageError
from mtlkit.grid.global_state import GlobalState
from mtlkit.grid.grid_settings import read_grid
from mtlkit.grid.machine import resolve_device
from mtlkit.grid.plan import make_plan
from mtlkit.grid.run_cell import failure, load_planned_dataset, run_cell
from mtlkit.grid.stacking import run_stack
from mtlkit.records import RunRecord
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore
from tests.conftest import DATA

MIXED = "synthetic[rows=200,d=4,tasks=3,kind=mixed]"
CPU = ExecutionSettings(device="cpu")


@pytest.fixture(scope="module")
def cells(home):
    """Cells of a grid on small data, two epochs in batches of 50."""

    def make(models="mmoe", balancers="uniform", *items, dataset=DATA, tasks=None):
        flags = {
            "dataset": dataset,
            "models": models,
            "balancers": balancers,
            "references": [],
            "seeds": 1,
        }
        source, data = prepare(dataset, home)
        data = data.select(tasks) if tasks else data
        settings = read_grid(None, flags, ["epochs=2", "batch_size=50", *items])
        return make_plan(settings, source, data, ResultStore(home / "nothing")).to_run

    return make


def test_a_record_is_complete(cells, home, tmp_path):
    shares = []
    (cell,) = cells("mmoe[experts=2]", "pcgrad", dataset=MIXED)
    outcome = run_cell(cell, home, CPU, shares.append)
    record = outcome.record
    assert (record.status, record.key, record.group, record.cell) == (
        "ok",
        cell.key,
        cell.group,
        cell,
    )
    assert record.error is None
    assert [(task["name"], task["kind"], task["metric"]) for task in record.tasks] == [
        ("task-1", "binary", "auc"),
        ("task-2", "regression", "r2"),
        ("task-3", "binary", "auc"),
    ]
    assert {task["space"] for task in record.tasks} == {"all rows"}
    assert 0 <= record.metrics["test"]["task-1"]["auc"] <= 1
    assert {"auc", "logloss", "positives", "rows"} <= set(record.metrics["validation"]["task-3"])
    assert record.metrics["test"]["task-2"]["rows"] == 50
    assert shares == [entry["step"] / 8 for entry in record.curve]
    assert len(record.curve) == 8
    assert record.cost["backward_passes_per_step"] == 3
    assert record.cost["peak_memory_bytes"] > 1e7
    assert {"parameters", "train_rows_per_second", "flops_per_row"} <= set(record.cost)
    assert record.timing["train_seconds"] > 0
    assert {"mtlkit", "python", "torch", "device", "threads", "started", "finished"} <= set(
        record.environment
    )
    assert record.environment["device_type"] == "cpu"
    assert set(outcome.arrays) == {"probes", "scores", "weights"}
    assert outcome.log.count("\n") == 8
    folder = ResultStore(tmp_path).save(record, outcome.arrays, outcome.log)
    assert ResultStore(tmp_path).get(cell) == RunRecord.model_validate(
        record.model_dump(mode="json")
    )
    for stem, named in outcome.arrays.items():
        again = ResultStore.arrays(folder, stem)
        assert again.keys() == named.keys()
        for key, value in named.items():
            np.testing.assert_array_equal(again[key], value)


def test_the_same_cell_gives_the_same_numbers(cells, home):
    (cell,) = cells("ple[hidden=4]", "gradnorm", "dropout=.2")
    one, two = (run_cell(cell, home, CPU).record for _ in range(2))
    assert one.metrics == two.metrics
    assert one.curve == two.curve


def test_what_does_not_count_is_not_kept(cells, home):
    (cell,) = cells()
    execution = ExecutionSettings(device="cpu", probes=False, save_scores=False, save_weights=False)
    plain = run_cell(cell, home, execution)
    assert plain.arrays == {}
    assert plain.record.metrics == run_cell(cell, home, CPU).record.metrics


def test_a_subset_of_tasks(cells, home):
    (cell,) = cells(tasks=["task-2"])
    assert list(run_cell(cell, home, CPU).record.metrics["test"]) == ["task-2"]


def test_settings_reach_the_run(cells, home):
    (cell,) = cells("mmoe[experts=3,hidden=5]", "static[w=1:3]")
    outcome = run_cell(cell, home, CPU)
    assert outcome.arrays["probes"]["gate/level-1/task-1/mean"].shape == (8, 3)
    np.testing.assert_allclose(outcome.arrays["probes"]["weights"], np.tile([0.5, 1.5], (8, 1)))


def test_divergence_is_a_record(cells, home):
    (cell,) = cells("mmoe", "uniform", "optimizer=sgd", "lr=1e30")
    record = run_cell(cell, home, CPU).record
    assert record.status == "failed"
    assert record.error.type == "Diverged"
    assert "is not finite" in record.error.message
    assert 1 <= record.error.step <= 8
    assert record.metrics == {}
    assert record.environment["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("raise ValueError('this went wrong')", "ValueError", "this went wrong"),
        ("raise ValueError('half of a \\ud83d')", "ValueError", r"half of a \ud83d"),
        ("raise MemoryError", "MemoryError", "MemoryError"),
        ("return SharedGradient(step.jacobian().sum(0) * torch.nan)", "Diverged", "is not finite"),
        ("return torch.full_like(step.losses, torch.nan)", "MtlkitError", "the weight nan"),
        ("return torch.full_like(step.losses, 3e38)", "MtlkitError", "the weight 3e+38"),
        ("return torch.ones(7)", "MtlkitError", "gave weights of shape (7,) for 2 tasks"),
    ],
)
def test_whatever_a_balancer_raises_is_a_record(cells, home, plugin, tmp_path, body, kind, message):
    (cell,) = cells("shared-bottom", plugin(tmp_path, "bad.py", body))
    outcome = run_cell(cell, home, CPU)
    assert outcome.record.status == "failed"
    assert outcome.record.error.type == kind
    assert message in outcome.record.error.message
    assert "Traceback" in outcome.record.error.traceback
    assert outcome.log == outcome.record.error.traceback
    assert outcome.arrays == {}
    ResultStore(tmp_path).save(outcome.record, log=outcome.log)
    assert ResultStore(tmp_path).get(cell) == outcome.record


def test_a_batch_larger_than_the_data_is_a_warning_of_the_record(cells, home):
    (cell,) = cells("shared-bottom", "uniform", "batch_size=1000", "epochs=0.5")
    (warning,) = run_cell(cell, home, CPU).record.warnings
    assert warning.startswith("a step takes 1,000 rows, but the training split has 200: ")
    assert "makes 5 passes over the data where epochs asks for 0.5" in warning


def test_failures_say_what_a_user_should_read(cells):
    (cell,) = cells()
    record = failure(cell, MissingError("One sentence.", "a hint")).record
    assert record.error.message == "One sentence."
    assert failure(cell, TimeoutError(), status="timeout").record.status == "timeout"


def test_data_that_changed_since_the_plan(cells, home):
    (cell,) = cells()
    dataset = cell.resolved["dataset"] | {"fingerprint": "0" * 64}
    changed = cell.model_copy(update={"resolved": cell.resolved | {"dataset": dataset}})
    with pytest.raises(MissingError, match="have changed since the plan"):
        load_planned_dataset(changed, home)
    record = run_cell(changed, home, CPU).record
    assert (record.status, record.error.type) == ("failed", "MissingError")
    assert load_planned_dataset(cell, home).fingerprint == cell.resolved["dataset"]["fingerprint"]


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(MissingError, match="no GPU 'cuda' here: none was found") as caught:
        resolve_device("cuda")
    assert caught.value.hint == "mtlkit bench --device cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(MissingError, match="only 2 found"):
        resolve_device("cuda:2")


def test_peak_memory_may_be_out_of_reach(cells, home, monkeypatch, tmp_path):
    """Some sandboxes let nobody reset the high-water mark; the run goes on."""
    monkeypatch.setattr("mtlkit.grid.machine.PEAK_FILE", tmp_path)  # a folder cannot be written to
    (cell,) = cells()
    record = run_cell(cell, home, CPU).record
    assert record.ok
    assert math.isfinite(record.cost["peak_memory_bytes"])


def test_a_cell_starts_from_the_weights_of_a_run(cells, home, tmp_path):
    model = "mmoe[experts=2,hidden=4]"
    (cell,) = cells(model)
    outcome = run_cell(cell, home, CPU)
    folder = ResultStore(tmp_path).save(outcome.record, outcome.arrays)
    (warm,) = cells(model, "uniform", f"execution.init_from={folder}", "freeze=gates.*")
    assert warm.resolved["training"]["init_from"] == cell.key
    assert warm.key != cell.key
    execution = CPU.model_copy(update={"init_from": folder})
    started = run_cell(warm, home, execution).record
    assert started.ok, started.error
    first = [record.curve[0]["train_loss"]["task-1"] for record in (outcome.record, started)]
    assert first[1] < first[0], "it goes on where the other stopped"
    (folder / "weights.npz").unlink()
    lost = run_cell(warm, home, execution).record
    assert not lost.ok
    assert "to start from are not in" in lost.error.message


def test_what_to_start_from_is_checked_before_anything_runs(cells, home, tmp_path):
    (cell,) = cells()
    execution = CPU.model_copy(update={"save_weights": False})
    outcome = run_cell(cell, home, execution)
    folder = ResultStore(tmp_path).save(outcome.record, outcome.arrays)
    with pytest.raises(UsageError, match="kept no weights"):
        cells("mmoe", "uniform", f"execution.init_from={folder}")
    with pytest.raises(UsageError, match="no finished run"):
        cells("mmoe", "uniform", f"execution.init_from={tmp_path}/nothing")
    with pytest.raises(UsageError, match="none is named"):
        cells("mmoe", "uniform", "freeze=gates.*")


def test_what_is_compared_inside_the_model_is_not_compiled(cells, home):
    (cell,) = cells("mmoe[hidden=4]", "mgda", "scope=representation")
    plain = run_cell(cell, home, CPU).record
    record = run_cell(cell, home, CPU.model_copy(update={"compile": "on"})).record
    assert record.environment["compiled"] is False
    assert record.warnings == [
        "not compiled: with scope=representation tasks part inside what would be compiled"
    ]
    assert record.metrics == plain.metrics


def test_compiling_is_recorded_and_its_failure_a_warning(cells, home, monkeypatch):
    asked = []

    def compile_nothing(function, **options):
        asked.append(options)

        def body(batch):
            raise RuntimeError("no compiler")

        return body

    (cell,) = cells("mmoe[hidden=4]", "uniform")
    plain = run_cell(cell, home, CPU.model_copy(update={"compile": "auto"})).record
    assert (plain.environment["compiled"], plain.environment["compile_seconds"]) == (False, 0)
    monkeypatch.setattr(torch, "compile", compile_nothing)
    record = run_cell(cell, home, CPU.model_copy(update={"compile": "on"})).record
    assert asked == [{"dynamic": False, "fullgraph": True}]
    assert record.ok
    assert record.environment["compiled"] is False
    assert record.warnings == [
        "torch.compile failed, the run went on without it: RuntimeError: no compiler"
    ]
    assert record.metrics == plain.metrics


def test_a_cell_computes_as_its_settings_say_and_leaves_nothing(cells, home, monkeypatch):
    """Also where it fails, and in a stack."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = GlobalState.now()
    plain, asked = (
        cells("mmoe[experts=2]"),
        cells("mmoe[experts=2]", "uniform,uwl", "deterministic=true", "matmul=tf32"),
    )
    assert plain[0].key != asked[0].key
    assert "deterministic" not in plain[0].resolved["training"]
    record = run_cell(asked[0], home, CPU).record
    assert (record.status, record.environment["deterministic"]) == ("ok", True)
    assert run_cell(plain[0], home, CPU).record.environment["deterministic"] is False
    stacked = [outcome.record for outcome in run_stack(asked, home, CPU, lambda share: None, Path)]
    assert [record.environment["deterministic"] for record in stacked] == [True, True]
    changed = asked[0].resolved["dataset"] | {"fingerprint": "another"}
    broken = asked[0].model_copy(update={"resolved": asked[0].resolved | {"dataset": changed}})
    assert run_cell(broken, home, CPU).record.status == "failed"
    assert before.changes() == []


def test_weights_without_room_on_a_gpu_are_told_by_their_size(cells, home, monkeypatch):
    numbers = []

    def full(model, *_):
        numbers.append(sum(weights.numel() for weights in model.parameters()))
        raise torch.OutOfMemoryError("CUDA out of memory")

    (cell,) = cells()
    monkeypatch.setattr(torch.nn.Module, "to", full)
    record = run_cell(cell, home, CPU).record
    assert record.status == "failed"
    size = re.search(r"weights of the model take (\S+) GB, embedding tables", record.error.message)
    assert float(size[1]) == pytest.approx(4 * numbers[0] / 1e9, rel=0.01)
