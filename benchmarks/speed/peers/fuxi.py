"""Passes of an MMoE over the rows through FuxiCTR's own loader and training loop.

FuxiCTR's package holds the layers and the base class of multi-task models; its model zoo is not
part of it. The MMoE is therefore put together here from the public layers. Its loader reads an
``.npz`` file; ``NpzDataLoader`` is faster than the streaming ones, and reads in this process, on
the one core that every system has.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import packed
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel


class MMoE(MultiTaskModel):
    """Experts and gates of one layer on the embedded features, and a tower for each task."""

    def __init__(self, feature_map: FeatureMap, job: dict[str, Any], root: str) -> None:
        tasks = len(feature_map.labels)
        super().__init__(
            feature_map,
            task=["binary_classification"] * tasks,
            num_tasks=tasks,
            verbose=0,
            model_root=root,
            metrics=["AUC"],
        )
        self.embedding_layer = FeatureEmbedding(feature_map, job["width"])
        inputs = feature_map.sum_emb_out_dim()
        hidden, experts = job["hidden"], job["experts"]
        self.experts = torch.nn.ModuleList(MLP_Block(inputs, [hidden]) for _ in range(experts))
        self.gates = torch.nn.ModuleList(
            MLP_Block(inputs, output_dim=experts, use_bias=False) for _ in range(tasks)
        )
        self.towers = torch.nn.ModuleList(
            MLP_Block(hidden, [job["tower"]], output_dim=1) for _ in range(tasks)
        )
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)  # (B, D)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)  # (B, K, d)
        found = {}
        for label, gate, tower, activation in zip(
            self.feature_map.labels, self.gates, self.towers, self.output_activation, strict=True
        ):
            weights = gate(x).softmax(-1)  # (B, K)
            found[f"{label}_pred"] = activation(tower((weights[..., None] * outputs).sum(1)))
        return found


def feature_map(schema: dict[str, Any], width: int, folder: str) -> FeatureMap:
    """The columns in FuxiCTR's terms; a number is multiplied by a vector of the embedding's width,
    as it does.
    """
    found = FeatureMap("benchmark", folder)
    found.default_emb_dim = width
    found.labels = [task["name"] for task in schema["tasks"]]
    found.features = OrderedDict(
        (f["name"], {"source": "", "type": "categorical", "vocab_size": f["vocab"]})
        if f["kind"] == "id"
        else (f["name"], {"source": "", "type": "numeric"})
        for f in schema["features"]
    )
    found.num_fields = found.get_num_fields()
    found.set_column_index()
    return found


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    schema, columns, labels = packed.read(job)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        mapped = feature_map(schema, job["width"], folder)
        for split, own in columns.items():
            outcomes = {name: labels[split][:, t] for t, name in enumerate(mapped.labels)}
            np.savez(Path(folder) / f"{split}.npz", **own, **outcomes)
            if split == "train":
                two = {
                    name: values[: 2 * job["batch"]] for name, values in (own | outcomes).items()
                }
                np.savez(Path(folder) / "warm.npz", **two)
        rows = job["rows"]["passes"] * len(labels["train"])
        del columns, labels
        loaders = {
            split: NpzDataLoader(
                mapped,
                str(Path(folder) / split),
                batch_size=job["batch"],
                shuffle=split != "test",
                num_workers=0,
            )
            for split in ("warm", "train", "test")
        }

        def build() -> MMoE:
            torch.manual_seed(job["seed"])
            model = MMoE(mapped, job, folder)
            model._eval_steps = float(
                "inf"
            )  # no evaluation in between; ``fit`` sets these before an epoch
            model._max_gradient_norm, model._total_steps, model._stop_training = 10.0, 0, False
            return model

        build().train_epoch(loaders["warm"])  # two steps, of a model that is thrown away
        gc.collect()
        model = build()
        began = time.process_time()
        for _ in range(job["rows"]["passes"]):
            model.train_epoch(loaders["train"])
        seconds = time.process_time() - began
        areas = model.evaluate(loaders["test"])
    auc = [float(areas[f"{name}_AUC"]) for name in mapped.labels]
    print(
        json.dumps({"rows_per_second": rows / seconds, "memory": packed.peak_memory(), "auc": auc})
    )


if __name__ == "__main__":
    main()
