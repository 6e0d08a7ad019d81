"""Funnel: 60,000 rows; click and purchase, with a known selection bias (generated).

Purchases of unclicked rows, as if they were clicked, are known, too. A row has a user, an item, its
category, a slot and four dense values; users and items follow a Zipf-like law. Every id has a
random effect, and v is the standardised sum of the effects of user, item and category and of a
linear function of two dense values, w another such sum from effects of its own, s one of the slot
and the other two dense values:

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
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mtlkit.data.auc import auc, expected_auc
from mtlkit.data.datasets._source import GeneratedSource
from mtlkit.data.splits import SPLITS, Dataset, Split, fingerprint
from mtlkit.data.types import Feature, Schema, Task
from mtlkit.settings import Settings

CATEGORIES = 30
SLOTS = 8
DENSE = 4
BUY_SCALE = 1.5  # of v in the logit of buying
SLOT_SCALE = 0.7  # of s in the logit of a click
ROLES: dict[str, Any] = {"user": "user", "item": "item", "category": "item", "slot": "context"}
ZIPF_SHIFT = 5  # the k-th most frequent id has weight 1 / (k + shift)


class Funnel(GeneratedSource):
    """A synthetic click -> purchase funnel with a selection bias that can be switched."""

    class Options(Settings):
        """Size, bias and rates of the generated data."""

        rows: int = Field(
            60_000,
            ge=40,
            le=50_000_000,
            description="training rows; validation and test get half of it each",
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
        users: int = Field(1000, ge=2, le=10_000_000, description="number of users")
        items: int = Field(300, ge=2, le=10_000_000, description="number of items")
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
        splits = {name: _pack(name, sample) for name, sample in samples.items()}

        # Id 0 is the unknown one, which no row has.
        sizes = zip(ROLES, _id_counts(self.options), strict=True)
        features = [Feature(name=name, vocab=size + 1, role=ROLES[name]) for name, size in sizes]
        features += [Feature(name=f"x{i + 1}", kind="dense") for i in range(DENSE)]
        tasks = _tasks(samples["test"])
        schema = Schema(features=tuple(features), tasks=tasks, funnel=("click", "purchase"))
        planted = {"planted_auc": planted_aucs(samples["test"])}
        return Dataset(
            self.name,
            schema,
            splits,
            fingerprint(schema, splits),
            simulated=True,
            details={"simulation": planted},
        )


@dataclass(frozen=True)
class FunnelSample:
    """One split."""

    ids: np.ndarray  # (N, 4) user, item, category, slot, each from 0
    dense: np.ndarray  # (N, 4) float32
    click_chance: np.ndarray  # (N,) planted probability of a click
    buy_chance: np.ndarray  # (N,) planted probability of buying if clicked
    clicked: np.ndarray  # (N,) bool
    would_buy: np.ndarray  # (N,) bool: whether it would be bought if clicked

    @property
    def purchase_chance(self) -> np.ndarray:
        """(N,) planted probability of a click and a purchase."""
        return self.click_chance * self.buy_chance


@dataclass(frozen=True)
class _Rule:
    """The planted effects on v, w and s, which are the same in all splits."""

    item_category: np.ndarray  # (items,) the category of each item
    id_effects: list[np.ndarray]  # for user, item, category and slot: (ids, 3)
    slopes: np.ndarray  # (DENSE, 3), of the dense values


def generate(options: Funnel.Options) -> dict[str, FunnelSample]:
    """Draw all splits; the planted effects and each split come from random streams of their own."""
    rule_seed, *split_seeds = np.random.SeedSequence(options.seed).spawn(1 + len(SPLITS))
    rule = _draw_rule(options, np.random.default_rng(rule_seed))
    seeds = zip(SPLITS, split_seeds, strict=True)
    streams = {name: np.random.default_rng(seed) for name, seed in seeds}

    # What a row is, and what follows from it for v, w and s.
    inputs, wishes = {}, {}
    for name, rng in streams.items():
        rows = options.rows if name == "train" else options.rows // 2
        ids, dense = _draw_inputs(options, rule, rows, rng)
        inputs[name] = ids, dense
        wishes[name] = _wishes(rule, ids, dense)

    # v, w and s have mean 0 and deviation 1 on train; the intercepts give the rates on train.
    mean, std = wishes["train"].mean(0), wishes["train"].std(0)
    logits = {name: _logits(options, (sums - mean) / std) for name, sums in wishes.items()}
    click_train, buy_train = logits["train"]
    click_intercept = _intercept(click_train, options.click_rate)
    buy_intercept = _intercept(buy_train, options.buy_rate)

    # Clicks and the wish to buy are drawn independently of each other.
    samples = {}
    for name, rng in streams.items():
        click_logits, buy_logits = logits[name]
        click_chance = _sigmoid(click_logits + click_intercept)
        buy_chance = _sigmoid(buy_logits + buy_intercept)
        clicked = rng.random(len(click_chance)) < click_chance
        would_buy = rng.random(len(buy_chance)) < buy_chance
        samples[name] = FunnelSample(*inputs[name], click_chance, buy_chance, clicked, would_buy)
    return samples


def _id_counts(options: Funnel.Options) -> tuple[int, ...]:
    """The numbers of users, items, categories and slots."""
    return options.users, options.items, CATEGORIES, SLOTS


def _draw_rule(options: Funnel.Options, rng: np.random.Generator) -> _Rule:
    """All effects from N(0, 1)."""
    item_category = rng.integers(0, CATEGORIES, options.items)
    id_effects = [rng.standard_normal((size, 3)) for size in _id_counts(options)]
    slopes = rng.standard_normal((DENSE, 3))
    return _Rule(item_category, id_effects, slopes)


def _draw_inputs(
    options: Funnel.Options, rule: _Rule, rows: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The ids (N, 4) and the dense values (N, DENSE) of new rows."""
    # The order of the draws is part of the data: another one would change the fingerprint.
    item = _zipf(rng, rows, options.items)
    user = _zipf(rng, rows, options.users)
    slot = rng.integers(0, SLOTS, rows)
    ids = np.stack([user, item, rule.item_category[item], slot], -1)
    dense = rng.standard_normal((rows, DENSE), dtype=np.float32)
    return ids, dense


