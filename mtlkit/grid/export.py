"""A model of a run as a file that other programs execute, checked against the model itself."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.errors import MissingError, MtlkitError
from mtlkit.grid.loaded_run import LoadedRun
from mtlkit.models._architecture import Architecture
from mtlkit.models._types import Batch
from mtlkit.ops._dispatch import plain_operations
from mtlkit.ops.bags import Bags
from mtlkit.store import ENCODERS
from mtlkit.training.scoring import probabilities

Format = Literal["onnx", "torch"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
EXTRA = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-5  # largest difference between a score of the exported model and of the model itself
CHECKED_ROWS = (5, 1, 300)
"""Numbers of rows with which an exported model is tried; with the first it is traced."""
BAG_ARRAYS = ("offsets", "values", "weights")


class Scorer(nn.Module):
    """A model as a function of tensors: the inputs of :func:`input_names` to one score each.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: Architecture) -> None:
        super().__init__()
        self.model = model
        schema = model.schema
        self.has_ids = bool(schema.of_kind("id"))
        self.has_dense = bool(schema.of_kind("dense"))
        self.bags = [feature.name for feature in schema.of_kind("bag")]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(probabilities(self.model, self.model(self._batch(inputs))).values())

    def _batch(self, inputs: Sequence[Tensor]) -> Batch:
        """The inputs as a batch; a kind of features that the data lacks has no columns."""
        waiting = list(inputs)
        first = waiting[0]
        rows = first.shape[0] if self.has_ids or self.has_dense else first.shape[0] - 1
        weights = next(self.model.parameters())
        ids = waiting.pop(0) if self.has_ids else weights.new_zeros((rows, 0), dtype=torch.int32)
        dense = waiting.pop(0) if self.has_dense else weights.new_zeros((rows, 0))
        bags = {}
        for position, name in enumerate(self.bags):
            offsets, values, bag_weights = waiting[3 * position : 3 * position + 3]
            bags[name] = Bags(offsets, values, bag_weights)
        return Batch(ids, dense, weights.new_zeros((rows, 0)), bags=bags)


def input_names(schema: Schema) -> list[str]:
    """The inputs of an exported model, in order: ``ids`` (B, F) int32, ``dense`` (B, D) float32,
    and of each bag ``<bag>-offsets`` (B + 1,) int64, ``-values`` (M,) int32, ``-weights`` (M,).
    """
    names = ["ids"] if schema.of_kind("id") else []
    names += ["dense"] if schema.of_kind("dense") else []
    for feature in schema.of_kind("bag"):
        names += [f"{feature.name}-{array}" for array in BAG_ARRAYS]
    return names


def export(run: LoadedRun, folder: Path, format: Format = "onnx") -> list[Path]:
    """Write a model from encoded rows to scores, and its encoders beside it; returns the files.

    Args:
        folder: Where ``model.onnx`` or ``model.pt2`` and ``encoders.json`` go.
        format: ONNX, or a program of ``torch.export``.

    Raises:
        MtlkitError: A package is missing, or the model cannot be exported, or the exported one
            gives other scores.
    """
    if format == "onnx":
        _check_extra()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILES[format]
    scorer = Scorer(run.model.cpu()).eval()
    examples = [_random_inputs(run.schema, rows) for rows in CHECKED_ROWS]
    with torch.no_grad(), plain_operations(), _quiet():
        expected = [scorer(*example) for example in examples]
        names = list(probabilities(run.model, run.model(scorer._batch(examples[0]))))
        try:
            program = torch.export.export(
                scorer, examples[0], dynamic_shapes=(_shapes(run.schema),), strict=False
            )
            if format == "onnx":
                _write_onnx(program, file, input_names(run.schema), names)
                found = _run_onnx(file, input_names(run.schema), examples)
            else:
                torch.export.save(program, file)
                found = [
                    torch.export.load(file).module(check_guards=False)(*example)
                    for example in examples
                ]
        except Exception as error:  # of the exporter, which fails in many ways
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            message = f"{run.record.cell.model} cannot be exported: {reason}."
            raise MtlkitError(message, "mtlkit predict works with any model") from error
    _check_same(file, names, expected, found)

    encoders = folder / ENCODERS
    described: dict[str, Any] = {"inputs": input_names(run.schema), "outputs": names}
    described |= {"schema": run.schema.model_dump(mode="json"), **run.encoders.as_json()}
    encoders.write_text(json.dumps(described), encoding="utf-8")
    return [file, encoders]


def _check_extra() -> None:
    """Raise a :class:`MissingError` for packages that are not installed."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA):
        message = f"An export to ONNX needs the packages {', '.join(EXTRA)}."
        raise MissingError(message, "pip install 'mtlkit[onnx]'")


def _shapes(schema: Schema) -> tuple[dict[int, Any], ...]:
    """Which axes of the inputs have any length: that of the rows, and that of each bag's ids."""
    rows = torch.export.Dim("rows", min=1)
    shapes: list[dict[int, Any]] = [{0: rows} for kind in ("id", "dense") if schema.of_kind(kind)]
    for position, _ in enumerate(schema.of_kind("bag")):
        values = torch.export.Dim(f"values_{position}", min=0)
        shapes += [{0: rows + 1}, {0: values}, {0: values}]
    return tuple(shapes)


def _random_inputs(schema: Schema, rows: int) -> tuple[Tensor, ...]:
    """Inputs of so many rows, for a try."""
    rng = np.random.default_rng(rows)
    arrays: list[np.ndarray] = []
    if ids := schema.of_kind("id"):
        columns = [rng.integers(0, feature.vocab, rows) for feature in ids]
        arrays.append(np.stack(columns, 1).astype(np.int32))
    if dense := schema.of_kind("dense"):
        arrays.append(rng.normal(size=(rows, len(dense))).astype(np.float32))
    for feature in schema.of_kind("bag"):
        lengths = rng.integers(0, 4, rows)
        lengths[0] = 2  # an axis of length 0 or 1 would be traced as a constant
        count = int(lengths.sum())
        arrays.append(np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
        arrays.append(rng.integers(0, feature.vocab, count).astype(np.int32))
        arrays.append(rng.random(count).astype(np.float32))
    return tuple(torch.from_numpy(array) for array in arrays)


def _write_onnx(program: Any, file: Path, inputs: list[str], outputs: list[str]) -> None:
    exported = torch.onnx.export(
        program, (), input_names=inputs, output_names=outputs, dynamo=True, verbose=False
    )
    assert exported is not None
    exported.save(file)


def _run_onnx(
    file: Path, names: list[str], examples: list[tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """The scores that ONNX Runtime gives for some inputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = []
    for example in examples:
        inputs = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
        found.append(tuple(torch.from_numpy(array) for array in session.run(None, inputs)))
    return found


def _check_same(file: Path, names: list[str], expected: list[Any], found: list[Any]) -> None:
    """Raise a :class:`MtlkitError`, and remove the file, where scores differ."""
    for wanted, got in zip(expected, found, strict=True):
        for name, one, other in zip(names, wanted, got, strict=True):
            if not torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE):
                file.unlink()
                gap = float((one - other).abs().max())
                message = f"The exported model's scores of {name} differ by {gap:.2g}."
                raise MtlkitError(message, "mtlkit predict works with any model")


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporters tell of their own progress is kept from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
