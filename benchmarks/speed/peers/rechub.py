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
import time
from typing import Any

import packed
import torch
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator


def features_of(schema: dict[str, Any], width: int) -> list[SparseFeature | DenseFeature]:
    """The columns in Torch-RecHub's terms, for one model: a feature keeps its table, and would give
    it to the next.
    """
    return [
        SparseFeature(f["name"], f["vocab"], embed_dim=width)
        if f["kind"] == "id"
        else DenseFeature(f["name"])
        for f in schema["features"]
    ]


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    schema, columns, labels = packed.read(job)
    train, _, test = DataGenerator(columns["train"], labels["train"]).generate_dataloader(
        x_val=columns["test"],
        y_val=labels["test"],
        x_test=columns["test"],
        y_test=labels["test"],
        batch_size=job["batch"],
    )
    two = slice(2 * job["batch"])
    few = {name: column[two] for name, column in columns["train"].items()}
    warm, _, _ = DataGenerator(few, labels["train"][two]).generate_dataloader(
        x_val=few,
        y_val=labels["train"][two],
        x_test=few,
        y_test=labels["train"][two],
        batch_size=job["batch"],
    )
    types = ["classification"] * len(schema["tasks"])
    tower = {"dims": [job["tower"]]}

    def build(scratch: str) -> MTLTrainer:
        torch.manual_seed(job["seed"])
        features = features_of(schema, job["width"])
        model = MMOE(
            features, types, job["experts"], {"dims": [job["hidden"]]}, [tower] * len(types)
        )
        options = {"lr": 1e-3, "weight_decay": 0.0}
        return MTLTrainer(model, types, optimizer_params=options, n_epoch=1, model_path=scratch)

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        build(scratch).train_one_epoch(warm)  # two steps, of a model that is thrown away
        gc.collect()
        trainer = build(scratch)
        began = time.process_time()
        for _ in range(job["rows"]["passes"]):
            trainer.train_one_epoch(train)
        seconds = time.process_time() - began
        auc: list[Any] = trainer.evaluate(trainer.model, test)
    found = {
        "rows_per_second": job["rows"]["passes"] * len(labels["train"]) / seconds,
        "memory": packed.peak_memory(),
    }
    print(json.dumps(found | {"auc": [float(area) for area in auc]}))


if __name__ == "__main__":
    main()
