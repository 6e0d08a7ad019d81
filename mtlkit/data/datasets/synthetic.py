"""Regression or binary tasks whose relatedness is dialled in: the synthetic data of the MMoE paper.

Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts,
KDD 2018, section 3.2, https://doi.org/10.1145/3219819.3220007. With x ~ N(0, I), task k has the
target

    y_k = w_k . x + sum_{i <= m} sin(alpha_i w_k . x + beta_i) + noise

with alpha, beta ~ N(0, 1) shared by the tasks, and unit vectors w_k with cosine p between any two.
The paper has two tasks; for T tasks such vectors exist when -1 / (T - 1) <= p <= 1. With one seed,
p moves the vectors and nothing else.

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
from mtlkit.settings import Settings


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
        m: int = Field(10, ge=0, description="number of sine terms")
        noise_std: float = Field(
            0.1, ge=0, description="standard deviation of the noise (the paper writes N(0, 0.01))"
        )
        positive_rate: float = Field(
            0.5, gt=0, lt=1, description="share of positives of a binary task on train"
        )
        seed: int = Field(0, ge=0, description="of the generator")

        @model_validator(mode="after")
        def _exists(self) -> Synthetic.Options:
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

    options: Options

    title: ClassVar[str] = "Synthetic tasks with chosen correlation (MMoE paper, section 3.2)"
    url: ClassVar[str] = "https://doi.org/10.1145/3219819.3220007"
    preparation: ClassVar[int] = 2
    citation: ClassVar[str] = (
        "Ma et al., Modeling Task Relationships in Multi-task Learning with MMoE, KDD 2018"
    )

    def resolved_options(self) -> dict[str, Any]:
        """All options with their values; ``positive_rate`` only where there is a binary task."""
        values = super().resolved_options()
        if self.options.kind == "regression":
            del values["positive_rate"]
        return values

    def prepare(self, home: Path) -> Dataset:
        """Generate the three splits."""
        samples = generate(self.options)
        train_targets = samples["train"].targets

        # What is taken off the targets of each task, and what they are divided by.
        encoded = [_encode_task(self.options, k, train_targets) for k in range(self.options.tasks)]
        tasks = tuple(task for task, _, _ in encoded)
        offset = np.array([offset for _, offset, _ in encoded])
        scale = np.array([scale for _, _, scale in encoded])
        is_binary = np.array([task.kind == "binary" for task in tasks])

        splits = {}
        for name, sample in samples.items():
            centred = (sample.targets - offset) / scale
            labels = np.where(is_binary, centred > 0, centred).astype(np.float32)
            splits[name] = Split(
                ids=np.zeros((len(labels), 0), np.int32),
                dense=sample.inputs,
                labels=labels,
                observed=np.ones(labels.shape, bool),
            )

        train_labels = splits["train"].labels
        described = [_with_correlation(tasks, k, train_labels) for k in range(1, len(tasks))]
        tasks = (tasks[0], *described)
        features = tuple(Feature(name=f"x{i + 1}", kind="dense") for i in range(self.options.d))
        schema = Schema(features=features, tasks=tasks)
        centred_signals = (samples["test"].signals - offset) / scale
        details = {"simulation": _planted(tasks, centred_signals, splits["test"].labels)}
        return Dataset(
            self.name, schema, splits, fingerprint(schema, splits), simulated=True, details=details
        )


@dataclass(frozen=True)
class SyntheticSample:
    """One split before its targets become labels.

    Args:
        inputs: (N, d) float32.
        targets: (N, T) float64.
        signals: (N, T) float64, the targets without noise.
    """

    inputs: np.ndarray
    targets: np.ndarray
    signals: np.ndarray


def generate(options: Synthetic.Options) -> dict[str, SyntheticSample]:
    """Draw the inputs and targets of all splits, each random part from a stream of its own."""
    sequence = np.random.SeedSequence(options.seed)
    directions, waves, *streams = sequence.spawn(2 + 2 * len(SPLITS))
    weights = weight_vectors(options.p, options.tasks, options.d, np.random.default_rng(directions))
    alpha, beta = np.random.default_rng(waves).standard_normal((2, options.m))
    samples = {}
    for i, name in enumerate(SPLITS):
        rows = options.rows if name == "train" else options.rows // 4
        input_rng = np.random.default_rng(streams[2 * i])
        noise_rng = np.random.default_rng(streams[2 * i + 1])
        inputs = input_rng.standard_normal((rows, options.d), dtype=np.float32)
        noise = noise_rng.standard_normal((rows, options.tasks))

        projections = inputs @ weights.T  # (N, T)
        sines = np.zeros_like(projections)
        for a, b in zip(alpha, beta, strict=True):
            sines = sines + np.sin(a * projections + b)
        signals = projections + sines
        samples[name] = SyntheticSample(inputs, signals + options.noise_std * noise, signals)
    return samples


def lowest_cosine(tasks: int) -> float:
    """The least cosine that every two of ``tasks`` vectors can have: where their Gram matrix turns
    indefinite.
    """
    return -1.0 / max(tasks - 1, 1)


def weight_vectors(p: float, tasks: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors with cosine ``p`` between any two, in random directions.

    For two tasks these are the paper's ``u1`` and ``p u1 + sqrt(1 - p^2) u2``: the rows of the
    Cholesky factor of the Gram matrix, in an orthonormal basis.

    Returns:
        (T, d) float64.
    """
    basis, _ = np.linalg.qr(rng.standard_normal((d, tasks)))  # (d, T), orthonormal columns
    factor = np.zeros((tasks, tasks))
    for j in range(tasks):
        # numpy's factorisation refuses the two ends of p's range, where the Gram matrix is
        # singular.
        pivot = 1.0 - factor[j, :j] @ factor[j, :j]
        factor[j, j] = np.sqrt(pivot) if pivot > 1e-12 else 0.0
        if factor[j, j]:
            factor[j + 1 :, j] = (p - factor[j + 1 :, :j] @ factor[j, :j]) / factor[j, j]
    return factor @ basis.T


