"""Rows per CPU second, peak memory and test AUC of mtlkit, Torch-RecHub and FuxiCTR.

A round runs every system once on the same rows, each in a fresh process on one thread, in an order that is reversed
from round to round; the round's number is the seed. Peers come from PyPI into environments of their own, made on first
use.
"""

from __future__ import annotations

import statistics
import subprocess
import venv
from pathlib import Path
from typing import Any

from .common import HOME, Check, Record, Section, Setup, child, in_child, markdown, say, select, spread

PEERS = {"torch-rechub": ("torch-rechub==0.9.0", "rechub.py"), "fuxictr": ("fuxictr==2.3.10", "fuxi.py")}
NORMED = "mtlkit, batch norm"
SYSTEMS = ("torch-rechub", "fuxictr", "mtlkit", NORMED)
TWINS = {"torch-rechub": NORMED, "fuxictr": "mtlkit"}
"""Torch-RecHub's layers always hold batch normalisation, FuxiCTR's do not unless asked."""
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
DEVIATIONS = 2.0


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
                say(f"training: {shape}, batch {batch}, round {number + 1}, {system}: {shown(found)}")
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
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints)]
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, package], check=True)
        (home / "ready").touch()
    return str(python)


def work(job: dict[str, Any]) -> Record:
    """In a process of its own: the rows through the trainer that ``mtlkit bench`` uses."""
    import torch

    from mtlkit.config import TrainingSettings
    from mtlkit.data.packed import read_dataset
    from mtlkit.training.loop import Trainer
    from mtlkit.training.result import FitResult

    from .common import peak_memory
    from .data import head
    from .models import EXECUTION, balancer, count_cpu_seconds, mmoe

    count_cpu_seconds()
    whole = read_dataset(Path(job["folder"]))
    dataset = head(whole, train=job["rows"]["train"], validation=2 * job["batch"], test=job["rows"]["test"])
    norm = "batch" if job["system"] == NORMED else "none"

    def train(epochs: float) -> FitResult:
        model = mmoe(dataset.schema, job["width"], job["seed"], norm)
        settings = TrainingSettings(epochs=epochs, batch_size=job["batch"], lr=1e-3, schedule="constant", evaluations=1)
        uniform = balancer("uniform", dataset.schema)
        return Trainer(model, uniform, dataset, settings, EXECUTION, job["seed"], torch.device("cpu")).fit()

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
        {record["seed"]: record["rows_per_second"] for record in select(records, system=s)} for s in (system, base)
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
            over = [spread(factor(here, system, peer), ".1f") if peer != system else "-" for peer in PEERS]
            rows.append([shape, f"{batch}", system, rates, *over, memory, *areas])
    head = ["data", "batch", "system", "thousand rows/s", *(f"x {peer}" for peer in PEERS), "peak memory, GB"]
    return markdown([*head, "first task, test AUC", "second task, test AUC"], rows)


def checks(records: list[Record]) -> list[Check]:
    """Speed, and that it learns no less."""
    found = []
    for (shape, batch, peer), wanted in TARGETS.items():
        here = select(records, shape=shape, batch=batch)
        for system in dict.fromkeys(("mtlkit", TWINS[peer])) if here else ():
            reached = statistics.median(factor(here, system, peer))
            asked = f"rows per second of {system}, {shape}, batch {batch}: >= {wanted:g} x {peer}"
            found.append(Check(asked, f"{reached:.1f} x", reached >= wanted))
    for shape, batch in _places(records):
        here = select(records, shape=shape, batch=batch)
        short = {peer: shortfall(here, peer) for peer in PEERS}
        shown_gaps = "; ".join(
            f"{peer}: {', '.join(f'{gap:+.4f} ± {noise:.4f}' for gap, noise in gaps)}" for peer, gaps in short.items()
        )
        met = all(gap >= -DEVIATIONS * noise for gaps in short.values() for gap, noise in gaps)
        asked = f"test AUC, {shape}, batch {batch}: no less than each peer's with the same layers, within seed noise"
        found.append(Check(asked, shown_gaps, met))
    return found


def shortfall(records: list[Record], peer: str) -> list[tuple[float, float]]:
    """By task: the mean AUC of mtlkit with a peer's layers less the peer's, and its standard error over seeds."""
    own, other = ([record["auc"] for record in select(records, system=s)] for s in (TWINS[peer], peer))
    found = []
    for mine, theirs in zip(zip(*own, strict=True), zip(*other, strict=True), strict=True):
        gap = statistics.mean(mine) - statistics.mean(theirs)
        noise = 0.0
        if len(mine) > 1:
            noise = (statistics.variance(mine) / len(mine) + statistics.variance(theirs) / len(theirs)) ** 0.5
        found.append((gap, noise))
    return found


SECTION = Section("training", "Training against Torch-RecHub and FuxiCTR", 3, collect, table, checks)
