"""Architectures for tests: by name, from a seed, with options only where the class has them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._types import Batch
from mtlkit.registry import MODELS
from mtlkit.training.task_losses import owner_losses

SMALL = {
    "hidden": (5,),
    "bottom": (5,),
    "tower": (4,),
    "experts": 3,
    "specific": 2,
    "shared": 2,
    "members": 3,
    "embedding": 3,
}


@cache
def load(name: str) -> type[Architecture]:
    """The class of an architecture; the registry looks at installed packages on every call."""
    return MODELS.load(name)


def build(name: str, schema: Schema, seed: int = 0, **options: Any) -> Architecture:
    """A model with these options; skips the test where the architecture makes no sense on such
    data.
    """
    kind = load(name)
    reason = kind.inapplicable(schema)
    if reason:
        pytest.skip(f"{name}: the data {reason}")
    torch.manual_seed(seed)
    return kind.build(schema, kind.Options.model_validate(options))


def known(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the architecture has."""
    fields = load(name).Options.model_fields
    return {key: value for key, value in options.items() if key in fields}


def small(name: str, schema: Schema, seed: int = 0, **options: Any) -> Architecture:
    """A model of few and narrow layers."""
    return build(name, schema, seed, **known(name, SMALL) | options)


def task_losses(model: Architecture, batch: Batch) -> list[Tensor]:
    """The losses of a batch by task, attached to the graph."""
    return owner_losses(model.objectives(model(batch), batch), model.schema.task_names)


def gradients(model: Architecture, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the summed losses, zeros where there is none."""
    values = dict(model.named_parameters())
    grads = torch.autograd.grad(
        sum(task_losses(model, batch)), list(values.values()), allow_unused=True
    )
    return {
        name: torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(values.items(), grads, strict=True)
    }


def doubled(batch: Batch) -> Batch:
    """The same rows in float64."""
    bags = {name: bags._replace(weights=bags.weights.double()) for name, bags in batch.bags.items()}
    weight = None if batch.weight is None else batch.weight.double()
    return replace(
        batch, dense=batch.dense.double(), labels=batch.labels.double(), weight=weight, bags=bags
    )
