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
"""Peer to its package and to the script that trains it."""
TWINS = {peer: f"mtlkit as {peer}" for peer in PEERS}
SYSTEMS = (*PEERS, "mtlkit", *TWINS.values())
SETTINGS: dict[str, dict[str, Any]] = {
    TWINS["fuxictr"]: {"clip_norm": 10.0}  # as FuxiCTR's loop does
}
CONDITIONS = {
    ("census", 1024): {"train": 199_523, "passes": 2, "test": 49_881},
    ("census", 4096): {"train": 199_523, "passes": 3, "test": 49_881},
    ("ali", 1024): {"train": 102_400, "passes": 1, "test": 100_000},
    ("ali", 4096): {"train": 204_800, "passes": 1, "test": 100_000},
}
"""Data set and batch to the rows that every system trains on, how often, and the rows that it is
tested on.
"""
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
LEAST_ROUNDS = 3  # with fewer, no AUC is judged


# --- measuring ------------------------------------------------------------------------------------


def collect(setup: Setup) -> list[Record]:
    """All systems, paired by round."""
    from .data import WIDTHS, ali_folder, census_folder
    from .models import EXPERTS, HIDDEN, TOWER

    pythons = {peer: environment(peer) for peer in PEERS}
    records = []
    for (shape, batch), rows in CONDITIONS.items():
        folder = census_folder(setup.data) if shape == "census" else ali_folder(setup.data)
        sizes = {"width": WIDTHS[shape], "experts": EXPERTS, "hidden": HIDDEN, "tower": TOWER}

        # The order is reversed from round to round, so that none always comes first.
        for number in range(setup.rounds):
            for system in SYSTEMS if number % 2 == 0 else SYSTEMS[::-1]:
                about = {"shape": shape, "batch": batch, "system": system, "seed": number}
                job = about | sizes | {"folder": str(folder), "rows": rows}
                measured = run(job, pythons)
                records.append(about | measured)
                run_name = f"{shape}, batch {batch}, round {number + 1}, {system}"
                say(f"training: {run_name}: {summary(measured)}")
    return records


def run(job: Record, pythons: dict[str, str]) -> Record:
    """One system in a fresh process: a peer in its own environment, mtlkit in this one."""
    if job["system"] not in PEERS:
        return in_child("training", job)
    _, script = PEERS[job["system"]]
    return child([str(HOME / "speed" / "peers" / script)], job, python=pythons[job["system"]])


def summary(measured: Record) -> str:
    """A short line on one run."""
    rate = measured["rows_per_second"] / 1000
    memory = measured["memory"] / 1e9
    areas = ", ".join(f"{area:.4f}" for area in measured["auc"])
    return f"{rate:.1f} thousand rows/s, {memory:.2f} GB, AUC {areas}"


def environment(peer: str) -> str:
    """The Python of an environment that holds a peer and nothing of ours."""
    home = HOME / f".peer-{peer}"
    python = home / "bin" / "python"
    if (home / "ready").exists():
        return str(python)

    package, _ = PEERS[peer]
    say(f"installing {package} into {home}")
    venv.create(home, with_pip=True, clear=True)
    constraints = str(HOME.parent / "constraints.txt")
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for name in ("torch", package):
        subprocess.run([*pip, "-c", constraints, name], check=True)
    (home / "ready").touch()  # last: an installation that was cut off is made anew
    return str(python)


def work(job: dict[str, Any]) -> Record:
    """In a process of its own: the rows through the trainer that ``mtlkit bench`` uses."""
    from mtlkit.data.storage import read_dataset

    from . import models
    from .common import peak_memory
    from .data import head

    models.count_cpu_seconds()
    # Validation is not used: the last step is scored, so two batches of it will do.
    rows, batch = job["rows"], job["batch"]
    whole = read_dataset(Path(job["folder"]))
    dataset = head(whole, train=rows["train"], validation=2 * batch, test=rows["test"])
    train(dataset, job, epochs=2 * batch / rows["train"])  # loads the compiled kernels
    result = train(dataset, job, epochs=rows["passes"])
    return {
        "rows_per_second": result.cost["train_rows_per_second"],
        "memory": peak_memory(),
        "auc": [metrics["auc"] for metrics in result.metrics["test"].values()],
    }


def train(dataset: Any, job: dict[str, Any], epochs: float) -> Any:
    """A new model, trained for some epochs and scored as it is after the last step."""
    import torch

    from mtlkit.settings import TrainingSettings
    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from . import models

    # A twin has the options and settings of its peer.
    system = job["system"]
    peer = next((peer for peer, twin in TWINS.items() if twin == system), None)
    options = models.TWINS[peer] if peer else {}
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=job["batch"],
        lr=1e-3,
        schedule="constant",
        evaluations=1,
        **SETTINGS.get(system, {}),
    )
    model = models.mmoe(dataset.schema, job["width"], job["seed"], **options)
    uniform = models.balancer("uniform", dataset.schema)
    device = torch.device(job.get("device", "cpu"))
    setup = TrainingSetup(settings, models.EXECUTION, job["seed"], device)
    trainer = Trainer(model, uniform, dataset, setup)

    def keep_last(share: float) -> None:
        # The trainer scores its best point by validation; peers are scored as they are at the end.
        for best in trainer.evaluator.bests:
            state = trainer.model.state_dict()
            best.state = {name: value.clone() for name, value in state.items()}

    return trainer.fit(keep_last)


