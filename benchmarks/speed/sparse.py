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

from .common import Check, Record, Section, Setup, in_child, markdown, ratios, say, select, spread

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
    smallest = job["sizes"][0]
    runs = {str(size): run(size, smallest, job["batch"], job["rounds"]) for size in job["sizes"]}
    records = []
    for size, windows in take_turns(runs).items():
        milliseconds = [1000 * seconds / STEPS for seconds in windows]
        records.append({"batch": job["batch"], "size": int(size), "ms": milliseconds})
    return records


def run(size: int, smallest: int, batch: int, windows: int) -> Callable[[Any], None]:
    """The training on one size of table; the first window is a warm-up."""
    from .models import Windows, training

    timed = Windows(windows, STEPS, batch)
    dataset, order = fresh_batches(size, smallest, batch, timed.with_warm_up.count * STEPS)
    return training(dataset, WIDTH, "uniform", timed, order=order, sparse_rows=1)


def fresh_batches(size: int, smallest: int, batch: int, steps: int) -> tuple[Any, Any]:
    """A data set whose table has ``size`` rows, and the order in which its rows make up the
    batches.

    Ranks by Zipf's law within the smallest vocabulary, the same for every size, say which rows of a
    batch are one and the same. A permutation of that vocabulary, drawn anew for every batch and
    field, gives each rank a block of the table, and another draw its position in the block.
    """
    import torch

    from .data import ali_shaped, head, zipf

    vocabulary = smallest // FIELDS
    block_size = size // smallest
    rows = steps * batch
    dataset = ali_shaped(max(-(-5 * rows // 4), 10 * SCORED), vocabularies=[vocabulary] * FIELDS)
    dataset = head(dataset, train=rows, validation=SCORED, test=SCORED)

    # All sizes draw the same from the first generator; the second depends on the size.
    common = np.random.default_rng(0)
    within_block = np.random.default_rng(1)
    order = common.permutation(rows)
    ids = dataset.splits["train"].ids
    for step in range(steps):
        members = order[step * batch : (step + 1) * batch]
        for field in range(FIELDS):
            block = common.permutation(vocabulary)[zipf(common, batch, vocabulary)]  # (B,)
            position = within_block.integers(block_size, size=vocabulary)[block]  # (B,)
            ids[members, field] = block * block_size + position
    for name in ("validation", "test"):
        dataset.splits[name].ids[:] *= block_size
    return _with_vocabulary(dataset, vocabulary * block_size), torch.from_numpy(order)


def _with_vocabulary(dataset: Any, vocabulary: int) -> Any:
    """The data set with this number of ids in every id field."""
    features = tuple(
        feature.model_copy(update={"vocab": vocabulary}) if feature.kind == "id" else feature
        for feature in dataset.schema.features
    )
    schema = dataset.schema.model_copy(update={"features": features})
    return replace(dataset, schema=schema)


def times(records: list[Record], batch: int) -> dict[int, list[float]]:
    """Size of the table to milliseconds a step, from the smallest on."""
    by_size = {record["size"]: record["ms"] for record in select(records, batch=batch)}
    return dict(sorted(by_size.items()))


def batches(records: list[Record]) -> list[int]:
    """The batch sizes that were measured."""
    return sorted({record["batch"] for record in records})


def table(records: list[Record]) -> str:
    """By batch, one column a size."""
    sizes = sorted({record["size"] for record in records})
    head = ["batch", *(f"ms a step, {size:.0e} rows" for size in sizes)]
    rows = []
    for batch in batches(records):
        by_size = times(records, batch)
        largest_over_smallest = ratios(by_size[sizes[-1]], by_size[sizes[0]])
        columns = [spread(ms) for ms in by_size.values()]
        rows.append([f"{batch}", *columns, spread(largest_over_smallest)])
    return markdown([*head, "largest / smallest table"], rows)


def checks(records: list[Record]) -> list[Check]:
    """Within 15 % of each other."""
    judged = []
    for batch in batches(records):
        medians = [statistics.median(ms) for ms in times(records, batch).values()]
        factor = max(medians) / min(medians)
        asked = (
            "row-sparse step at 1e5 to 1e7 rows within 15 %, rows drawn afresh for every batch "
            f"of {batch}"
        )
        judged.append(Check(asked, f"{100 * (factor - 1):.0f} %", factor <= LIMIT))
    return judged


SECTION = Section("sparse", "Row-sparse tables of growing size", 8, collect, table, checks)
