"""A run that was stopped and goes on from a checkpoint equals one that nobody disturbed."""

import shutil
import signal

import numpy as np
import pytest
import torch

from mtlkit.models import _tables
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.training.checkpoints import Checkpoints
from tests.toy import toy_dataset, toy_schema

OPTIMIZERS = {
    "adam": {"optimizer": "adam"},
    "adagrad": {"optimizer": "adagrad"},
    "sgd": {"optimizer": "sgd", "momentum": 0.9},
}
# of each way in which a balancer keeps what it has learnt, one is tried every time
QUICK = ("uwl", "dwa", "gradnorm", "famo", "pcgrad", "graddrop", "moco", "sdmgrad", "alternating")
EVERY_BALANCER = [
    pytest.param(
        *(balancer, settings),
        id=f"{balancer}-{name}",
        marks=() if name == "adam" and balancer in QUICK else pytest.mark.slow,
    )
    for balancer in BALANCERS.names()
    for name, settings in OPTIMIZERS.items()
]


class Kept(Checkpoints):
    """Keeps every checkpoint of a run, each in a file of its own."""

    def save(self, steps, state):
        super().save(steps, state)
        shutil.copy(self.file, self.file.with_name(f"{steps}.pt"))


@pytest.fixture(scope="module")
def mixed():
    """Tasks of three kinds; some batches have no label of one."""
    schema = toy_schema(tasks=3, kinds=("binary", "regression", "multiclass"), bags=1)
    return toy_dataset(schema, rows=200, missing=0.6)


@pytest.fixture(scope="module")
def pair():
    return toy_dataset(toy_schema(tasks=2, bags=1, vocab=40), rows=200)


def checkpoints(folder, name="checkpoint.pt", every="0.3", key="a key"):
    return Kept(folder / name, key, every)


def numbers(result):
    """All that a run found out, but not how long it took."""
    return {
        "metrics": result.metrics,
        "curve": result.curve,
        "best": result.best,
        "probes": result.probes,
        "scores": result.scores,
        "weights": result.weights,
        "passes": result.cost["backward_passes_per_step"],
    }


def assert_same(one, two, path=""):
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_same(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, two, err_msg=path)
    elif isinstance(one, list):
        for k, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_same(left, right, f"{path}/{k}")
    else:
        assert one == two or (one != one and two != two), path


def assert_goes_on(folder, build):
    """Three times: a new trainer takes the state of a checkpoint and ends as the first one did."""
    undisturbed = numbers(build().fit())
    assert_same(undisturbed, numbers(build().fit(checkpoints=checkpoints(folder))))
    files = sorted(folder.glob("[0-9]*.pt"))
    assert len(files) == 3
    for file in files:
        run = build()
        run.load_state_dict(checkpoints(folder, file.name).load())
        assert run.steps == int(file.stem)
        assert_same(undisturbed, numbers(run.fit()))


@pytest.mark.parametrize(("balancer", "settings"), EVERY_BALANCER)
def test_every_balancer_goes_on(tmp_path, trainer, mixed, balancer, settings):
    def build():
        return trainer(mixed, balancer=balancer, probes=True, batch_size=20, **settings)

    assert_goes_on(tmp_path, build)


SPARSE = [
    ({"optimizer": "adam", "l2_embedding": 0.01}, "stem"),
    ({"optimizer": "adamw", "l2_embedding": 0.01, "clip_norm": 1.0}, "mmoe"),
    ({"optimizer": "adagrad"}, "ple"),
    ({"optimizer": "sgd"}, "shared-bottom"),
]


@pytest.mark.parametrize(("settings", "model"), SPARSE)
def test_large_tables_go_on(tmp_path, trainer, pair, monkeypatch, settings, model):
    monkeypatch.setattr(_tables, "FOLD_VOCABULARY", 0)

    def build():
        return trainer(pair, model, batch_size=20, sparse_rows=1, **settings)

    assert_goes_on(tmp_path, build)


