from typing import get_args

import pytest
import torch
from torch import nn

from mtlkit.grid.run_cell import build_trainer
from mtlkit.records import Cell
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.seeding import Source, generator, seed_for
from tests.toy import toy_dataset, toy_schema

SOURCES = get_args(Source)


def test_every_source_of_every_seed_is_its_own():
    seeds = {seed_for(seed, source) for seed in range(50) for source in SOURCES}
    assert len(seeds) == 50 * len(SOURCES)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_on_every_machine():
    assert seed_for(0, "init") == 1519069808562059438


def test_what_one_source_draws_shifts_no_other():
    alone = torch.randperm(20, generator=generator(1, "shuffle"))
    init, shuffle = generator(1, "init"), generator(1, "shuffle")
    torch.rand(100, generator=init)
    torch.rand(100)
    assert torch.equal(torch.randperm(20, generator=shuffle), alone)


@pytest.fixture(scope="module")
def data():
    return toy_dataset(toy_schema(tasks=2), rows=160)


MODEL = "mmoe"
OPTIONS = {"experts": 2, "hidden": [6], "tower": [4], "dropout": 0.5}


def built(data, balancer="uniform", seed=0, model=MODEL, **training):
    """A trainer as the grid builds it."""
    kind = MODELS.load(model).Options
    known = {key: value for key, value in OPTIONS.items() if key in kind.model_fields}
    options = kind.model_validate(known).model_dump(mode="json")
    weighing = BALANCERS.load(balancer).Options().model_dump(mode="json")
    settings = TrainingSettings.model_validate(
        {"batch_size": 32, "epochs": 2, "evaluations": 2} | training
    )
    resolved = {
        "dataset": {
            "name": "toy",
            "options": {},
            "tasks": ["t1", "t2"],
            "fingerprint": data.fingerprint,
        },
        "model": {"name": model, "options": options},
        "balancer": {"name": balancer, "options": weighing} | digest_of(balancer),
        "training": settings.model_dump(mode="json"),
    }
    cell = Cell(dataset="toy", model=model, balancer=balancer, seed=seed, resolved=resolved)
    return build_trainer(
        cell, data, ExecutionSettings(device="cpu", probes=False), torch.device("cpu")
    )


def digest_of(balancer):
    """The digest of the file, if it is a plugin."""
    source = BALANCERS.source_digest(balancer)
    return {"source_sha256": source} if source else {}


def watch(run):
    """Train and return the initial weights, the rows of each batch, the random state at each, the
    dropout of the first.

    Batches that a balancer asks for besides the run's own are no part of it.
    """
    initial = {name: value.clone() for name, value in run.model.state_dict().items()}
    rows, states, masks, stream = [], [], [], run.stream

    def spied():
        for batch in stream:
            rows.append(torch.cat([batch.dense, batch.labels], 1))  # no two rows are alike
            states.append(torch.get_rng_state())
            yield batch

    def masked(module, inputs, out):
        if module.training and len(rows) == 1 and len(masks) < count:
            masks.append((out == 0) & (inputs[0] != 0))

    dropouts = [module for module in run.model.modules() if isinstance(module, nn.Dropout)]
    count = len(dropouts)
    for module in dropouts:
        module.register_forward_hook(masked)
    run.stream = spied()
    run.fit()
    return initial, rows, states, masks


def equal(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def baseline(data):
    return watch(built(data))


@pytest.mark.parametrize("balancer", [name for name in BALANCERS.names() if name != "uniform"])
def test_balancers_see_the_same_weights_batches_and_dropout(data, baseline, balancer):
    initial, rows, states, masks = watch(built(data, balancer))
    assert equal(list(initial.values()), list(baseline[0].values()))
    assert len(rows) == 10
    assert equal(rows, baseline[1])
    assert equal(states, baseline[2])
    assert any(mask.any() for mask in masks)
    assert equal(masks, baseline[3])


def test_a_balancer_that_looks_at_fresh_batches_shifts_nothing(data, baseline, plugin, tmp_path):
    name = plugin(
        tmp_path,
        "fresh.py",
        "step.fresh_batch().jacobian()\nstep.after_step(lambda losses: None)\nreturn step.active.to(step.losses.dtype)",
    )
    run, plain = built(data, name), built(data)
    initial, rows, states, _ = watch(run)
    assert equal(list(initial.values()), list(baseline[0].values()))
    assert equal(rows, baseline[1])
    assert equal(states, baseline[2])
    plain.fit()
    assert equal(list(run.model.state_dict().values()), list(plain.model.state_dict().values()))


def test_fresh_batches_of_a_seed_are_the_same(data):
    def losses(seed):
        run = built(data, seed=seed)
        run.model.load_state_dict(state)
        run.model.train()
        return torch.stack([run._fresh_step(0).losses for _ in range(3)])

    state = built(data).model.state_dict()
    one = losses(0)
    torch.rand(5)
    assert torch.equal(losses(0), one)
    assert not torch.equal(losses(1), one)
    assert len(one.unique(dim=0)) == 3


def test_another_seed_is_another_run(data, baseline):
    initial, rows, states, _ = watch(built(data, seed=1))
    assert not equal(list(initial.values()), list(baseline[0].values()))
    assert not equal(rows, baseline[1])
    assert not equal(states, baseline[2])


def test_models_of_one_seed_see_the_same_batches(data, baseline):
    assert equal(watch(built(data, model="ple"))[1], baseline[1])


def test_the_state_of_the_caller_matters_not(data, baseline):
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    run = built(data)
    assert equal(list(run.model.state_dict().values()), list(baseline[0].values()))
    assert torch.equal(torch.get_rng_state(), before), (
        "building draws nothing from the global stream"
    )


def test_the_probe_batch_is_the_same_for_every_seed(data):
    one, two = built(data, seed=0), built(data, seed=1)
    assert torch.equal(one.probe_batch.dense, two.probe_batch.dense)
