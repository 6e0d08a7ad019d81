"""The two data sets of the benchmarks: Census-Income, and one with the shape of Ali-CCP."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtlkit.data.sources import prepare
from mtlkit.data.splits import SPLITS, Dataset, Split, fingerprint
from mtlkit.data.storage import read_dataset, read_manifest, write_dataset
from mtlkit.data.types import Feature, Schema, Task

CENSUS = "census[protocol=rechub]"
OF_USERS = (240_000, 100, 14, 3, 8, 4, 4, 3, 5, 4)
OF_ITEMS = (470_000, 7_000, 260_000, 106_000)
OF_CONTEXT = (6_000, 105_000, 52_000, 37_000, 6_000, 80_000, 30_000, 40_000, 3_000)
VOCABULARIES = (*OF_USERS, *OF_ITEMS, *OF_CONTEXT)
"""Sizes like those of Ali-CCP's 23 fields: 1.44 million embedding rows."""
NUMBERS = 8  # numeric features
ALI_ROWS = 2_000_000
ZIPF = 1.05  # exponent of the frequency of ids
WIDTHS = {"census": 8, "ali": 16}  # of the embeddings
EXTRA = "extra-{}"  # names of further tasks


def census(home: Path) -> Dataset:
    """Census-Income: 32 id fields with small vocabularies, 7 numbers, income and marital status."""
    return prepare(CENSUS, home)[1]


def census_folder(home: Path) -> Path:
    """Where Census-Income lies prepared."""
    source, _ = prepare(CENSUS, home)
    return source.folder(home)


def ali_folder(home: Path, rows: int = ALI_ROWS) -> Path:
    """The Ali-CCP-shaped set in the data home, written on first use; a tenth each for validation
    and test.
    """
    folder = home / "speed" / f"ali-shaped-{rows}-{recipe()}"
    if read_manifest(folder) is None:
        write_dataset(folder, ali_shaped(rows), {"rows": rows})
    return folder


def recipe() -> str:
    """A digest of all that the generated rows depend on, so that a set of an older recipe is not
    taken for this one.
    """
    sources = [inspect.getsource(function) for function in (ali_shaped, zipf, task_names)]
    recipe_text = [*sources, repr((VOCABULARIES, NUMBERS, ZIPF, EXTRA))]
    return hashlib.sha256("\0".join(recipe_text).encode()).hexdigest()[:12]


def open_dataset(name: str, home: Path) -> Dataset:
    """``census`` or ``ali``."""
    return census(home) if name == "census" else read_dataset(ali_folder(home))


def ali_shaped(
    rows: int, tasks: int = 2, vocabularies: Sequence[int] = VOCABULARIES, seed: int = 0
) -> Dataset:
    """Zipf-distributed ids, normal numbers and planted labels.

    A task's log odds are a sum of effects of the ids and of the numbers, half of whose variance the
    tasks share. Rates of 10 % and 3 %, above those of Ali-CCP, let a test split of modest size tell
    AUCs apart.
    """
    rng = np.random.default_rng(seed)
    ids = np.empty((rows, len(vocabularies)), np.int32)
    dense = rng.standard_normal((rows, NUMBERS), dtype=np.float32)
    weight = rng.standard_normal((NUMBERS, tasks + 1)).astype(np.float32) * 0.15
    logits = dense @ weight  # (N, T + 1): what the tasks share, then what each adds

    # Effects of large vocabularies are small: little can be learnt of an id that is seen a few
    # times.
    for field, vocabulary in enumerate(vocabularies):
        rank = zipf(rng, rows, vocabulary)
        ids[:, field] = rng.permutation(vocabulary).astype(np.int32)[rank]
        effect = rng.standard_normal((vocabulary, tasks + 1), dtype=np.float32)
        logits += effect[ids[:, field]] * np.float32(0.4 if vocabulary <= 256 else 0.25)
    logits = (logits[:, :1] + logits[:, 1:]) * 0.7  # (N, T)

    # An offset for each task, so that about the share ``rates`` of the labels is positive.
    rates = np.array([0.1, 0.03, *([0.2] * max(tasks - 2, 0))][:tasks])
    offset = np.quantile(logits[: min(rows, 100_000)], 1 - rates, axis=0).diagonal()
    noise = rng.logistic(size=logits.shape) * 0.6
    labels = (logits - offset + noise > 0).astype(np.float32)

    id_features = [Feature(name=f"f{i + 1}", vocab=v) for i, v in enumerate(vocabularies)]
    numbers = [Feature(name=f"x{i + 1}", kind="dense") for i in range(NUMBERS)]
    schema = Schema(
        features=(*id_features, *numbers),
        tasks=tuple(Task(name=name) for name in task_names(tasks)),
    )

    # A tenth of the rows each for validation and test.
    ends = np.cumsum([0, rows - 2 * (rows // 10), rows // 10, rows // 10])
    observed = np.ones(labels.shape, bool)
    splits = {}
    for name, start, end in zip(SPLITS, ends[:-1], ends[1:], strict=True):
        split = slice(start, end)
        splits[name] = Split(ids[split], dense[split], labels[split], observed[split])
    return Dataset("ali-shaped", schema, splits, fingerprint(schema, splits), simulated=True)


def task_names(tasks: int) -> list[str]:
    """Names of the tasks of generated labels."""
    extra = [EXTRA.format(number + 1) for number in range(tasks - 2)]
    return ["click", "purchase", *extra][:tasks]


def zipf(rng: np.random.Generator, rows: int, vocabulary: int) -> np.ndarray:
    """(rows,) int32 ranks from 0, the chance of rank r near (r + 1) ** -ZIPF, by the inverse of its
    continuous form.
    """
    power = 1 - ZIPF
    top = (vocabulary + 1) ** power - 1
    drawn = (rng.random(rows) * top + 1) ** (1 / power)
    return np.minimum(drawn.astype(np.int32) - 1, vocabulary - 1)


def with_extra_tasks(dataset: Dataset, tasks: int, seed: int = 0) -> Dataset:
    """The data set with its first tasks, and planted binary ones until there are ``tasks``."""
    kept = dataset.schema.tasks[:tasks]
    extra = tuple(Task(name=EXTRA.format(number + 1)) for number in range(tasks - len(kept)))
    schema = dataset.schema.model_copy(update={"tasks": kept + extra, "funnel": None})

    # Each id has an effect on each of the extra tasks, the same in all splits.
    effects = [
        np.random.default_rng([seed, field]).standard_normal((feature.vocab, len(extra)))
        for field, feature in enumerate(schema.of_kind("id"))
    ]
    splits = {}
    for number, (name, split) in enumerate(dataset.splits.items()):
        logits = np.zeros((len(split), len(extra)))
        for field, effect in enumerate(effects):
            logits += effect[split.ids[:, field]]
        noise = np.random.default_rng([seed, number]).logistic(size=logits.shape)
        planted = (logits + noise > 2).astype(np.float32)
        labels = np.hstack([split.labels[:, : len(kept)], planted])
        observed = np.hstack([split.observed[:, : len(kept)], np.ones(planted.shape, bool)])
        splits[name] = replace(split, labels=labels, observed=observed, groups={})
    return replace(dataset, schema=schema, splits=splits)


def head(dataset: Dataset, **rows: int) -> Dataset:
    """The first rows of some splits."""
    splits = dict(dataset.splits)
    for name, count in rows.items():
        arrays = {key: value[:count] for key, value in splits[name].arrays().items()}
        splits[name] = Split.from_arrays(arrays)
    return replace(dataset, splits=splits)