def _encode_task(
    options: Synthetic.Options, k: int, train: np.ndarray
) -> tuple[Task, float, float]:
    """A task with what is taken off its targets and what they are divided by, both from train."""
    target, name = train[:, k], f"task-{k + 1}"
    if options.kind == "regression" or (options.kind == "mixed" and k % 2):
        mean, std = float(target.mean()), float(target.std())
        task = Task(
            name=name,
            kind="regression",
            losses=("mse",),
            scale=(mean, std),
            description="y, standardised",
        )
        return task, mean, std
    threshold = float(np.quantile(target, 1 - options.positive_rate))
    return Task(name=name, description=f"y > {threshold:.4g}"), threshold, 1.0


def _planted(
    tasks: tuple[Task, ...], signals: np.ndarray, labels: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """How well the targets without noise (N, T), encoded as the labels are, do on the test split:
    the AUC of binary tasks, the R² of regression.
    """
    aucs: dict[str, float | None] = {}
    r2s: dict[str, float | None] = {}
    for k, task in enumerate(tasks):
        signal, label = signals[:, k], labels[:, k].astype(np.float64)
        if task.kind == "binary":
            aucs[task.name] = auc(signal, label > 0)
        else:
            r2s[task.name] = float(1 - np.square(signal - label).mean() / label.var())
    return {"planted_auc": aucs, "planted_r2": r2s}


def _with_correlation(tasks: tuple[Task, ...], k: int, labels: np.ndarray) -> Task:
    """A task whose description gives its label correlation with the first one."""
    correlation = np.corrcoef(labels[:, 0], labels[:, k])[0, 1]
    note = f"{tasks[k].description}; label correlation with {tasks[0].name} {correlation:.2f}"
    return tasks[k].model_copy(update={"description": note})
