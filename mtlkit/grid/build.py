"""From what a caller names, or hands over, to a model and a balancer that can be trained."""

from __future__ import annotations

import torch

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._build import build as build_balancer
from mtlkit.data.splits import Dataset
from mtlkit.data.types import Schema
from mtlkit.errors import UsageError
from mtlkit.grid.methods import check_model, check_scope, method_options
from mtlkit.models._architecture import Architecture
from mtlkit.registry import MODELS
from mtlkit.settings import Settings, validate
from mtlkit.spec import Spec, parse_spec
from mtlkit.training.seeding import seed_for


def build_model(
    model_class: type[Architecture], schema: Schema, options: Settings, seed: int
) -> Architecture:
    """A model whose initial weights follow from the seed alone; torch's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "init"))
        return model_class.build(schema, options)  # type: ignore[arg-type]


def make_model(
    model: str | type[Architecture] | Architecture, dataset: Dataset, seed: int
) -> Architecture:
    """A model for a data set.

    Args:
        model: An instance, which is returned; a class; or a name with options in brackets.

    Raises:
        UsageError: The model does not exist or does not fit the data, or an option is wrong.
    """
    if isinstance(model, Architecture):
        if model.schema.of_labels != dataset.schema:
            raise UsageError(
                f"The model was built for other features or tasks than those of {dataset.name}.",
                "build it with the schema of the data set",
            )
        return model

    if isinstance(model, str):
        spec = parse_spec(model)
        model_class: type[Architecture] = MODELS.load(spec.name)
        options = method_options(spec, {}, MODELS)
    else:
        _check_class(model, Architecture, "model")
        spec = Spec(model.__name__)
        model_class = model
        options = validate(model.Options, {}, f"model {spec.name}")

    reason = model_class.inapplicable(dataset.schema)
    if reason:
        raise UsageError(
            f"{spec.name} does not apply: {dataset.name} {reason}.", "mtlkit list models"
        )
    check_model(spec, model_class, options, dataset.schema)
    return build_model(model_class, dataset.schema, options, seed)


def make_balancer(
    balancer: str | type[Balancer] | Balancer, dataset: Dataset, scope: str
) -> Balancer:
    """A balancer for the tasks of a data set.

    Args:
        balancer: An instance, which is returned; a class; or a name with options in brackets.

    Raises:
        UsageError: The balancer does not exist, does not fit the tasks or the scope, or an option
            is wrong.
    """
    if isinstance(balancer, Balancer):
        check_scope(type(balancer).__name__, type(balancer), scope)
        tasks = [task.name for task in balancer.tasks]
        if tasks != list(dataset.schema.task_names):
            raise UsageError(
                f"The balancer was built for the tasks {', '.join(tasks)}, "
                f"but those of {dataset.name} are {', '.join(dataset.schema.task_names)}.",
                "build it with the tasks of the data set",
            )
        return balancer

    if isinstance(balancer, str):
        name = parse_spec(balancer).name
        built = build_balancer(balancer, dataset.schema.tasks)
    else:
        _check_class(balancer, Balancer, "balancer")
        name = balancer.__name__
        options = validate(balancer.Options, {}, f"balancer {name}")
        built = balancer(dataset.schema.tasks, options)
    check_scope(name, type(built), scope)
    return built


def _check_class(given: object, base: type, kind: str) -> None:
    """Raise a :class:`UsageError` unless a class of some kind is given."""
    if not (isinstance(given, type) and issubclass(given, base)):
        raise UsageError(
            f"{given!r} is no {kind}.",
            f"give a name, a class or an instance; mtlkit list {kind}s shows the names",
        )
