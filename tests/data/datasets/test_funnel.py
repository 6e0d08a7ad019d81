"""The planted funnel: what the options promise, what is known of it, and what is hidden."""

import numpy as np
import pytest
import torch

from mtlkit.data.auc import expected_auc
from mtlkit.data.datasets.funnel import best_aucs, generate
from mtlkit.data.planted import ceilings
from mtlkit.data.sources import open_source
from mtlkit.data.splits import SPLITS
from mtlkit.data.storage import read_dataset, write_dataset
from mtlkit.errors import UsageError
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.metrics import auc


def source(*options):
    default = [] if any(option.startswith("rows=") for option in options) else ["rows=20000"]
    return open_source(f"funnel[{','.join([*default, *options])}]")


@pytest.fixture(scope="module")
def drawn():
    return generate(source().options)


def test_the_shape(tmp_path):
    data = source().prepare(tmp_path)
    assert data.simulated
    assert data.schema.funnel == ("click", "purchase")
    assert [len(data.splits[name]) for name in SPLITS] == [20_000, 10_000, 10_000]
    vocab = [feature.vocab for feature in data.schema.of_kind("id")]
    for split in data.splits.values():
        assert split.observed.all()
        click, purchase = split.labels.T
        assert not (purchase > click).any()
        assert split.ids.min() == 1  # 0 is the unknown
        assert (split.ids.max(0) < vocab).all()
        assert split.dense.shape[1] == 4
    users = np.bincount(data.splits["train"].ids[:, 0])
    assert users[1:11].sum() > 5 * users[501:511].sum()  # a long tail


@pytest.mark.parametrize(("click", "buy"), [(0.05, 0.03), (0.3, 0.5)])
def test_the_rates_are_those_asked_for(click, buy):
    sample = generate(source(f"click_rate={click}", f"buy_rate={buy}").options)["train"]
    assert sample.click_chance.mean() == pytest.approx(click, rel=1e-6)
    assert sample.buy_chance.mean() == pytest.approx(buy, rel=1e-6)
    assert sample.clicked.mean() == pytest.approx(click, rel=0.1)
    assert sample.would_buy.mean() == pytest.approx(buy, rel=0.1)


def test_without_bias_clicked_rows_are_like_all_rows():
    sample = generate(source("bias=0", "click_rate=.2").options)["train"]
    assert abs(np.corrcoef(sample.click_chance, sample.buy_chance)[0, 1]) < 0.03
    assert np.average(sample.buy_chance, weights=sample.click_chance) == pytest.approx(
        sample.buy_chance.mean(), rel=0.05
    )


def test_more_bias_makes_clicked_rows_differ_more():
    ratios = []
    for bias in (0, 1, 2, 4):
        sample = generate(source(f"bias={bias}").options)["train"]
        ratios.append(
            np.average(sample.buy_chance, weights=sample.click_chance) / sample.buy_chance.mean()
        )
    assert ratios == sorted(ratios)
    assert ratios[-1] > 4


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.9])
def test_correlation_is_the_one_between_wishes(correlation):
    sample = generate(
        source("bias=30", f"correlation={correlation}", "click_rate=.5", "buy_rate=.5").options
    )["train"]
    logits = [
        np.log(p / (1 - p))
        for p in (np.clip(sample.click_chance, 1e-12, 1 - 1e-12), sample.buy_chance)
    ]
    assert np.corrcoef(*logits)[0, 1] == pytest.approx(correlation, abs=0.08)


def test_clicks_and_purchases_are_independent_given_the_row(drawn):
    """Nothing unobserved drives both: among rows of like probabilities, clicked ones buy like the
    others.
    """
    sample = drawn["train"]
    gap = sample.would_buy - sample.buy_chance
    clicked, rest = gap[sample.clicked], gap[~sample.clicked]
    assert abs(clicked.mean()) < 3 * clicked.std() / len(clicked) ** 0.5
    assert abs(rest.mean()) < 3 * rest.std() / len(rest) ** 0.5


def test_expected_auc_is_the_mean_over_labels():
    rng = np.random.default_rng(0)
    p = rng.choice([0.1, 0.3, 0.35, 0.8], 300)
    aucs = [auc(torch.tensor(p), torch.tensor(rng.random(300) < p).float()) for _ in range(400)]
    assert expected_auc(p, p, 1 - p) == pytest.approx(np.mean(aucs), abs=0.005)


