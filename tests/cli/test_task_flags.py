"""Losses, task weights and labels from the command line and from a file of a grid."""

import pytest

from mtlkit.grid.grid_settings import read_grid
from mtlkit.store import ResultStore
from tests.conftest import DATA

SHORT = ["-d", DATA, "--models", "shared-bottom", "--balancers", "uniform", "--references", "none"]
SHORT += ["--seeds", "1", "--epochs", "0.1"]


@pytest.fixture
def bench(cli, home, tmp_path):
    out = tmp_path / "results"

    def run(*arguments):
        ended = cli("bench", *SHORT, "--data-dir", home, "-o", out, *arguments)
        return ended, [record for record, _ in ResultStore(out).scan()]

    return run


def test_a_loss_by_set_is_part_of_the_key(bench):
    ended, records = bench()
    assert ended.code == 0, ended.err
    (plain,) = records
    assert "loss" not in plain.cell.resolved["training"]

    ended, records = bench("--set", "loss.task-1=focal[gamma=2]", "--task-weights", "task-2=4")
    assert ended.code == 0, ended.err
    (changed,) = [record for record in records if record.key != plain.key]
    training = changed.cell.resolved["training"]
    assert training["loss"] == {"task-1": ["focal[weight=1,gamma=2,alpha=0.25,detach=false]"]}
    assert training["task_weights"] == {"task-2": 4}
    assert changed.ok
    assert changed.metrics != plain.metrics

    # the same by its defaults is done already
    ended, records = bench("--set", "loss.task-1=focal", "--task-weights", "task-2=4.0")
    assert len(records) == 2


def test_the_labels_of_a_file_are_settings_of_built_in_sets_too(cli, bench, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "labels:\n"
        "  task-1: {losses: 'focal[gamma=1]', weight: 2}\n"
        "  task-2: {report: false, row_weights: {indicator: task-1, outside: 0.5}}\n"
    )
    training = read_grid(grid, {}, []).training
    assert training.loss == {"task-1": ("focal[gamma=1]",)}
    assert training.auxiliary == ("task-2",)
    assert training.row_weights["task-2"].outside == 0.5
    assert training.select_weights == {"task-1": 2}
    ended, records = bench(grid)
    assert ended.code == 0, ended.err
    (record,) = records
    assert set(record.metrics["test"]) == {"task-1"}
    assert [task["name"] for task in record.tasks] == ["task-1"]
    assert cli("report", tmp_path / "results").code == 0


WRONG = {
    "no list of labels": ("labels: [task-1]\n", "labels: {click: {losses: focal}}"),
    "what a table settles": ("labels: {task-1: {kind: binary}}\n", "mtlkit init TABLE"),
    "no option": ("labels: {task-1: {los: focal}}\n", "its options are"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_labels_in_a_file(bench, tmp_path, case):
    text, hint = WRONG[case]
    grid = tmp_path / "grid.yaml"
    grid.write_text(text)
    ended, records = bench(grid)
    assert (ended.code, records) == (2, [])
    assert "Traceback" not in ended.err
    assert hint in " ".join(ended.err.split())


@pytest.mark.parametrize("text", ["4", "=4", ",", "task-1"])
def test_wrong_task_weights(bench, text):
    ended, _ = bench("--task-weights", text)
    assert ended.code == 2
    assert "hint: --task-weights click=1,buy=4" in ended.err


LOSS = '''"""Half: half of the log loss.

More.
"""
from mtlkit.losses.bce import BCE


class Half(BCE):
    """Half."""

    kinds = ("binary",)
    outputs = 1

    def rows(self, logits, labels):
        return super().rows(logits, labels) / {divisor}
'''


def test_a_loss_of_ones_own_is_a_file_whose_content_is_part_of_the_key(bench, tmp_path):
    file = tmp_path / "half.py"
    file.write_text(LOSS.replace("{divisor}", "2"))
    ended, records = bench("--set", f"loss.task-1={file}")
    assert ended.code == 0, ended.err
    (record,) = records
    assert list(record.cell.resolved["losses"]) == [str(file)]
    file.write_text(LOSS.replace("{divisor}", "4"))
    ended, records = bench("--set", f"loss.task-1={file}")
    assert len({record.key for record in records}) == 2