def _wishes(rule: _Rule, ids: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """(N, 3): v, w and s of the module's docstring, before they are standardised."""
    user, item, category, slot = range(4)
    of_wish = (user, item, category), slice(0, 2)
    of_slot = (slot,), slice(2, 4)

    # Which id columns and which dense values v, w and s are sums of.
    sums = []
    for k, (columns, numbers) in enumerate([of_wish, of_wish, of_slot]):
        effects = sum(rule.id_effects[column][ids[:, column], k] for column in columns)
        sums.append(effects + dense[:, numbers] @ rule.slopes[numbers, k])
    return np.stack(sums, -1)


def _pack(name: str, sample: FunnelSample) -> Split:
    """The split of a sample, with what would have been bought hidden in the test split."""
    purchased = sample.clicked & sample.would_buy
    labels = np.stack([sample.clicked, purchased], -1).astype(np.float32)  # (N, 2)
    hidden = {"purchase": sample.would_buy.astype(np.float32)} if name == "test" else {}
    return Split(
        ids=(sample.ids + 1).astype(np.int32),  # 0 is the unknown
        dense=sample.dense,
        labels=labels,
        observed=np.ones(labels.shape, bool),
        hidden=hidden,
    )


def best_aucs(sample: FunnelSample) -> dict[str, float]:
    """The AUC of the planted probabilities, expected over the draw of labels.

    No model can be expected to do better on these rows.
    """
    click, buy, purchase = sample.click_chance, sample.buy_chance, sample.purchase_chance
    return {
        "CTR": expected_auc(click, click, 1 - click),
        "CTCVR": expected_auc(purchase, purchase, 1 - purchase),
        "CVR": expected_auc(buy, purchase, click * (1 - buy)),
        "all-rows CVR": expected_auc(buy, buy, 1 - buy),
    }


def planted_aucs(sample: FunnelSample) -> dict[str, float | None]:
    """The AUC of the planted probabilities on the labels as drawn, by score.

    None where a class is missing.
    """
    clicked, would_buy = sample.clicked, sample.would_buy
    return {
        "click": auc(sample.click_chance, clicked),
        "purchase": auc(sample.purchase_chance, clicked & would_buy),
        "purchase-given-click": auc(sample.buy_chance[clicked], would_buy[clicked]),
        "purchase-if-click": auc(sample.buy_chance, would_buy),
    }


def _tasks(test: FunnelSample) -> tuple[Task, ...]:
    """The two tasks, described with what can be reached on the test split."""
    best = best_aucs(test)
    buy_if_clicked = float(np.average(test.buy_chance, weights=test.click_chance))
    purchase = (
        f"click and buy; expected best AUC: CTCVR {best['CTCVR']:.4f}, CVR {best['CVR']:.4f}, "
        f"all-rows CVR {best['all-rows CVR']:.4f}; planted P(buy if clicked): "
        f"{buy_if_clicked:.3f} on clicked rows, {test.buy_chance.mean():.3f} on all rows"
    )
    return (
        Task(name="click", description=f"expected best AUC: CTR {best['CTR']:.4f}"),
        Task(name="purchase", description=purchase),
    )


def _logits(options: Funnel.Options, standardised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logits (N,) of a click and of buying, without their intercepts.

    Args:
        options: Give the bias and the correlation.
        standardised: (N, 3) v, w and s.
    """
    v, w, s = standardised.T
    rest = np.sqrt(1 - options.correlation**2)
    shared_wish = options.correlation * v + rest * w
    click = SLOT_SCALE * s + options.bias * shared_wish
    return click, BUY_SCALE * v


def _zipf(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """(rows,) ids from 0, of which low ones are frequent."""
    weights = 1 / (np.arange(size) + ZIPF_SHIFT)
    return rng.choice(size, rows, p=weights / weights.sum())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _intercept(logits: np.ndarray, rate: float) -> float:
    """What to add to logits (N,) so that their mean probability is the rate, by bisection."""
    low, high = -60.0 - logits.max(), 60.0 - logits.min()
    for _ in range(80):
        middle = (low + high) / 2
        if _sigmoid(logits + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