def test_no_score_beats_the_best_auc(drawn):
    sample = drawn["test"]
    best = best_aucs(sample)
    p, q = sample.click_chance, sample.buy_chance
    score = torch.tensor(q)
    assert float(auc(score, torch.tensor(sample.would_buy).float())) == pytest.approx(
        best["all-rows CVR"], abs=0.02
    )
    clicked = torch.tensor(sample.clicked)
    assert float(
        auc(score[clicked], torch.tensor(sample.would_buy).float()[clicked])
    ) == pytest.approx(best["CVR"], abs=0.06)
    noisy = q * np.exp(np.random.default_rng(0).standard_normal(len(q)))
    assert expected_auc(noisy, q, 1 - q) < best["all-rows CVR"]
    assert expected_auc(q, p * q, 1 - p * q) < best["CTCVR"]
    assert 0.5 < best["CVR"] < best["all-rows CVR"] < best["CTCVR"]


def test_the_best_aucs_and_the_bias_are_stated(tmp_path):
    click, purchase = source().prepare(tmp_path).schema.tasks
    best = best_aucs(generate(source().options)["test"])
    assert f"expected best AUC: CTR {best['CTR']:.4f}" in click.description
    for name in ("CTCVR", "CVR", "all-rows CVR"):
        assert f"{name} {best[name]:.4f}" in purchase.description
    assert "expected best AUC: CTCVR" in purchase.description, (
        "the ceiling is that on the labels as drawn"
    )
    assert "on clicked rows" in purchase.description


def test_the_ceiling_is_the_auc_of_the_planted_chances_on_the_drawn_labels(tmp_path, drawn):
    data, sample = source().prepare(tmp_path), drawn["test"]
    click, purchase = (torch.tensor(column) for column in data.splits["test"].labels.T)
    p, q = torch.tensor(sample.click_chance), torch.tensor(sample.buy_chance)
    assert ceilings(data) == pytest.approx(
        {
            "click": auc(p, click),
            "purchase": auc(p * q, purchase),
            "purchase-given-click": auc(q[click > 0], purchase[click > 0]),
            "purchase-if-click": auc(q, torch.tensor(data.splits["test"].hidden["purchase"])),
        }
    )
    assert ceilings(data).keys() == {score.name for score in data.schema.scores()}
    assert ceilings(data.select(["purchase"])) == {"purchase": ceilings(data)["purchase"]}


def test_a_ceiling_that_cannot_be_known_is_left_out(tmp_path):
    data = source("rows=40", "buy_rate=1e-9").prepare(tmp_path)
    assert not data.splits["test"].labels[:, 1].any()
    assert "purchase" not in ceilings(data)


def test_what_would_have_been_bought_is_hidden_in_the_test_split(tmp_path):
    data = source().prepare(tmp_path)
    assert [name for name in SPLITS if data.splits[name].hidden] == ["test"]
    test = data.splits["test"]
    would = test.hidden["purchase"]
    click, purchase = test.labels.T
    assert np.array_equal(would[click > 0], purchase[click > 0])
    assert would[click == 0].sum() > 0
    split = DeviceSplit.load(test, torch.device("cpu"))
    assert torch.equal(split.hidden["purchase"], torch.tensor(would))
    batch = split.take(torch.arange(20))
    assert batch.labels.shape == (20, 2)  # a batch has the two labels and no other
    assert not hasattr(batch, "hidden")


def test_the_hidden_labels_survive_a_file(tmp_path):
    data = source("rows=400").prepare(tmp_path)
    write_dataset(tmp_path / "data", data, {})
    again = read_dataset(tmp_path / "data")
    np.testing.assert_array_equal(
        again.splits["test"].hidden["purchase"], data.splits["test"].hidden["purchase"]
    )
    assert again.splits["train"].hidden == {}
    assert again.schema == data.schema
    assert again.fingerprint == data.fingerprint


def test_the_seed_decides_everything_and_bias_moves_clicks_alone(tmp_path):
    one, same, other = (
        source(*options).prepare(tmp_path).fingerprint for options in ((), (), ("seed=1",))
    )
    assert one == same != other
    small, large = (generate(source(f"bias={bias}").options)["train"] for bias in (0, 4))
    np.testing.assert_array_equal(small.ids, large.ids)
    np.testing.assert_array_equal(small.dense, large.dense)
    np.testing.assert_array_equal(small.would_buy, large.would_buy)
    assert not np.array_equal(small.clicked, large.clicked)


def test_it_takes_no_files(tmp_path):
    with pytest.raises(UsageError, match="generated"):
        source().download(tmp_path, tmp_path)
