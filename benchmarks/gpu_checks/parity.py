"""The numbers of the device beside those of the CPU, of equal runs, and of a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch

from mtlkit.grid.build import make_model
from mtlkit.ops._dispatch import plain_operations
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.training import batches
from mtlkit.training.numerics import numerics
from tests.toy import toy_dataset, toy_schema

from .common import Job, Row, opened, run_steps, trainer

SIZES = {"experts": 2, "hidden": 4, "bottom": 4, "tower": 3, "embedding": 2}
MMOE = "mmoe[experts=2,hidden=4,tower=3,embedding=2]"
SETTINGS: dict[str, dict[str, Any]] = {
    "row-sparse tables": {"sparse_rows": 1, "optimizer": "adam", "features": {"vocab": 5000}},
    "row-sparse tables, adamw": {
        "sparse_rows": 1,
        "optimizer": "adamw",
        "l2_embedding": 0.01,
        "clip_norm": 0.1,
        "features": {"vocab": 5000},
    },
    "bags": {"features": {"bags": 2}},
    "covering batches": {"batches": "covering"},
    "accumulate=2": {"accumulate": 2},
    "clip_norm=0.1": {"clip_norm": 0.1},
    "scope=all, pcgrad": {"scope": "all", "balancer": "pcgrad"},
    "scope=representation, mgda": {"scope": "representation", "balancer": "mgda"},
    "heads=plain": {"heads": "plain"},
}
FP32, BATCH_NORM, FP64 = 1e-4, 1e-2, 1e-9
"""Largest relative difference of mean losses."""


def parity(job: Job) -> Iterator[partial[Iterator[Row]]]:
    """Every model, every balancer, settings; then equal bits, and graphs."""
    steps = job.size(20, 3)
    with opened(replace(job, device=job.size(job.device, "pretended"))) as device:
        for name in job.size(MODELS.names(), ["mmoe", "esmm"]):
            yield partial(_model, name, device, steps)
        for what in job.size(SETTINGS, ["bags"]):
            yield partial(_compare, what, device, steps, **SETTINGS[what])
        for name in job.size(["uniform", "pcgrad"], []):
            yield partial(_repeated, name, device, steps)
        for name in job.size(BALANCERS.names(), []):
            if BALANCERS.load(name).needs == "losses":
                yield partial(_graph, name, device, steps)
        for name in job.size(["uniform", "pcgrad"], []):
            yield partial(_graph, name, device, steps, {"vocab": 5000}, sparse_rows=1)
            yield partial(_graph, name, device, steps, {"bags": 2})
        for name in job.size(BALANCERS.names(), ["pcgrad"]):
            yield partial(_compare, f"mmoe + {name}", device, steps, balancer=name)


def _model(name: str, device: Any, steps: int) -> Iterator[Row]:
    """Under uniform weights; a model that asks for a funnel gets one."""
    options = MODELS.load(name).Options.model_fields
    chosen = ",".join(f"{key}={size}" for key, size in SIZES.items() if key in options)
    schema = toy_schema(2)
    if MODELS.load(name).inapplicable(schema):
        schema = schema.model_copy(update={"funnel": schema.task_names})
    reason = MODELS.load(name).inapplicable(schema)
    if name == "snr" and device.type == "cuda":
        reason = "its gates are drawn at random, and a GPU draws other numbers"
    if reason:
        yield Row(name, reason)
        return
    yield from _compare(name, device, steps, model=f"{name}[{chosen}]", schema=schema)


def _compare(
    what: str,
    device: Any,
    steps: int,
    model: str = MMOE,
    schema: Any = None,
    features: dict[str, int] | None = None,
    **settings: Any,
) -> Iterator[Row]:
    """Mean losses and weights after some steps, in single and in double precision."""
    data = toy_dataset(schema or toy_schema(2, **(features or {})), rows=160)
    settings = {"batch_size": 32, "lr": 0.01, "optimizer": "sgd"} | settings
    figures = {}
    for precision in ("fp32", "fp64"):
        found = []
        with _in(precision), plain_operations():  # kernels have tests of their own
            for where in (device, torch.device("cpu")):
                made = trainer(data, where, model, **settings)
                run_steps(made, steps)
                found.append((np.array(made.window.losses()), _weights(made)))
        (losses, weights), (plain, plain_weights) = found
        figures[precision] = _difference(losses, plain)
        figures[f"weights {precision}"] = _difference(weights, plain_weights)
    has_norm = any("running_mean" in name for name, _ in make_model(model, data, 0).named_buffers())
    limit = BATCH_NORM if has_norm else FP32
    passed = figures["fp32"] <= limit and figures["fp64"] <= FP64
    yield Row(what, figures, f"losses: {limit:g}, fp64 {FP64:g}", passed)


def _repeated(balancer: str, device: Any, steps: int) -> Iterator[Row]:
    """Two runs with ``deterministic=true``, one after another."""
    data = toy_dataset(toy_schema(2, bags=1, vocab=5000), rows=160)
    found = []
    with numerics({"deterministic": True}, device):
        for _ in range(2):
            made = trainer(data, device, MMOE, balancer, batch_size=32, sparse_rows=1)
            run_steps(made, steps)
            found.append(_weights(made))
    equal = bool((found[0] == found[1]).all())
    yield Row(f"two runs of {balancer}, deterministic=true", equal, "equal bits", equal)


def _graph(
    balancer: str, device: Any, steps: int, features: dict[str, int] | None = None, **settings: Any
) -> Iterator[Row]:
    """A run as one CUDA graph beside an eager one; what cannot be one says so."""
    from mtlkit.errors import UsageError

    data = toy_dataset(toy_schema(2, **(features or {})), rows=160)
    what = ", ".join(["compile=graph", balancer, *(features or {}), *settings])
    found = []
    try:
        for form in ("graph", "off"):
            made = trainer(data, device, MMOE, balancer, compile=form, batch_size=32, **settings)
            run_steps(made, steps)
            found.append(_weights(made))
    except UsageError as error:
        yield Row(what, error.message)
        return
    gap = _difference(*found)
    yield Row(f"{what}: weights beside eager", gap, "<= 1e-5", gap <= 1e-5)


def _weights(made: Any) -> np.ndarray:
    return np.concatenate([value.detach().cpu().flatten() for value in made.model.parameters()])


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@contextmanager
def _in(precision: str) -> Iterator[None]:
    """Everything inside is computed in single, or in double precision."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    read = batches._tensor

    def tensor(array: np.ndarray) -> torch.Tensor:
        value = read(array)
        return value.to(dtype) if value.is_floating_point() else value

    torch.set_default_dtype(dtype)
    try:
        with mock.patch.object(batches, "_tensor", tensor):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
