"""Training throughput of mtlkit against Torch-RecHub, in paired runs on the same rows, model, batch size and threads.

    python benchmarks/speed.py

Torch-RecHub comes from PyPI into an environment of its own (``benchmarks/.peer``, made on first use). A round runs
every system once, each in a fresh process, so that a machine that slows down slows all of them; ratios are taken within
rounds, and medians over rounds are printed with their extremes. The model is an MMoE of 8 experts x [16] with towers
[8] and embeddings of width 8, trained by Adam at a constant rate of 1e-3 for one epoch of Census-Income; ``--hidden 32
--tower 16`` gives the model of a default ``mtlkit bench`` cell. Torch-RecHub's layers always hold batch normalisation,
so mtlkit is measured with and without it. Test AUCs after that one epoch stand beside the speed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEER = "torch-rechub==0.9.0"
SYSTEMS = ("torch-rechub", "mtlkit", "mtlkit, batch norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds")
    parser.add_argument("--batch-sizes", default="1024,4096")
    parser.add_argument("--hidden", type=int, default=16, help="width of an expert")
    parser.add_argument("--tower", type=int, default=8, help="width of a tower's hidden layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=None, help="the data home")
    parser.add_argument("--json", type=Path, default=None, help="write all measurements there")
    parser.add_argument("--work", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        job = json.loads(arguments.work)
        print(json.dumps(run_rechub(job) if job["system"] == "torch-rechub" else run_mtlkit(job)))
        return
    pythons = dict.fromkeys(SYSTEMS, sys.executable) | {"torch-rechub": str(peer_environment())}
    folder = prepared_census(arguments.data_dir)
    measured = []
    for batch_size in map(int, arguments.batch_sizes.split(",")):
        for number in range(arguments.rounds):
            order = SYSTEMS if number % 2 == 0 else SYSTEMS[::-1]
            for system in order:
                job = {
                    "system": system,
                    "folder": str(folder),
                    "batch_size": batch_size,
                    "threads": arguments.threads,
                    "hidden": arguments.hidden,
                    "tower": arguments.tower,
                    "seed": number,
                }
                found = measure(pythons[system], job)
                measured.append(job | {"round": number} | found)
                print(f"batch {batch_size} round {number} {system}: {found['rows_per_second']:,.0f}", file=sys.stderr)
    print(table(measured))
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")


def peer_environment() -> Path:
    """The Python of an environment that holds Torch-RecHub and nothing of ours."""
    home = HERE / ".peer"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        print(f"installing {PEER} into {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        constraints = HERE.parent / "constraints.txt"
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints)]
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, PEER], check=True)
        (home / "ready").touch()
    return python


def prepared_census(data_dir: Path | None) -> Path:
    """The prepared folder of Census-Income, its numeric columns as numbers alone as in Torch-RecHub's own example."""
    from mtlkit.data.home import data_home
    from mtlkit.data.sources import ensure

    home = data_home(data_dir)
    source, _ = ensure("census[numeric=dense]", home)
    return source.folder(home)


