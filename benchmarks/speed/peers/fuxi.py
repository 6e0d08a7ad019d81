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
            gpu=-1 if job.get("device", "cpu") == "cpu" else 0,
            model_root=root,
            metrics=["AUC"],
        )
        std = job.get("embedding_std", 1e-4)
        self.embedding_layer = FeatureEmbedding(
            feature_map, job["width"], embedding_initializer=f"partial(nn.init.normal_, std={std})"
        )

        # One layer each, as mtlkit's model has; gates are linear.
        inputs = feature_map.sum_emb_out_dim()
        hidden, experts = job["hidden"], job["experts"]
        self.experts = torch.nn.ModuleList(MLP_Block(inputs, [hidden]) for _ in range(experts))
        self.gates = torch.nn.ModuleList(
            MLP_Block(inputs, output_dim=experts, use_bias=False) for _ in range(tasks)
        )
        self.towers = torch.nn.ModuleList(
            MLP_Block(hidden, [job["tower"]], output_dim=1) for _ in range(tasks)
        )

        # Loss and optimiser first; then FuxiCTR draws its initial parameters.
        self.compile("adam", "binary_crossentropy", job.get("lr", 1e-3))
        self.reset_parameters()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)  # (B, D)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)  # (B, K, d)
        predictions = {}
        for label, gate, tower, activation in zip(
            self.feature_map.labels, self.gates, self.towers, self.output_activation, strict=True
        ):
            weights = gate(x).softmax(-1)  # (B, K)
            mixture = (weights[..., None] * outputs).sum(1)  # (B, d)
            predictions[f"{label}_pred"] = activation(tower(mixture))
        return predictions


def feature_map(schema: dict[str, Any], width: int, folder: str) -> FeatureMap:
    """The columns in FuxiCTR's terms; a number is multiplied by a vector of the embedding's width,
    as it does.
    """
    mapped = FeatureMap("benchmark", folder)
    mapped.default_emb_dim = width
    mapped.labels = [task["name"] for task in schema["tasks"]]
    mapped.features = OrderedDict()
    for feature in schema["features"]:
        description = {"source": "", "type": "numeric"}
        if feature["kind"] == "id":
            description |= {"type": "categorical", "vocab_size": feature["vocab"]}
        mapped.features[feature["name"]] = description
    mapped.num_fields = mapped.get_num_fields()
    mapped.set_column_index()
    return mapped


def prepare(job: dict[str, Any], folder: str) -> tuple[FeatureMap, int]:
    """Write the files that the loader reads: ``train`` and ``test``, ``warm`` with two batches, and
    a file for each part of a pass, if it has some.

    Returns:
        The columns in FuxiCTR's terms, and the number of rows to train on. The arrays themselves
        are let go of, so that they do not count as memory of the training.
    """
    schema, columns, labels = packed.read(job)
    mapped = feature_map(schema, job["width"], folder)
    for split, by_name in columns.items():
        outcomes = {name: labels[split][:, t] for t, name in enumerate(mapped.labels)}
        arrays = by_name | outcomes
        np.savez(Path(folder) / f"{split}.npz", **arrays)
        if split == "train":
            warm = {name: values[: 2 * job["batch"]] for name, values in arrays.items()}
            np.savez(Path(folder) / "warm.npz", **warm)
            for number, rows in enumerate(packed.part_rows(job, len(labels[split]))):
                part = {name: values[rows] for name, values in arrays.items()}
                np.savez(Path(folder) / f"part-{number}.npz", **part)
    return mapped, len(labels["train"])


def build(job: dict[str, Any], mapped: FeatureMap, folder: str) -> MMoE:
    """A new model, with what ``fit`` would set before an epoch."""
    torch.manual_seed(job["seed"])
    model = MMoE(mapped, job, folder)
    model._eval_steps = float("inf")  # no evaluation in between
    model._max_gradient_norm = 10.0
    model._total_steps = 0
    model._stop_training = False
    return model


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        mapped, rows = prepare(job, folder)

        def loader(split: str) -> NpzDataLoader:
            return NpzDataLoader(
                mapped,
                str(Path(folder) / split),
                batch_size=job["batch"],
                shuffle=split != "test",
                num_workers=0,
            )

        # Two steps of a model that is thrown away, so that nothing is loaded while time is taken.
        train, test = loader("train"), loader("test")
        parts = [loader(f"part-{number}") for number in range(job.get("parts", 0))]
        build(job, mapped, folder).train_epoch(loader("warm"))
        gc.collect()
        model = build(job, mapped, folder)

        def score() -> list[float]:
            areas = model.evaluate(test)
            return [float(areas[f"{name}_AUC"]) for name in mapped.labels]

        if "goals" in job:
            answer = packed.follow(job, parts, model.train_epoch, score)
        else:
            answer = packed.rate(job, lambda: model.train_epoch(train), score, rows)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
