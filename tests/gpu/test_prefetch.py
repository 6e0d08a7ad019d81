"""Rows that do not fit on a GPU: gathered and sent by a thread, in order, and no thread is left."""

import threading

import numpy as np
import pytest
import torch

from mtlkit.grid.build import make_balancer, make_model
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training import batches
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.trainer import Trainer
from tests.toy import toy_dataset, toy_schema

CPU = torch.device("cpu")


@pytest.fixture
def host(gpu, monkeypatch):
    """The GPU, on which no split has room."""
    monkeypatch.setattr(batches, "MAX_MEMORY_SHARE", 0)
    return gpu


def gathering():
    """The threads that gather batches."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("mtlkit-batches")]


def trainer(device, **settings):
    data = toy_dataset(toy_schema(2, bags=1), rows=160, missing=0.3)
    chosen = TrainingSettings(batch_size=32, epochs=2, evaluations=2, optimizer="sgd", **settings)
    model = make_model("mmoe[experts=2,hidden=4,tower=3]", data, 0)
    method = make_balancer("uniform", data, chosen.scope)
    return Trainer(model, method, data, TrainingSetup(chosen, ExecutionSettings(), 0, device))


@pytest.mark.parametrize("settings", [{}, {"batches": "covering"}, {"accumulate": 2}], ids=str)
def test_a_run_whose_rows_are_sent_is_that_of_rows_on_the_device(settings, host):
    run, plain = trainer(host, **settings), trainer(CPU, **settings)
    assert run.train.storage_device != run.train.batch_device
    found, expected = run.fit(), plain.fit()
    assert not gathering()
    for name, value in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], value, rtol=1e-3, atol=1e-5)
    assert run.stream.taken == plain.stream.taken


def test_a_checkpoint_counts_what_was_trained_on_and_not_what_is_on_its_way(host):
    run = trainer(host)
    for _ in range(3):
        run.take_step()
    assert run.stream.state_dict() == {"taken": 3}
    assert len(gathering()) == 1
    rest = next(run.stream).labels.cpu()
    run.stream.close()
    assert not gathering()

    resumed = trainer(host)
    resumed.stream.load_state_dict({"taken": 3})
    assert torch.equal(next(resumed.stream).labels.cpu(), rest)
    resumed.stream.close()


@pytest.mark.parametrize("error", [RuntimeError("no such page"), KeyboardInterrupt()], ids=repr)
def test_no_thread_outlives_a_run_that_fails(error, host, monkeypatch):
    run = trainer(host)
    take, calls = run.train.take, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise error
        return take(*arguments)

    monkeypatch.setattr(run.train, "take", failing)
    with pytest.raises(type(error)):
        run.fit()
    assert not gathering()


def test_chunks_are_all_rows_in_order(host):
    split = toy_dataset(toy_schema(2, bags=1), rows=25).splits["train"]
    sent = list(DeviceSplit.load(split, host).chunks(10))
    assert torch.equal(torch.cat([chunk.dense.cpu() for chunk in sent]), torch.tensor(split.dense))
    assert not gathering()


def test_cells_that_share_a_gpu_share_its_room(gpu, monkeypatch):
    split = toy_dataset(toy_schema(2), rows=25).splits["train"]
    size = sum(array.nbytes for array in split.arrays().values())
    monkeypatch.setattr(batches, "_room_on", lambda device: 1.5 * size)
    places = [DeviceSplit.load(split, gpu, slots=slots).storage_device.type for slots in (1, 2)]
    assert places == ["cuda", "cpu"]
