"""Clicks and purchases with a known selection bias: purchases of unclicked rows are known, too.

A row has a user, an item, its category, a slot and four dense values; users and items follow a
Zipf-like law. Every id has a random effect, and v is the standardised sum of the effects of user,
item and category and of a linear function of two dense values, w another such sum from effects of
its own, s one of the slot and the other two dense values:

    P(buy if clicked | x) = sigmoid(b0 + 1.5 v)
    P(click | x)          = sigmoid(c0 + 0.7 s + bias (correlation v + sqrt(1 - correlation^2) w))

c0 and b0 give the two rates on train. Both draws are independent given x: nothing unobserved drives
both, so the bias is a covariate shift. With ``bias=0`` clicked rows are like all rows in whatever
drives buying. The larger it is, the more they differ: with the defaults users click what they would
buy, and P(buy if clicked) is several times larger on clicked rows than on all rows. A conversion
model that sees clicked rows alone learns from the upper end and ranks the rest by extrapolation; a
model that trains on all rows learns from rows without a click as well. How much that helps depends
on ``correlation``: at 0, rows without a click say nothing about buying, and training on them does
not help (``benchmarks/funnel_bias.py`` measures both).

Labels: ``click`` and ``purchase`` = click and buy, on all rows. The test split also holds, hidden
from models, whether each row would have been bought had it been clicked. The best AUC to be
expected, from the planted probabilities of the test rows, stands in the descriptions of the tasks;
the AUC of these probabilities on the labels that were drawn is the ceiling in reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from mtlkit.data.auc import auc, expected_auc
from mtlkit.data.datasets._source import GeneratedSource
from mtlkit.data.splits import SPLITS, Dataset, Split, fingerprint
from mtlkit.data.types import Feature, Schema, Task
from mtlkit.settings import Settings

CATEGORIES, SLOTS, DENSE = 30, 8, 4
BUY_SCALE, SLOT_SCALE = 1.5, 0.7
ZIPF_SHIFT = 5  # the k-th most frequent id has weight 1 / (k + shift)


class Funnel(GeneratedSource):
    """A synthetic click -> purchase funnel with a selection bias that can be switched."""

    class Options(Settings):
        """Size, bias and rates of the generated data."""

        rows: int = Field(
            60_000, ge=40, description="training rows; validation and test get half of it each"
        )
        bias: float = Field(
            4.0,
            ge=0,
            description="how strongly what drives clicks is what drives buying; 0: not at all",
        )
        correlation: float = Field(
            0.95, ge=-1, le=1, description="of what the bias adds to clicks with the wish to buy"
        )
        click_rate: float = Field(0.05, gt=0, lt=1, description="share of clicked rows on train")
        buy_rate: float = Field(
            0.03,
            gt=0,
            lt=1,
            description="share of all rows on train that would buy if they clicked",
        )
        users: int = Field(1000, ge=2, description="number of users")
        items: int = Field(300, ge=2, description="number of items")
        seed: int = Field(0, ge=0, description="of the generator")

    options: Options

    title: ClassVar[str] = "Synthetic click -> purchase funnel with a planted selection bias"
    url: ClassVar[str] = "https://arxiv.org/abs/1804.07931"
    preparation: ClassVar[int] = 3
    citation: ClassVar[str] = (
        "The bias is the one described in Ma et al., Entire Space Multi-Task Model, SIGIR 2018"
    )

    def prepare(self, home: Path) -> Dataset:
        """Generate the three splits."""
        samples = generate(self.options)
        splits = {}
        for name, sample in samples.items():
            labels = np.stack([sample.clicks, sample.clicks & sample.buys], -1).astype(np.float32)
            hidden = {}
            if name == "test":
                hidden["purchase"] = sample.buys.astype(np.float32)
            splits[name] = Split(
                ids=(sample.ids + 1).astype(np.int32),  # 0 is the unknown id
                dense=sample.dense,
                labels=labels,
                observed=np.ones(labels.shape, bool),
                hidden=hidden,
            )

        features = [
            Feature(name="user", vocab=self.options.users + 1, role="user"),
            Feature(name="item", vocab=self.options.items + 1, role="item"),
            Feature(name="category", vocab=CATEGORIES + 1, role="item"),
            Feature(name="slot", vocab=SLOTS + 1, role="context"),
        ]
        features += [Feature(name=f"x{i + 1}", kind="dense") for i in range(DENSE)]
        schema = Schema(
            features=tuple(features), tasks=_tasks(samples["test"]), funnel=("click", "purchase")
        )
        details = {"simulation": {"planted_auc": planted_aucs(samples["test"])}}
        return Dataset(
            self.name, schema, splits, fingerprint(schema, splits), simulated=True, details=details
        )


@dataclass(frozen=True)
class FunnelSample:
    """One split.

    Args:
        ids: (N, 4) user, item, category, slot, each from 0.
        dense: (N, 4) float32.
        click: (N,) planted probability of a click.
        buy: (N,) planted probability of buying if clicked.
        clicks: (N,) bool.
        buys: (N,) bool: whether it would be bought if clicked.
    """

    ids: np.ndarray
    dense: np.ndarray
    click: np.ndarray
    buy: np.ndarray
    clicks: np.ndarray
    buys: np.ndarray


def generate(options: Funnel.Options) -> dict[str, FunnelSample]:
    """Draw all splits; the planted effects and each split come from random streams of their own."""
    sequence = np.random.SeedSequence(options.seed)
    rule, *streams = (np.random.default_rng(seed) for seed in sequence.spawn(1 + len(SPLITS)))

    # The planted rule: the effects of every id, and of the dense values, on v, w and s.
    category = rule.integers(0, CATEGORIES, options.items)
    sizes = (options.users, options.items, CATEGORIES, SLOTS)
    effects = [rule.standard_normal((size, 3)) for size in sizes]
    slopes = rule.standard_normal((DENSE, 3))

    # The inputs of every split, and what the rule makes of them; standardised on train.
    inputs, sums = {}, {}
    for name, rng in zip(SPLITS, streams, strict=True):
        rows = options.rows if name == "train" else options.rows // 2
        item = _zipf(rng, rows, options.items)
        user, slot = _zipf(rng, rows, options.users), rng.integers(0, SLOTS, rows)
        ids = np.stack([user, item, category[item], slot], -1)
        dense = rng.standard_normal((rows, DENSE), dtype=np.float32)
        inputs[name], sums[name] = (ids, dense), _sums(ids, dense, effects, slopes)
    mean, std = sums["train"].mean(0), sums["train"].std(0)
    logits = {name: _logits(options, (values - mean) / std) for name, values in sums.items()}

    # Intercepts give the two rates on train; then clicks and purchases are drawn.
    click_logits, buy_logits = logits["train"]
    click_intercept = _intercept(click_logits, options.click_rate)
    buy_intercept = _intercept(buy_logits, options.buy_rate)
    samples = {}
    for name, rng in zip(SPLITS, streams, strict=True):
        click_logits, buy_logits = logits[name]
        click = _sigmoid(click_logits + click_intercept)
        buy = _sigmoid(buy_logits + buy_intercept)
        clicks, buys = rng.random(len(click)) < click, rng.random(len(buy)) < buy
        samples[name] = FunnelSample(*inputs[name], click, buy, clicks, buys)
    return samples


def _sums(
    ids: np.ndarray, dense: np.ndarray, effects: list[np.ndarray], slopes: np.ndarray
) -> np.ndarray:
    """(N, 3) v, w and s before they are standardised.

    v and w come from user, item, category and the first two dense values, s from the slot and the
    other two.
    """
    sums = []
    for k, id_columns, dense_columns in (
        (0, (0, 1, 2), slice(0, 2)),
        (1, (0, 1, 2), slice(0, 2)),
        (2, (3,), slice(2, 4)),
    ):
        id_effects = sum(effects[column][ids[:, column], k] for column in id_columns)
        sums.append(id_effects + dense[:, dense_columns] @ slopes[dense_columns, k])
    return np.stack(sums, -1)


def best_aucs(sample: FunnelSample) -> dict[str, float]:
    """The AUC of the planted probabilities, expected over the draw of labels: no model can do
    better on these rows.
    """
    p, q = sample.click, sample.buy
    return {
        "CTR": expected_auc(p, p, 1 - p),
        "CTCVR": expected_auc(p * q, p * q, 1 - p * q),
        "CVR": expected_auc(q, p * q, p * (1 - q)),
        "all-rows CVR": expected_auc(q, q, 1 - q),
    }


def planted_aucs(sample: FunnelSample) -> dict[str, float | None]:
    """Score to the AUC of the planted probabilities on the labels as drawn; None where a class is
    missing.
    """
    p, q = sample.click, sample.buy
    clicks, buys = sample.clicks, sample.buys
    return {
        "click": auc(p, clicks),
        "purchase": auc(p * q, clicks & buys),
        "purchase-given-click": auc(q[clicks], buys[clicks]),
        "purchase-if-click": auc(q, buys),
    }


def _tasks(test: FunnelSample) -> tuple[Task, ...]:
    """The tasks, with what can be reached on the test split in their descriptions."""
    best = best_aucs(test)
    buy_on_clicked = float(np.average(test.buy, weights=test.click))
    purchase = (
        f"click and buy; expected best AUC: CTCVR {best['CTCVR']:.4f}, CVR {best['CVR']:.4f}, "
        f"all-rows CVR {best['all-rows CVR']:.4f}; planted P(buy if clicked): "
        f"{buy_on_clicked:.3f} on clicked rows, {test.buy.mean():.3f} on all rows"
    )
    return (
        Task(name="click", description=f"expected best AUC: CTR {best['CTR']:.4f}"),
        Task(name="purchase", description=purchase),
    )


def _logits(options: Funnel.Options, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of click and of buying, without their intercepts; z (N, 3) standardised v, w, s."""
    v, w, s = z.T
    unlike = np.sqrt(1 - options.correlation**2)
    click = SLOT_SCALE * s + options.bias * (options.correlation * v + unlike * w)
    return click, BUY_SCALE * v


def _zipf(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """(rows,) ids below ``size``, the first of them the most frequent."""
    weight = 1 / (np.arange(size) + ZIPF_SHIFT)
    return rng.choice(size, rows, p=weight / weight.sum())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _intercept(logits: np.ndarray, rate: float) -> float:
    """What to add to logits so that their mean probability is the rate, by bisection."""
    low, high = -60.0 - logits.max(), 60.0 - logits.min()
    for _ in range(80):
        middle = (low + high) / 2
        if _sigmoid(logits + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