def measure(python: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run one job in a fresh process."""
    threads = str(job["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [python, str(HERE / "speed.py"), "--work", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job['system']} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_mtlkit(job: dict[str, Any]) -> dict[str, Any]:
    """One epoch through the same trainer that ``mtlkit bench`` uses."""
    import torch

    from mtlkit.balancers.uniform import Uniform
    from mtlkit.config import ExecutionSettings, Settings, TrainingSettings
    from mtlkit.data.packed import read_dataset
    from mtlkit.models.mmoe import MMoE
    from mtlkit.training.loop import Trainer
    from mtlkit.training.result import FitResult

    torch.set_num_threads(job["threads"])
    dataset = read_dataset(Path(job["folder"]))
    norm = "batch" if "batch norm" in job["system"] else "none"
    options = MMoE.Options(experts=8, hidden=(job["hidden"],), tower=(job["tower"],), embedding=8, norm=norm)

    def train(epochs: float) -> FitResult:
        torch.manual_seed(job["seed"])
        settings = TrainingSettings(
            epochs=epochs, batch_size=job["batch_size"], lr=1e-3, schedule="constant", evaluations=1
        )
        model, balancer = MMoE(dataset.schema, options), Uniform(dataset.schema.tasks, Settings())
        execution = ExecutionSettings(probes=False, save_scores=False)
        return Trainer(model, balancer, dataset, settings, execution, job["seed"], torch.device("cpu")).fit()

    train(0.05)  # loads the compiled kernels
    result = train(1)
    return {
        "rows_per_second": result.cost["train_rows_per_second"],
        "auc": [found["auc"] for found in result.metrics["test"].values()],
    }


def run_rechub(job: dict[str, Any]) -> dict[str, Any]:
    """One epoch through Torch-RecHub's own loader and trainer. Reads the packed arrays; imports nothing of mtlkit."""
    import numpy as np
    import torch
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    folder = Path(job["folder"])
    schema = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["schema"]
    ids = [f for f in schema["features"] if f["kind"] == "id"]
    dense = [f for f in schema["features"] if f["kind"] == "dense"]

    def load(split: str) -> tuple[dict[str, Any], Any]:
        columns = np.load(folder / f"{split}.ids.npy"), np.load(folder / f"{split}.dense.npy")
        x = {f["name"]: columns[0][:, i].copy() for i, f in enumerate(ids)}
        x |= {f["name"]: columns[1][:, i].copy() for i, f in enumerate(dense)}
        return x, np.load(folder / f"{split}.labels.npy")

    features = [SparseFeature(f["name"], f["vocab"], embed_dim=8) for f in ids]
    features += [DenseFeature(f["name"]) for f in dense]
    train, validation, test = load("train"), load("validation"), load("test")
    loaders = DataGenerator(*train).generate_dataloader(
        x_val=validation[0],
        y_val=validation[1],
        x_test=test[0],
        y_test=test[1],
        batch_size=job["batch_size"],
    )
    types = ["classification"] * len(schema["tasks"])
    tower = {"dims": [job["tower"]]}
    model = MMOE(features, types, 8, {"dims": [job["hidden"]]}, [tower] * len(types))
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        trainer = MTLTrainer(
            model, types, optimizer_params={"lr": 1e-3, "weight_decay": 0.0}, n_epoch=1, model_path=scratch
        )
        began = time.perf_counter()
        trainer.train_one_epoch(loaders[0])
        seconds = time.perf_counter() - began
        auc = trainer.evaluate(trainer.model, loaders[2])
    return {"rows_per_second": len(train[1]) / seconds, "auc": [float(value) for value in auc]}


def table(measured: list[dict[str, Any]]) -> str:
    """Medians by system and batch size, as Markdown."""
    lines = [
        "| batch | system | thousand rows/s: median (min-max) | ratio to Torch-RecHub: median (min-max) | test AUC |",
        "|---|---|---|---|---|",
    ]
    for batch_size in dict.fromkeys(m["batch_size"] for m in measured):
        here = [m for m in measured if m["batch_size"] == batch_size]
        base = {m["round"]: m["rows_per_second"] for m in here if m["system"] == "torch-rechub"}
        for system in SYSTEMS:
            own = [m for m in here if m["system"] == system]
            speeds = [m["rows_per_second"] / 1000 for m in own]
            ratios = [m["rows_per_second"] / base[m["round"]] for m in own]
            aucs = " / ".join(f"{statistics.mean(values):.4f}" for values in zip(*(m["auc"] for m in own), strict=True))
            speed, ratio = (f"{statistics.median(v):.1f} ({min(v):.1f}-{max(v):.1f})" for v in (speeds, ratios))
            lines.append(f"| {batch_size} | {system} | {speed} | {ratio} | {aucs} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
