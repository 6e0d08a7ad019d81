"""Synthetic: 20,000 rows; two tasks or more, as related as is asked for (generated).

Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts,
KDD 2018, section 3.2, https://doi.org/10.1145/3219819.3220007. With x ~ N(0, I), task k has the
target

    y_k = w_k . x + sum_{i <= m} sin(alpha_i w_k . x + beta_i) + noise

with alpha, beta ~ N(0, 1) shared by the tasks, and unit vectors w_k with cosine p between any two.
The paper has two tasks; for T tasks such vectors exist when -1 / (T - 1) <= p <= 1. With one seed,
p moves the vectors and nothing else. With labelled below 1, an option beyond the paper, the first
task has few labels on train, and learns from those of a related one.

Correlation of two tasks' labels on train with the other options at their defaults, mean and
standard deviation over seeds 0-9:

==========  ==============  =============  =============  =============
kind        p = 0           p = 0.5        p = 0.9        p = 1
==========  ==============  =============  =============  =============
regression  -0.002 ± 0.005  0.292 ± 0.110  0.778 ± 0.066  0.994 ± 0.004
binary      -0.004 ± 0.005  0.154 ± 0.092  0.542 ± 0.107  0.924 ± 0.046
==========  ==============  =============  =============  =============
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from mtlkit.data.auc import auc
from mtlkit.data.datasets._source import GeneratedSource
from mtlkit.data.splits import SPLITS, Dataset, Split, fingerprint
from mtlkit.data.types import Feature, Schema, Task
from mtlkit.errors import UsageError
from mtlkit.settings import Settings, without_unused

MAX_NUMBERS = 10**9  # of float32 in the training split: 4 GB
NUMBERS_PER_TASK = 8  # targets, signals and what they are made of, in float64


class Synthetic(GeneratedSource):
    """The generator of the MMoE paper, for any number of tasks."""

    class Options(Settings):
        """Size and difficulty of the generated data."""

        p: float = Field(
            0.5, ge=-1, le=1, description="cosine between the weight vectors of any two tasks"
        )
        tasks: int = Field(2, ge=1, le=64, description="number of tasks")
        kind: Literal["binary", "regression", "mixed"] = Field(
            "binary", description="of the tasks; mixed: binary and regression in turn"
        )
        rows: int = Field(
            20_000, ge=8, description="training rows; validation and test get a quarter of it each"
        )
        d: int = Field(512, ge=1, description="number of inputs")
        m: int = Field(10, ge=0, le=1000, description="number of sine terms")
        noise_std: float = Field(
            0.1, ge=0, description="standard deviation of the noise (the paper writes N(0, 0.01))"
        )
        positive_rate: float = Field(
            0.5, gt=0, lt=1, description="share of positives of a binary task on train"
        )
        seed: int = Field(0, ge=0, description="of the generator")
        labelled: float = Field(
            1, gt=0, le=1, description="share of training rows with a label of the first task"
        )

        @model_validator(mode="after")
        def _vectors_exist(self) -> Synthetic.Options:
            """Refuse a cosine or a number of inputs for which there are no vectors."""
            lowest = lowest_cosine(self.tasks)
            if self.p < lowest:
                raise UsageError(
                    f"No {self.tasks} vectors have cosine {self.p:g} with each other: p must be in "
                    f"[{lowest:.4g}, 1], from -1 / (tasks - 1) on.",
                    f"mtlkit fetch 'synthetic[tasks={self.tasks},p=0]'",
                )
            if self.d < self.tasks:
                raise UsageError(
                    f"{self.tasks} tasks need at least {self.tasks} inputs, but d is {self.d}.",
                    f"mtlkit fetch 'synthetic[tasks={self.tasks},d={self.tasks}]'",
                )
            return self

        @model_validator(mode="after")
        def _fits_into_memory(self) -> Synthetic.Options:
            """Refuse more data than a machine holds: all of it is drawn at once."""
            numbers_per_row = self.d + NUMBERS_PER_TASK * self.tasks
            if self.rows * numbers_per_row > MAX_NUMBERS:
                most_rows = MAX_NUMBERS // numbers_per_row
                raise UsageError(
                    f"{self.rows:,} rows of {self.d:,} inputs do not fit into memory.",
                    f"mtlkit fetch 'synthetic[rows={most_rows},d={self.d}]' makes the most rows"
                    if most_rows >= self.tasks
                    else "mtlkit fetch synthetic",
                )
            return self

    options: Options

    title: ClassVar[str] = "Synthetic tasks with chosen correlation (MMoE paper, section 3.2)"
    url: ClassVar[str] = "https://doi.org/10.1145/3219819.3220007"
    preparation: ClassVar[int] = 2
    citation: ClassVar[str] = (
        "Ma et al., Modeling Task Relationships in Multi-task Learning with MMoE, KDD 2018"
    )

    def resolved_options(self) -> dict[str, Any]:
        """All options with their values; ``positive_rate`` only where there is a binary task, and
        ``labelled`` only where labels are missing.
        """
        values = without_unused(self.options, super().resolved_options(), ("labelled",))
        if self.options.kind == "regression":
            del values["positive_rate"]
        return values

    def prepare(self, home: Path) -> Dataset:
        """Generate the three splits."""
        samples = generate(self.options)

        # Thresholds, means and scales are those of train.
        targets = [
            _make_target(self.options, k, samples["train"].targets[:, k])
            for k in range(self.options.tasks)
        ]
        splits = {name: _pack(sample, targets) for name, sample in samples.items()}

        # The correlation that p leads to is a fact of the labels, so it is measured.
        tasks = _with_correlations([target.task for target in targets], splits["train"].labels)
        features = tuple(Feature(name=f"x{i + 1}", kind="dense") for i in range(self.options.d))
        schema = Schema(features=features, tasks=tasks)
        planted = _planted_metrics(samples["test"].signals, splits["test"].labels, targets)
        return Dataset(
            self.name,
            schema,
            splits,
            fingerprint(schema, splits),
            simulated=True,
            details={"simulation": planted},
        )


@dataclass(frozen=True)
class SyntheticSample:
    """One split before its targets become labels."""

    inputs: np.ndarray  # (N, d) float32
    targets: np.ndarray  # (N, T) float64
    signals: np.ndarray  # (N, T) float64, the targets without noise
    observed: np.ndarray  # (N, T) bool, where there is a label


@dataclass(frozen=True)
class _Target:
    """A task, and how its labels follow from its targets y: from (y - offset) / scale."""

    task: Task  # binary or regression
    offset: float  # the threshold of a binary task, the mean of a regression
    scale: float  # 1 for a binary task, the standard deviation of a regression

    def centred(self, targets: np.ndarray) -> np.ndarray:
        """(N,) targets with the threshold or mean at 0."""
        return (targets - self.offset) / self.scale


def generate(options: Synthetic.Options) -> dict[str, SyntheticSample]:
    """Draw the inputs and targets of all splits.

    Vectors, waves, and the inputs and the noise of each split come from random streams of their
    own, so an option that changes one of them leaves the others as they are.
    """
    seeds = np.random.SeedSequence(options.seed).spawn(2 + 2 * len(SPLITS) + 1)
    directions, waves, *streams, chance = [np.random.default_rng(seed) for seed in seeds]
    weights = weight_vectors(options.p, options.tasks, options.d, directions)  # (T, d)
    alphas, betas = waves.standard_normal((2, options.m))

    samples = {}
    for i, name in enumerate(SPLITS):
        input_stream, noise_stream = streams[2 * i : 2 * i + 2]
        rows = options.rows if name == "train" else options.rows // 4
        inputs = input_stream.standard_normal((rows, options.d), dtype=np.float32)
        noise = noise_stream.standard_normal((rows, options.tasks))

        # The formula of the paper: a linear part and m sine waves along it.
        linear = inputs @ weights.T  # (N, T)
        sines = np.zeros_like(linear)
        for alpha, beta in zip(alphas, betas, strict=True):
            sines += np.sin(alpha * linear + beta)
        signals = linear + sines
        targets = signals + options.noise_std * noise

        # labels are missing on train alone, so that options are measured on the same rows
        observed = np.ones(targets.shape, bool)
        if name == "train" and options.labelled < 1:
            observed[:, 0] = chance.random(len(targets)) < options.labelled
        samples[name] = SyntheticSample(inputs, targets, signals, observed)
    return samples


def lowest_cosine(tasks: int) -> float:
    """The least cosine that every two of ``tasks`` vectors can have.

    Below it their Gram matrix would be indefinite.
    """
    return -1.0 / max(tasks - 1, 1)


def weight_vectors(p: float, tasks: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """(T, d) float64 unit vectors with cosine ``p`` between any two, in random directions.

    For two tasks these are the paper's ``u1`` and ``p u1 + sqrt(1 - p^2) u2``: the rows of the
    Cholesky factor of the Gram matrix, in an orthonormal basis.
    """
    basis, _ = np.linalg.qr(rng.standard_normal((d, tasks)))  # (d, T), orthonormal columns

    # Column by column. numpy's factorisation refuses the two ends of p's range, where the Gram
    # matrix is singular and a pivot is 0.
    factor = np.zeros((tasks, tasks))
    for j in range(tasks):
        row, below = factor[j, :j], factor[j + 1 :, :j]
        pivot = 1.0 - row @ row
        if pivot > 1e-12:
            factor[j, j] = np.sqrt(pivot)
            factor[j + 1 :, j] = (p - below @ row) / factor[j, j]
    return factor @ basis.T


def _make_target(options: Synthetic.Options, k: int, train: np.ndarray) -> _Target:
    """Task number ``k``, with its threshold or scale.

    Args:
        train: (N,) its targets on train.
    """
    name = f"task-{k + 1}"
    is_regression = options.kind == "regression" or (options.kind == "mixed" and k % 2 == 1)
    if not is_regression:
        threshold = float(np.quantile(train, 1 - options.positive_rate))
        task = Task(name=name, description=f"y > {threshold:.4g}")
        return _Target(task, threshold, 1.0)

    mean, std = float(train.mean()), float(train.std())
    task = Task(
        name=name,
        kind="regression",
        losses=("mse",),
        scale=(mean, std),
        description="y, standardised",
    )
    return _Target(task, mean, std)


def _pack(sample: SyntheticSample, targets: list[_Target]) -> Split:
    """The split of a sample: labels in place of targets."""
    columns = []
    for k, target in enumerate(targets):
        centred = target.centred(sample.targets[:, k])
        columns.append(centred > 0 if target.task.kind == "binary" else centred)
    labels = np.stack(columns, -1).astype(np.float32)  # (N, T)

    no_ids = np.zeros((len(labels), 0), np.int32)
    return Split(ids=no_ids, dense=sample.inputs, labels=labels, observed=sample.observed)


def _planted_metrics(
    signals: np.ndarray, labels: np.ndarray, targets: list[_Target]
) -> dict[str, dict[str, float | None]]:
    """How well the targets without noise predict the labels of the test split: ``planted_auc`` of
    binary tasks and ``planted_r2`` of regressions, by task.

    Args:
        signals: (N, T) targets without noise.
        labels: (N, T).
    """
    aucs: dict[str, float | None] = {}
    r2s: dict[str, float | None] = {}
    for k, target in enumerate(targets):
        prediction = target.centred(signals[:, k])
        label = labels[:, k].astype(np.float64)
        if target.task.kind == "binary":
            aucs[target.task.name] = auc(prediction, label > 0)
        else:
            error = np.square(prediction - label).mean()
            r2s[target.task.name] = float(1 - error / label.var())
    return {"planted_auc": aucs, "planted_r2": r2s}


def _with_correlations(tasks: list[Task], labels: np.ndarray) -> tuple[Task, ...]:
    """The tasks, all but the first described with the correlation of their labels to its.

    Args:
        labels: (N, T) on train.
    """
    first, *others = tasks
    described = [first]
    for k, task in enumerate(others, 1):
        correlation = np.corrcoef(labels[:, 0], labels[:, k])[0, 1]
        note = f"{task.description}; label correlation with {first.name} {correlation:.2f}"
        described.append(task.model_copy(update={"description": note}))
    return tuple(described)
