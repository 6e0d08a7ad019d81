"""Rows per CPU second, peak memory and test AUC of mtlkit, Torch-RecHub and FuxiCTR.

A round runs every system once on the same rows, each in a fresh process on one thread, in an order
that is reversed from round to round; the round's number is the seed. Peers come from PyPI into
environments of their own, made on first use. Every system trains two steps with a model that is
thrown away, then the timed passes, and is scored as it is after the last of them: none chooses a
point by validation.

A speed counts only where the same system learns no less than that peer: see :func:`verdict`. After
so few steps an AUC is first of all a matter of the initial parameters. Each peer therefore has a
twin, mtlkit with that peer's layers, treatment of numbers, initial distributions and clipping, and
targets are judged on these pairs. Plain ``mtlkit``, with its own defaults, is measured for
information.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import venv
from pathlib import Path
from typing import Any

from .common import (
    HOME,
    Check,
    Record,
    Section,
    Setup,
    child,
    in_child,
    markdown,
    say,
    select,
    spread,
)

PEERS = {
    "torch-rechub": ("torch-rechub==0.9.0", "rechub.py"),
    "fuxictr": ("fuxictr==2.3.10", "fuxi.py"),
}
TWINS = {peer: f"mtlkit as {peer}" for peer in PEERS}
SYSTEMS = (*PEERS, "mtlkit", *TWINS.values())
SETTINGS: dict[str, dict[str, Any]] = {
    TWINS["fuxictr"]: {"clip_norm": 10.0}
}  # as FuxiCTR's loop does
PLACES = {  # data set and batch to the rows that every system trains on, how often, and the rows that it is tested on
    ("census", 1024): {"train": 199_523, "passes": 2, "test": 49_881},
    ("census", 4096): {"train": 199_523, "passes": 3, "test": 49_881},
    ("ali", 1024): {"train": 102_400, "passes": 1, "test": 100_000},
    ("ali", 4096): {"train": 204_800, "passes": 1, "test": 100_000},
}
TARGETS = {
    ("ali", 1024, "torch-rechub"): 15.0,
    ("ali", 4096, "torch-rechub"): 9.0,
    ("census", 1024, "torch-rechub"): 7.0,
    ("census", 4096, "torch-rechub"): 7.0,
    ("census", 1024, "fuxictr"): 4.0,
    ("census", 4096, "fuxictr"): 4.0,
}
MARGIN = 0.003  # of AUC: a mean shortfall up to this is none
CONFIDENCE = 0.95
LEAST_ROUNDS = 3  # below, no AUC is judged


def collect(setup: Setup) -> list[Record]:
    """All systems, paired by round."""
    from .data import WIDTHS, ali_folder, census_folder
    from .models import EXPERTS, HIDDEN, TOWER

    pythons = {name: environment(name) for name in PEERS}
    records = []
    for (shape, batch), rows in PLACES.items():
        folder = census_folder(setup.data) if shape == "census" else ali_folder(setup.data)
        sizes = {"width": WIDTHS[shape], "experts": EXPERTS, "hidden": HIDDEN, "tower": TOWER}
        for number in range(setup.rounds):
            for system in SYSTEMS if number % 2 == 0 else SYSTEMS[::-1]:
                where = {"shape": shape, "batch": batch, "system": system, "seed": number}
                job = where | sizes | {"folder": str(folder), "rows": rows}
                if system in PEERS:
                    script = str(HOME / "speed" / "peers" / PEERS[system][1])
                    found = child([script], job, python=pythons[system])
                else:
                    found = in_child("training", job)
                records.append(where | found)
                say(
                    f"training: {shape}, batch {batch}, round {number + 1}, {system}: {shown(found)}"
                )
    return records


def shown(found: Record) -> str:
    """A short line on one run."""
    areas = ", ".join(f"{area:.4f}" for area in found["auc"])
    return f"{found['rows_per_second'] / 1000:.1f} thousand rows/s, {found['memory'] / 1e9:.2f} GB, AUC {areas}"


def environment(name: str) -> str:
    """The Python of an environment that holds a peer and nothing of ours."""
    home = HOME / f".peer-{name}"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        package = PEERS[name][0]
        say(f"installing {package} into {home}")
        venv.create(home, with_pip=True, clear=True)
        constraints = HOME.parent / "constraints.txt"
        pip = [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "-c",
            str(constraints),
        ]
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, package], check=True)
        (home / "ready").touch()
    return str(python)


def work(job: dict[str, Any]) -> Record:
    """In a process of its own: the rows through the trainer that ``mtlkit bench`` uses."""
    import torch

    from mtlkit.data.storage import read_dataset
    from mtlkit.settings import TrainingSettings
    from mtlkit.training.result import FitResult
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from . import models
    from .common import peak_memory
    from .data import head

    models.count_cpu_seconds()
    whole = read_dataset(Path(job["folder"]))
    dataset = head(
        whole, train=job["rows"]["train"], validation=2 * job["batch"], test=job["rows"]["test"]
    )
    system = job["system"]
    options = next((models.TWINS[peer] for peer, twin in TWINS.items() if twin == system), {})
    own = {
        "batch_size": job["batch"],
        "lr": 1e-3,
        "schedule": "constant",
        "evaluations": 1,
    } | SETTINGS.get(system, {})

    def train(epochs: float) -> FitResult:
        model = models.mmoe(dataset.schema, job["width"], job["seed"], **options)
        settings = TrainingSettings(epochs=epochs, **own)
        uniform = models.balancer("uniform", dataset.schema)
        setup = TrainingSetup(settings, models.EXECUTION, job["seed"], torch.device("cpu"))
        trainer = Trainer(model, uniform, dataset, setup)

        def keep_last(
            share: float,
        ) -> None:  # peers are scored as they are after the last step, so is this
            for best in trainer.evaluator.bests:
                best.state = {
                    name: value.clone() for name, value in trainer.model.state_dict().items()
                }

        return trainer.fit(keep_last)

    train(2 * job["batch"] / job["rows"]["train"])  # loads the compiled kernels
    result = train(job["rows"]["passes"])
    return {
        "rows_per_second": result.cost["train_rows_per_second"],
        "memory": peak_memory(),
        "auc": [found["auc"] for found in result.metrics["test"].values()],
    }


def factor(records: list[Record], system: str, base: str) -> list[float]:
    """Rates of a system over those of another, by round."""
    rates = [
        {record["seed"]: record["rows_per_second"] for record in select(records, system=s)}
        for s in (system, base)
    ]
    return [rates[0][seed] / rates[1][seed] for seed in rates[1]]


def _places(records: list[Record]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((record["shape"], record["batch"]) for record in records))


def table(records: list[Record]) -> str:
    """By data set, batch and system."""
    rows = []
    for shape, batch in _places(records):
        here = select(records, shape=shape, batch=batch)
        for system in SYSTEMS:
            own = select(here, system=system)
            areas = [
                f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"
                for values in zip(*(record["auc"] for record in own), strict=True)
            ]
            rates = spread([record["rows_per_second"] / 1000 for record in own], ".1f")
            memory = f"{statistics.median(record['memory'] for record in own) / 1e9:.2f}"
            others = [peer for peer in PEERS if peer != system]
            over = {peer: spread(factor(here, system, peer), ".1f") for peer in others}
            gaps = {peer: shown_gaps(shortfall(here, system, peer)) for peer in others}
            beside = [found.get(peer, "-") for found in (over, gaps) for peer in PEERS]
            rows.append(
                [shape, f"{batch}", system, rates, *beside[:2], memory, *areas, *beside[2:]]
            )
    head = [
        "data",
        "batch",
        "system",
        "thousand rows/s",
        *(f"x {peer}" for peer in PEERS),
        "peak memory, GB",
    ]
    head += [
        "first task, test AUC",
        "second task, test AUC",
        *(f"AUC less that of {peer}" for peer in PEERS),
    ]
    return markdown(head, rows)


def checks(records: list[Record]) -> list[Check]:
    """Speed of what learns no less; and what each twin learns beside its peer."""
    found = []
    for (shape, batch, peer), wanted in TARGETS.items():
        here, system = select(records, shape=shape, batch=batch), TWINS[peer]
        if not here:
            continue
        reached = statistics.median(factor(here, system, peer))
        gaps = shortfall(here, system, peer)
        asked = f"rows per second of {system}, {shape}, batch {batch}: >= {wanted:g} x {peer}, test AUC no less"
        met = verdict(gaps) if reached >= wanted else False
        found.append(Check(asked, f"{reached:.1f} x; AUC {shown_gaps(gaps)}", met))
    for shape, batch in _places(records):
        here = select(records, shape=shape, batch=batch)
        for peer, system in TWINS.items():
            gaps = shortfall(here, system, peer)
            asked = f"test AUC of {system}, {shape}, batch {batch}: no less than {peer}'s"
            found.append(Check(asked, shown_gaps(gaps), verdict(gaps)))
    return found


def shortfall(records: list[Record], system: str, peer: str) -> list[list[float]]:
    """By task: the test AUC of a system less the peer's, seed by seed."""
    own, other = (
        {record["seed"]: record["auc"] for record in select(records, system=s)}
        for s in (system, peer)
    )
    by_seed = [
        [mine - theirs for mine, theirs in zip(own[seed], other[seed], strict=True)]
        for seed in other
    ]
    return [list(gaps) for gaps in zip(*by_seed, strict=True)]


def verdict(gaps: list[list[float]]) -> bool | None:
    """Whether a system learns no less than a peer on every task; None with fewer than three rounds.

    It learns less on a task where its AUC, paired by seed, is on average more than .003 below the
    peer's and the 95 % t-interval of that mean lies below zero: a shortfall that matters and that
    is not the seeds'.
    """
    if min(map(len, gaps)) < LEAST_ROUNDS:
        return None
    return not any(
        statistics.mean(own) < -MARGIN and statistics.mean(own) + half_width(own) < 0
        for own in gaps
    )


def half_width(gaps: list[float]) -> float:
    """Of the t-interval of the mean."""
    from scipy.stats import t

    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1))
    return quantile * statistics.stdev(gaps) / math.sqrt(len(gaps))


def shown_gaps(gaps: list[list[float]]) -> str:
    """Means by task, with their intervals where there are enough rounds."""
    return ", ".join(
        f"{statistics.mean(own):+.4f}"
        + (f" ± {half_width(own):.4f}" if len(own) >= LEAST_ROUNDS else "")
        for own in gaps
    )


SECTION = Section(
    "training", "Training against Torch-RecHub and FuxiCTR", 5, collect, table, checks
)