SETTINGS = [
    {"batches": "covering", "cover": 2, "batch_size": 40, "epochs": 2},
    {"accumulate": 2, "batch_size": 10, "task_every": {"t2": 3}, "task_lr": {"t1": 0.5}},
    {"schedule": "cosine", "optimizer": "adamw", "l2_dense": 0.01, "batch_size": 20},
    {"precision": "bf16", "batch_size": 20},
    {"heads": "plain", "scope": "all", "batch_size": 20},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_way_to_train_goes_on(tmp_path, trainer, pair, settings):
    def build():
        return trainer(
            pair, "mmoe[experts=2,hidden=4,dropout=0.3]", "moco", probes=True, **settings
        )

    assert_goes_on(tmp_path, build)


@pytest.mark.parametrize("model", MODELS.names())
def test_every_model_goes_on(tmp_path, trainer, model):
    schema = toy_schema(tasks=2, bags=1)
    data = toy_dataset(schema.model_copy(update={"funnel": schema.task_names}), rows=200)

    def build():
        return trainer(data, f"{model}[dropout=0.2,norm=batch]", "uwl", batch_size=20)

    assert_goes_on(tmp_path, build)


@pytest.mark.parametrize("numbers", ["piecewise", "periodic"])
def test_encoded_numbers_go_on(tmp_path, trainer, pair, numbers):
    assert_goes_on(tmp_path, lambda: trainer(pair, f"stem[numbers={numbers}]", batch_size=20))


def test_a_run_that_stops_early_goes_on_to_the_same_end(tmp_path, trainer, pair):
    def build():
        return trainer(pair, lr=1.0, patience=1, evaluations=10, epochs=4, batch_size=40)

    undisturbed = build()
    expected = numbers(undisturbed.fit())
    assert undisturbed.steps < undisturbed.total_steps
    build().fit(checkpoints=checkpoints(tmp_path, every="0.01"))
    for file in sorted(tmp_path.glob("[0-9]*.pt")):
        run = build()
        run.load_state_dict(checkpoints(tmp_path, file.name).load())
        assert_same(expected, numbers(run.fit()))


def test_seconds_are_added_up_over_the_parts_of_a_run(tmp_path, trainer, pair):
    trainer(pair).fit(checkpoints=checkpoints(tmp_path, every="0.5"))
    state = checkpoints(tmp_path).load()
    state["timer"] = {"seconds": {"train_seconds": 1000.0}, "elapsed": 2000.0}
    run = trainer(pair)
    run.load_state_dict(state)
    timing = run.fit().timing
    assert timing["train_seconds"] >= 1000
    assert timing["total_seconds"] > 2000


# --- when they are written, and what is refused


def test_they_are_written_after_shares_of_the_run(tmp_path, trainer, pair):
    trainer(pair, batch_size=10).fit(checkpoints=checkpoints(tmp_path, every="0.25"))
    assert sorted(int(file.stem) for file in tmp_path.glob("[0-9]*.pt")) == [5, 10, 15, 20]


def test_they_are_written_after_times(tmp_path, trainer, pair, monkeypatch):
    seconds = iter(range(1000))
    monkeypatch.setattr("mtlkit.training.checkpoints.time.monotonic", lambda: next(seconds))
    trainer(pair, batch_size=10).fit(checkpoints=checkpoints(tmp_path, every="0.1m"))
    # the clock is read once before the run, once a step and once after a checkpoint
    assert sorted(int(file.stem) for file in tmp_path.glob("[0-9]*.pt")) == [6, 12, 18]


@pytest.mark.parametrize("every", ["0", "1", "1.5", "ten", "-1", "10 m", "0m", "1d", ""])
def test_what_is_no_interval_is_refused(tmp_path, every):
    with pytest.raises(ValueError, match="10m"):
        checkpoints(tmp_path, every=every)


def test_damaged_and_foreign_ones_are_refused(tmp_path, trainer, pair):
    trainer(pair).fit(checkpoints=checkpoints(tmp_path))
    file = tmp_path / "checkpoint.pt"
    whole = file.read_bytes()
    with pytest.raises(ValueError, match="another run"):
        checkpoints(tmp_path, key="another").load()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (whole[:middle], flipped, b"", b"no archive"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            checkpoints(tmp_path).load()
    torch.save({"format": 99}, file)
    with pytest.raises(ValueError, match="format"):
        checkpoints(tmp_path).load()
    file.unlink()
    assert checkpoints(tmp_path).load() is None


def test_a_pickle_in_place_of_one_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save(Evil(), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="damaged"):
        checkpoints(tmp_path).load()
    assert not (tmp_path / "written").exists()


def test_a_folder_that_takes_none_is_told_once_and_the_run_goes_on(tmp_path, trainer, pair):
    (tmp_path / "taken").write_text("a file")
    told = []
    writer = Checkpoints(tmp_path / "taken" / "checkpoint.pt", "a key", "0.2", told.append)
    expected = numbers(trainer(pair).fit())
    assert_same(expected, numbers(trainer(pair).fit(checkpoints=writer)))
    assert len(told) == 1
    assert told[0].startswith("no checkpoint could be written")


def test_sigterm_writes_one_and_takes_its_course(tmp_path, trainer, pair):
    class EndedError(Exception):
        pass

    def end(*_):
        raise EndedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        run = trainer(pair, batch_size=10)
        take = run._train_step

        def step(index, window):
            if index == 7:
                signal.raise_signal(signal.SIGTERM)
            take(index, window)

        run._train_step = step
        with pytest.raises(EndedError):
            run.fit(checkpoints=checkpoints(tmp_path, every="1h"))
    finally:
        signal.signal(signal.SIGTERM, before)
    again = trainer(pair, batch_size=10)
    again.load_state_dict(checkpoints(tmp_path).load())
    assert again.steps == 8
    assert_same(numbers(trainer(pair, batch_size=10).fit()), numbers(again.fit()))
