"""The step time of row-sparse embedding tables of 1e5, 1e6 and 1e7 rows, the batches being the same."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import numpy as np

from .common import Check, Record, Section, Setup, in_child, markdown, ratios, say, select, spread

SIZES = (100_000, 1_000_000, 10_000_000)
BATCHES = (1024, 4096)
FIELDS, WIDTH, ROWS, STEPS = 23, 16, 100_000, 12
LIMIT = 1.15


def collect(setup: Setup) -> list[Record]:
    """Milliseconds a step, by table size and batch."""
    records = []
    for batch in BATCHES:
        say(f"sparse: batch {batch}, tables of {', '.join(f'{size:,}' for size in SIZES)} rows")
        records += in_child("sparse", {"batch": batch, "rounds": setup.rounds, "sizes": SIZES})
    return records


def work(job: dict[str, Any]) -> list[Record]:
    """In a process of its own: trainings on all sizes that take turns."""
    from .models import count_cpu_seconds, training
    from .turns import take_turns

    count_cpu_seconds()
    runs = {
        str(size): training(
            spread_out(size, job["sizes"][0]), WIDTH, "uniform", job["batch"], job["rounds"], STEPS, sparse_rows=1
        )
        for size in job["sizes"]
    }
    windows = take_turns(runs)
    return [
        {"batch": job["batch"], "size": int(size), "ms": [1000 * seconds / STEPS for seconds in found]}
        for size, found in windows.items()
    ]


def spread_out(size: int, smallest: int) -> Any:
    """A data set whose table has ``size`` rows, of which the batches hold as many as with the smallest one."""
    from .data import ali_shaped

    vocabulary, scale = smallest // FIELDS, size // smallest
    dataset = ali_shaped(ROWS, vocabularies=[vocabulary] * FIELDS)
    features = tuple(
        feature.model_copy(update={"vocab": vocabulary * scale}) if feature.kind == "id" else feature
        for feature in dataset.schema.features
    )
    for split in dataset.splits.values():
        np.copyto(split.ids, split.ids * scale + split.ids.astype(np.int64) * 40503 % scale, casting="unsafe")
    return replace(dataset, schema=dataset.schema.model_copy(update={"features": features}))


def table(records: list[Record]) -> str:
    """By batch, one column a size."""
    sizes = sorted({record["size"] for record in records})
    rows = []
    for batch in sorted({record["batch"] for record in records}):
        own = {size: select(records, batch=batch, size=size)[0]["ms"] for size in sizes}
        base = own[sizes[0]]
        rows.append([f"{batch}", *(spread(own[size]) for size in sizes), spread(ratios(own[sizes[-1]], base))])
    return markdown(["batch", *(f"ms a step, {size:.0e} rows" for size in sizes), "largest / smallest table"], rows)


def checks(records: list[Record]) -> list[Check]:
    """Within 15 % of each other."""
    found = []
    for batch in sorted({record["batch"] for record in records}):
        medians = [statistics.median(record["ms"]) for record in select(records, batch=batch)]
        factor = max(medians) / min(medians)
        asked = f"row-sparse step at 1e5 to 1e7 rows within 15 %, batch {batch}"
        found.append(Check(asked, f"{100 * (factor - 1):.0f} %", factor <= LIMIT))
    return found


SECTION = Section("sparse", "Row-sparse tables of growing size", 8, collect, table, checks)
