"""Passes of Torch-RecHub's MMOE over the rows, through its own ``DataGenerator`` and
``MTLTrainer``.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import tempfile
from typing import Any

import packed
import torch
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.basic.initializers import RandomNormal
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator


def features_of(
    schema: dict[str, Any], width: int, std: float
) -> list[SparseFeature | DenseFeature]:
    """The columns in Torch-RecHub's terms, for one model: a feature keeps its table, and would give
    it to the next.
    """
    return [
        SparseFeature(f["name"], f["vocab"], embed_dim=width, initializer=RandomNormal(0, std))
        if f["kind"] == "id"
        else DenseFeature(f["name"])
        for f in schema["features"]
    ]


def loaders(
    train: tuple[dict[str, Any], Any], test: tuple[dict[str, Any], Any], batch: int
) -> tuple[Any, Any]:
    """Its own loaders of training and test rows, each given as columns and labels."""
    train_loader, _, test_loader = DataGenerator(*train).generate_dataloader(
        x_val=test[0], y_val=test[1], x_test=test[0], y_test=test[1], batch_size=batch
    )
    return train_loader, test_loader


def build(job: dict[str, Any], schema: dict[str, Any], scratch: str) -> MTLTrainer:
    """A new model in its trainer, which may write into a folder."""
    torch.manual_seed(job["seed"])
    types = ["classification"] * len(schema["tasks"])
    experts = {"dims": [job["hidden"]]}
    towers = [{"dims": [job["tower"]]}] * len(types)
    features = features_of(schema, job["width"], job.get("embedding_std", 1e-4))
    model = MMOE(features, types, job["experts"], experts, towers)
    options = {"lr": job.get("lr", 1e-3), "weight_decay": 0.0}
    more = {"n_epoch": 1, "model_path": scratch, "device": job.get("device", "cpu")}
    return MTLTrainer(model, types, optimizer_params=options, **more)


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    schema, columns, labels = packed.read(job)
    train_rows = (columns["train"], labels["train"])
    train, test = loaders(train_rows, (columns["test"], labels["test"]), job["batch"])
    two_batches = slice(2 * job["batch"])
    few = {name: column[two_batches] for name, column in columns["train"].items()}
    few_rows = (few, labels["train"][two_batches])
    warm, _ = loaders(few_rows, few_rows, job["batch"])
    parts = []
    for rows in packed.part_rows(job, len(labels["train"])):
        part = {name: column[rows] for name, column in columns["train"].items()}
        parts.append(loaders((part, labels["train"][rows]), few_rows, job["batch"])[0])

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        # Two steps of a model that is thrown away, so that nothing is loaded while time is taken.
        build(job, schema, scratch).train_one_epoch(warm)
        gc.collect()
        trainer = build(job, schema, scratch)

        def score() -> list[float]:
            return [float(area) for area in trainer.evaluate(trainer.model, test)]

        if "goals" in job:
            answer = packed.follow(job, parts, trainer.train_one_epoch, score)
        else:
            rows = len(labels["train"])
            answer = packed.rate(job, lambda: trainer.train_one_epoch(train), score, rows)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
