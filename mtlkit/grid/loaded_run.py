"""A finished run taken away: its model, with the encoders of rows that were stored beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from mtlkit.commands import command_of
from mtlkit.data.table.read import Table
from mtlkit.data.table.row_encoders import RowEncoders
from mtlkit.data.types import Schema
from mtlkit.errors import MissingError, UsageError
from mtlkit.grid.build import build_model
from mtlkit.models._architecture import Architecture
from mtlkit.record_check import UnreadableError
from mtlkit.records import RunRecord
from mtlkit.registry import MODELS, is_baseline
from mtlkit.store import ENCODERS, ResultStore
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.scoring import autocast, probabilities

BATCH_ROWS = 8192
EXAMPLE = "give the folder of one run: results/census/mmoe/uniform/seed-0-1a2b3c4d"


@dataclass
class LoadedRun:
    """A model that was trained, with what is needed to use it."""

    model: Architecture  # the module, in evaluation mode; a batch of encoded rows goes in
    # The features and tasks of its data, the features in the order of the packed columns.
    schema: Schema
    encoders: RowEncoders  # from raw rows to packed columns
    record: RunRecord  # what the run found out

    def predict(self, rows: Any, batch_size: int = BATCH_ROWS) -> pd.DataFrame:
        """A column a score, for each row: the probability of binary tasks, that of each class of
        multiclass ones, and the value of regression tasks.

        Args:
            rows: A pandas frame, an Arrow table, or the path of CSV or Parquet files, with the
                columns ``encoders.names``.
            batch_size: Rows at a time.

        Raises:
            MtlkitError: The rows cannot be read, or lack a column.
        """
        parts = list(self.predict_batches(self.encoders.open(rows), batch_size))
        if not parts:
            return pd.DataFrame()
        return pd.DataFrame({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})

    @torch.no_grad()
    def predict_batches(self, table: Table, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """The scores (B,) of each batch of rows, by name."""
        device = next(self.model.parameters()).device
        precision = self.record.cell.resolved["training"].get("precision", "fp32")
        for split in self.encoders.batches(table, batch_size):
            batch = DeviceSplit.load(split, device).take(torch.arange(len(split)))
            with autocast(device, precision):
                output = self.model(batch)
            scores = probabilities(self.model, output)
            yield {name: values.float().cpu().numpy() for name, values in scores.items()}


def load_run(folder: Path) -> LoadedRun:
    """The model of a finished run.

    Raises:
        MtlkitError: There is no finished run, or it kept no weights or no encoders, or they are
            damaged.
    """
    record = ResultStore.record(folder)
    if record is None or not record.ok:
        raise UsageError(f"There is no finished run in {folder}.", EXAMPLE)
    if is_baseline(record.cell.resolved["model"]["name"]):
        text = f"{record.cell.model} is a baseline, of which no weights are kept."
        raise UsageError(text, EXAMPLE)
    again = f"{command_of(record.cell)} --save-weights best --out results/weights"
    try:
        weights = ResultStore.arrays(folder, "weights")
        schema, encoders = _read_encoders(folder / ENCODERS)
    except (UnreadableError, ValueError, OSError) as error:
        message = f"The weights or encoders of the run in {folder} cannot be read: {error}."
        raise MissingError(message, again) from None
    if not weights:
        raise UsageError(f"The run in {folder} kept no weights.", again)

    planned = record.cell.resolved["model"]
    model_class = MODELS.load_planned(planned)
    options = model_class.Options.model_validate(planned["options"])
    model = build_model(model_class, schema, options, record.cell.seed)
    try:
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip().rstrip(".")
        message = f"The weights in {folder} are not those of its model: {reason}."
        raise MissingError(message, again) from None
    model.eval().requires_grad_(False)
    return LoadedRun(model, schema, encoders, record)


def _read_encoders(file: Path) -> tuple[Schema, RowEncoders]:
    """The schema and the encoders; those of rows that are encoded already where none were known."""
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{file.name} is damaged")
    schema = Schema.model_validate(values.get("schema"))
    if "columns" not in values:
        return schema, RowEncoders.of_schema(schema)
    return schema, RowEncoders.from_json(values, schema)


def write_predictions(run: LoadedRun, rows: str, out: Path, batch_size: int = BATCH_ROWS) -> int:
    """Write the scores of rows into a Parquet or CSV file, which appears when it is whole; returns
    the number of rows.

    Raises:
        MtlkitError: The rows cannot be read, or lack a column, or there are none.
    """
    kinds = {".parquet": pq.ParquetWriter, ".csv": pyarrow.csv.CSVWriter}
    if out.suffix.lower() not in kinds:
        raise UsageError(f"{out} is no .parquet and no .csv file.", "--out scores.parquet")
    table = run.encoders.open(rows)
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer, count = None, 0
    try:
        for scores in run.predict_batches(table, batch_size):
            batch = pa.table(scores)
            if writer is None:
                writer = kinds[out.suffix.lower()](partial, batch.schema)
            writer.write_table(batch)
            count += len(batch)
        if writer is None:
            raise MissingError(f"{rows} has no rows.", "give a table with rows")
        writer.close()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return count
