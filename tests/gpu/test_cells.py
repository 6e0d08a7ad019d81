"""A whole cell on a GPU, and what goes wrong there."""

from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from mtlkit.errors import MissingError
from mtlkit.grid import machine
from mtlkit.grid.build import make_balancer, make_model
from mtlkit.grid.run_cell import failure
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.trainer import Trainer
from tests.fakes import cell
from tests.toy import toy_dataset, toy_schema


def test_memory_is_counted_from_the_start_of_a_cell(gpu):
    """Before CUDA is initialised the counters cannot be reset: ``--device cuda:0`` failed so."""
    machine.reset_peak_memory(machine.resolve_device("cuda:0"))
    assert machine.peak_memory(gpu) >= 0


def test_a_full_gpu_is_a_failed_cell_that_says_what_to_do():
    record = failure(cell(), torch.OutOfMemoryError("CUDA out of memory. Tried to ...")).record
    assert record.status == "failed"
    assert "smaller batch_size" in record.error.message


def test_an_id_outside_its_table_is_an_error_with_feature_value_and_size(gpu):
    """On a GPU it would end the process, with all that other cells have there."""
    for name, split, message in (
        ("id2", "validation", "validation split holds the id 8 of 'id2' in row 3, .* of 8 ids"),
        ("bag1", "train", "train split holds the id 9 .* of the bag 'bag1' in row 0, .* 7 ids"),
    ):
        dataset = toy_dataset(toy_schema(2, bags=1), rows=160)
        if name == "id2":
            dataset.splits[split].ids[3, 1] = 8
        else:
            bag = dataset.splits[split].bags[name]
            bag.offsets[1:] = np.maximum(bag.offsets[1:], 1)
            bag.values[0] = 9
        setup = TrainingSetup(TrainingSettings(), ExecutionSettings(), 0, gpu)
        model = make_model("mmoe[experts=2,hidden=4,tower=3]", dataset, 0)
        with pytest.raises(MissingError, match=message):
            Trainer(model, make_balancer("uniform", dataset, "dense"), dataset, setup)


def test_a_record_names_driver_and_versions_of_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr(machine, "_answer", lambda command: "580.1\n580.1")
    machine.gpu_driver.cache_clear()
    described = machine.describe_environment(gpu, datetime.now(UTC), False, 0.0)
    machine.gpu_driver.cache_clear()
    assert described["driver"] == "580.1"
    assert {"cuda", "cudnn"} <= described.keys()
