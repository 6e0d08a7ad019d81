"""The step time of row-sparse embedding tables of 1e5, 1e6 and 1e7 rows, under batches of equally
many distinct rows.

Every batch draws its rows afresh from the whole of the table. How often a row occurs within a batch
follows Zipf's law and is the same for all sizes. So a large table is not read from a few rows that
stay in the processor's cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .common import (
    Check,
    Record,
    Section,
    Setup,
    in_child,
    markdown,
    ratios,
    say,
    select,
    spread,
)

SIZES = (100_000, 1_000_000, 10_000_000)
BATCHES = (1024, 4096)
FIELDS, WIDTH, STEPS, SCORED = 23, 16, 12, 2048
LIMIT = 1.15


def collect(setup: Setup) -> list[Record]:
    """Milliseconds a step, by table size and batch."""
    records = []
    for batch in BATCHES:
        say(f"sparse: batch {batch}, tables of {', '.join(f'{size:,}' for size in SIZES)} rows")
        job = {"batch": batch, "rounds": setup.rounds, "sizes": SIZES}
        records += in_child("sparse", job)
    return records


def work(job: dict[str, Any]) -> list[Record]:
    """In a process of its own: trainings on all sizes that take turns."""
    from .models import count_cpu_seconds
    from .turns import take_turns

    count_cpu_seconds()
    windows = take_turns(
        {
            str(size): run(size, job["sizes"][0], job["batch"], job["rounds"])
            for size in job["sizes"]
        }
    )
    return [
        {
            "batch": job["batch"],
            "size": int(size),
            "ms": [1000 * seconds / STEPS for seconds in found],
        }
        for size, found in windows.items()
    ]


def run(size: int, smallest: int, batch: int, windows: int) -> Callable[[Any], None]:
    """The training on one size of table; the first window is a warm-up."""
    from .models import training

    dataset, order = fresh_batches(size, smallest, batch, (windows + 1) * STEPS)
    return training(dataset, WIDTH, "uniform", batch, windows, STEPS, order=order, sparse_rows=1)


def fresh_batches(size: int, smallest: int, batch: int, steps: int) -> tuple[Any, Any]:
    """A data set whose table has ``size`` rows, and the order in which its rows make up the
    batches.

    Ranks by Zipf's law within the smallest vocabulary, the same for every size, say which rows of a
    batch are one and the same. A permutation of that vocabulary, drawn anew for every batch and
    field, gives each rank a block of the table, and another draw its place in the block.
    """
    import torch

    from .data import ali_shaped, head, zipf

    vocabulary, scale = smallest // FIELDS, size // smallest
    rows = steps * batch
    dataset = ali_shaped(max(-(-5 * rows // 4), 10 * SCORED), vocabularies=[vocabulary] * FIELDS)
    dataset = head(dataset, train=rows, validation=SCORED, test=SCORED)
    shared, own = (
        np.random.default_rng(0),
        np.random.default_rng(1),
    )  # what all sizes have in common, and the rest
    order = shared.permutation(rows)
    ids = dataset.splits["train"].ids
    for step in range(steps):
        members = order[step * batch : (step + 1) * batch]
        for field in range(FIELDS):
            block = shared.permutation(vocabulary)[zipf(shared, batch, vocabulary)]
            ids[members, field] = block * scale + own.integers(scale, size=vocabulary)[block]
    for name in ("validation", "test"):
        dataset.splits[name].ids[:] *= scale
    features = tuple(
        feature.model_copy(update={"vocab": vocabulary * scale})
        if feature.kind == "id"
        else feature
        for feature in dataset.schema.features
    )
    return replace(
        dataset, schema=dataset.schema.model_copy(update={"features": features})
    ), torch.from_numpy(order)


def table(records: list[Record]) -> str:
    """By batch, one column a size."""
    sizes = sorted({record["size"] for record in records})
    rows = []
    for batch in sorted({record["batch"] for record in records}):
        own = {size: select(records, batch=batch, size=size)[0]["ms"] for size in sizes}
        base = own[sizes[0]]
        rows.append(
            [
                f"{batch}",
                *(spread(own[size]) for size in sizes),
                spread(ratios(own[sizes[-1]], base)),
            ]
        )
    return markdown(
        ["batch", *(f"ms a step, {size:.0e} rows" for size in sizes), "largest / smallest table"],
        rows,
    )


def checks(records: list[Record]) -> list[Check]:
    """Within 15 % of each other."""
    found = []
    for batch in sorted({record["batch"] for record in records}):
        medians = [statistics.median(record["ms"]) for record in select(records, batch=batch)]
        factor = max(medians) / min(medians)
        asked = f"row-sparse step at 1e5 to 1e7 rows within 15 %, rows drawn afresh for every batch of {batch}"
        found.append(Check(asked, f"{100 * (factor - 1):.0f} %", factor <= LIMIT))
    return found


SECTION = Section("sparse", "Row-sparse tables of growing size", 8, collect, table, checks)