# --- comparing ------------------------------------------------------------------------------------


def by_seed(records: list[Record], system: str, field: str) -> dict[int, Any]:
    """Seed to one field of a system's records."""
    return {record["seed"]: record[field] for record in select(records, system=system)}


def factor(records: list[Record], system: str, base: str) -> list[float]:
    """Rates of a system over those of another, by round."""
    rates = by_seed(records, system, "rows_per_second")
    base_rates = by_seed(records, base, "rows_per_second")
    return [rates[seed] / base_rate for seed, base_rate in base_rates.items()]


def shortfall(records: list[Record], system: str, peer: str) -> list[list[float]]:
    """By task: the test AUC of a system less the peer's, seed by seed."""
    areas = by_seed(records, system, "auc")
    peer_areas = by_seed(records, peer, "auc")
    gaps_by_seed = [
        [area - peer_area for area, peer_area in zip(areas[seed], of_peer, strict=True)]
        for seed, of_peer in peer_areas.items()
    ]
    return [list(gaps) for gaps in zip(*gaps_by_seed, strict=True)]


def verdict(gaps: list[list[float]]) -> bool | None:
    """Whether a system learns no less than a peer on every task; None with fewer than three rounds.

    It learns less on a task where its AUC, paired by seed, is on average more than .003 below the
    peer's and the 95 % t-interval of that mean lies below zero: a shortfall that matters and that
    is not the seeds'.
    """
    if min(map(len, gaps)) < LEAST_ROUNDS:
        return None
    return not any(_falls_short(task_gaps) for task_gaps in gaps)


def _falls_short(gaps: list[float]) -> bool:
    mean = statistics.mean(gaps)
    return mean < -MARGIN and mean + half_width(gaps) < 0


def half_width(gaps: list[float]) -> float:
    """Half the width of the t-interval of the mean."""
    from scipy.stats import t

    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1))
    return quantile * statistics.stdev(gaps) / math.sqrt(len(gaps))


def gap_text(gaps: list[list[float]]) -> str:
    """Means by task, with their intervals where there are enough rounds."""
    texts = []
    for task_gaps in gaps:
        text = f"{statistics.mean(task_gaps):+.4f}"
        if len(task_gaps) >= LEAST_ROUNDS:
            text += f" ± {half_width(task_gaps):.4f}"
        texts.append(text)
    return ", ".join(texts)


# --- results --------------------------------------------------------------------------------------


def conditions(records: list[Record]) -> list[tuple[str, int]]:
    """Data set and batch of all that was measured."""
    return list(dict.fromkeys((record["shape"], record["batch"]) for record in records))


def table(records: list[Record]) -> str:
    """By data set, batch and system."""
    head = ["data", "batch", "system", "thousand rows/s", *(f"x {peer}" for peer in PEERS)]
    head += ["peak memory, GB", "first task, test AUC", "second task, test AUC"]
    head += [f"AUC less that of {peer}" for peer in PEERS]
    rows = []
    for shape, batch in conditions(records):
        same = select(records, shape=shape, batch=batch)
        rows += [[shape, f"{batch}", *_row(same, system)] for system in SYSTEMS]
    return markdown(head, rows)


def _row(records: list[Record], system: str) -> list[str]:
    """What the table says of one system, among records of one data set and batch."""
    runs = select(records, system=system)
    rates = spread([record["rows_per_second"] / 1000 for record in runs], ".1f")
    memory = statistics.median(record["memory"] for record in runs) / 1e9
    areas = [
        f"{statistics.mean(values):.4f} ± {_deviation(values):.4f}"
        for values in zip(*(record["auc"] for record in runs), strict=True)
    ]

    # No peer is compared with itself.
    faster, gaps = [], []
    for peer in PEERS:
        other = peer != system
        faster.append(spread(factor(records, system, peer), ".1f") if other else "-")
        gaps.append(gap_text(shortfall(records, system, peer)) if other else "-")
    return [system, rates, *faster, f"{memory:.2f}", *areas, *gaps]


def _deviation(values: tuple[float, ...]) -> float:
    """Standard deviation over seeds; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0


def checks(records: list[Record]) -> list[Check]:
    """Speed of what learns no less; and what each twin learns beside its peer."""
    judged = []
    for (shape, batch, peer), target in TARGETS.items():
        same = select(records, shape=shape, batch=batch)
        if same:
            asked = f"{TWINS[peer]}, {shape}, batch {batch}: >= {target:g} x {peer}"
            judged.append(_check_speed(same, peer, target, asked))
    for shape, batch in conditions(records):
        same = select(records, shape=shape, batch=batch)
        for peer, twin in TWINS.items():
            gaps = shortfall(same, twin, peer)
            asked = f"test AUC of {twin}, {shape}, batch {batch}: no less than {peer}'s"
            judged.append(Check(asked, gap_text(gaps), verdict(gaps)))
    return judged


def _check_speed(records: list[Record], peer: str, target: float, asked: str) -> Check:
    """A speed that is reached counts only with what the same twin learnt."""
    reached = statistics.median(factor(records, TWINS[peer], peer))
    gaps = shortfall(records, TWINS[peer], peer)
    met = verdict(gaps) if reached >= target else False
    return Check(
        f"rows per second of {asked}, test AUC no less",
        f"{reached:.1f} x; AUC {gap_text(gaps)}",
        met,
    )


SECTION = Section(
    "training", "Training against Torch-RecHub and FuxiCTR", 5, collect, table, checks
)
