"""What a run leaves behind: cost, timing, scores."""

import numpy as np
import pytest

from mtlkit.training import finish


def test_cost_and_timing(trainer, pair):
    run = trainer(pair, balancer="pcgrad", epochs=2)
    result = run.fit()
    assert result.cost["parameters"] == sum(value.numel() for value in run.model.parameters())
    tables = sum(
        value.numel()
        for name, value in run.model.named_parameters()
        if name.startswith("embedding.")
    )
    assert result.cost["embedding_parameters"] == tables > 0
    assert result.cost["steps"] == 20
    assert result.cost["backward_passes_per_step"] == 2
    rate = result.cost["train_rows_per_second"]
    assert rate == pytest.approx(20 * 32 / result.timing["train_seconds"])
    parts = sum(result.timing[f"{name}_seconds"] for name in ("train", "evaluation", "probe"))
    assert 0 < parts <= result.timing["total_seconds"] * 1.001
    assert trainer(pair).fit().cost["backward_passes_per_step"] == 1


def test_scores_are_kept_for_later(trainer, mixed, pair):
    run = trainer(mixed)
    scores = run.fit().scores
    split = mixed.splits["test"]
    parts = ("score", "label", "observed", "space", "derived")
    groups = {f"group/{name}" for name in ("user", "item", "domain")}
    assert set(scores) == groups | {f"{what}/{task}" for what in parts for task in run.tasks}
    assert (scores["group/user"] == np.where(split.ids[:, 0] > 0, split.ids[:, 0], -1)).all()
    assert scores["score/t1"].shape == (160,)
    assert scores["score/t3"].shape == (160, 3)
    np.testing.assert_allclose(scores["label/t2"], split.labels[:, 1] * 3 + 2, rtol=1e-5, atol=1e-5)
    assert (scores["observed/t2"] == split.observed[:, 1]).all()
    assert scores["score/t1"].dtype == "float32"
    assert "observed/t1" not in trainer(pair).fit().scores
    run = trainer(pair)
    run.execution = run.execution.model_copy(update={"save_scores": False})
    assert run.fit().scores == {}


def test_scores_of_large_splits_are_kept_only_if_asked_for(trainer, pair, monkeypatch):
    monkeypatch.setattr(finish, "KEPT_SCORES_ROWS", 10)
    run = trainer(pair)
    assert run.fit().scores == {}
    run = trainer(pair)
    run.execution = run.execution.model_copy(update={"save_scores": True})
    assert "score/t1" in run.fit().scores
