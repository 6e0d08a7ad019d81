"""From the text of a model or a balancer to its class, its options, and what a cell records."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from mtlkit.balancers._balancer import Balancer
from mtlkit.data.types import Schema
from mtlkit.errors import UsageError, did_you_mean, nearest_names
from mtlkit.grid.grid_settings import GridSettings
from mtlkit.models._architecture import Architecture
from mtlkit.models._funnel import NO_FUNNEL
from mtlkit.models._options import BaseOptions, ModelOptions
from mtlkit.records import NO_BALANCER
from mtlkit.registry import BALANCERS, BASELINES, MODELS, Registry, is_baseline
from mtlkit.settings import ExecutionSettings, Settings, TrainingSettings, validate
from mtlkit.spec import Spec, flatten, parse_spec


@dataclass(frozen=True)
class Method:
    """A model or a balancer, as a cell holds it."""

    typed: str  # as typed
    resolved: dict[str, Any]  # name and all options, and the digest of the file of a plugin
    forced: bool = False  # whether it does not apply to the data, and runs all the same


def resolve(spec: Spec, options: Settings, registry: Registry) -> Method:
    """What a cell holds of a method."""
    resolved: dict[str, Any] = {"name": spec.name, "options": options.model_dump(mode="json")}

    # a plugin's file may change, so its content is part of what the method is
    source_digest = registry.source_digest(spec.name)
    if source_digest is not None:
        resolved["source_sha256"] = source_digest
    return Method(str(spec), resolved)


def owner(registry: Registry, name: str) -> Registry:
    """The registry of a method: where models are named, baselines may stand as well."""
    return BASELINES if registry is MODELS and is_baseline(name) else registry


def expand_wildcards(texts: Iterable[str], registry: Registry) -> list[Spec]:
    """Read specs, with wildcards in names replaced by all that match.

    Raises:
        UsageError: A spec cannot be read, a name does not exist, or nothing matches.
    """
    specs = []
    for text in texts:
        spec = parse_spec(text)
        names = [spec.name]
        if any(sign in spec.name for sign in "*?"):
            names = registry.names(spec.name)
            if not names:
                raise UsageError(
                    f"No {registry.kind} matches {spec.name!r}.", f"mtlkit list {registry.plural}"
                )
        specs += [Spec(owner(registry, name).check(name), spec.options) for name in names]
    return specs


def method_options(spec: Spec, common: dict[str, Any], registry: Registry) -> Settings:
    """Options in brackets, over those given for all methods that have them.

    Raises:
        UsageError: An option is unknown, or its value does not fit.
    """
    registry = owner(registry, spec.name)
    options_class = registry.load(spec.name).Options
    applicable = {key: value for key, value in common.items() if key in options_class.model_fields}
    with registry.told_as_error_of(spec.name):
        return validate(options_class, applicable | spec.options, f"{registry.kind} {spec.name}")


def known_options(
    common: dict[str, Any], methods: Iterable[str], registry: Registry = MODELS
) -> dict[str, Any]:
    """Of the options given for all methods of a grid, those that one of some methods has."""
    if not common:
        return {}
    names = [spec.name for spec in expand_wildcards(methods, registry)]
    known = {key for name in names for key in owner(registry, name).load(name).Options.model_fields}
    return {key: value for key, value in common.items() if key in known}


def typed_common(settings: GridSettings, model: str, balancer: str) -> dict[str, Any]:
    """The options that were given for all methods and are known to a model, a balancer or the
    references that are networks, and the run to start from, by the names that ``--set`` takes.
    """
    references = expand_wildcards(running_references(settings), MODELS)
    networks = [spec.name for spec in references if not is_baseline(spec.name)]
    models = known_options(settings.model, (model, *networks))
    balancers = [balancer] if balancer != NO_BALANCER else []
    of_balancer = known_options(settings.balancer, balancers, BALANCERS)
    start = settings.execution.init_from
    of_start = {"init_from": str(start)} if start else {}
    return dict(flatten({"model": models, "balancer": of_balancer, "execution": of_start}))


def running_references(settings: GridSettings) -> tuple[str, ...]:
    """The references of a grid; none where it starts from a run, for they would start from other
    weights than the models that they are compared with.
    """
    return () if settings.execution.init_from else settings.references


def check_common_options(common: dict[str, Any], specs: list[Spec], registry: Registry) -> None:
    """Every option that is given for all methods must be an option of one of them.

    Raises:
        UsageError: One is not.
    """
    options: set[str] = set()
    for spec in specs:
        options |= set(owner(registry, spec.name).load(spec.name).Options.model_fields)
    for key in common:
        if key not in options:
            kind = registry.kind
            names = {*options, *TrainingSettings.model_fields, *ExecutionSettings.model_fields}
            guess = did_you_mean(nearest_names(key, sorted(names)))
            raise UsageError(
                f"No setting and no option of a {kind} in this grid is called {key!r}.{guess}",
                f"options of its {kind}s are {', '.join(sorted(options))}"
                if options
                else f"its {kind}s take no options",
            )


# --- models


def check_model(
    spec: Spec, model_class: type[Architecture], options: Settings, schema: Schema
) -> None:
    """Options must fit the data: what they name exists there.

    Raises:
        UsageError: An option names a feature or a task that the data do not have, or asks for a
            funnel where there is none.
    """
    assert isinstance(options, BaseOptions)
    asks_for_cvr = isinstance(options, ModelOptions) and not options.has_default("cvr")
    if asks_for_cvr and schema.funnel is None:
        raise UsageError(
            f"{spec} asks for a CVR, but the data set {NO_FUNNEL}.",
            f"mtlkit bench --models {spec.name}",
        )

    embedded = {feature.name for feature in schema.features if feature.kind != "dense"}
    towers = options.tower if isinstance(options.tower, dict) else {}
    _check_names(spec.name, "embedded feature", options.embedding_dims, embedded)
    _check_names(spec.name, "task", towers, schema.task_names)
    model_class.check(schema, options)


def _check_names(
    model: str, what: str, names: Iterable[str], existing_names: Collection[str]
) -> None:
    """Raise a :class:`UsageError` for the first name that does not exist."""
    for name in sorted(set(names) - set(existing_names)):
        raise UsageError(
            f"{model} names the {what} {name!r}, which the data set does not have.",
            f"it has {', '.join(sorted(existing_names))}",
        )


# --- balancers


def expand_balancer(spec: Spec, options: Settings, schema: Schema, scope: str) -> list[Method]:
    """The balancers that an entry of a grid stands for: itself, or those of a sweep.

    Raises:
        UsageError: The balancer does not work with this scope, or an option does not fit the tasks.
    """
    balancer_class = BALANCERS.load(spec.name)
    methods = []
    with BALANCERS.told_as_error_of(spec.name):
        check_scope(spec.name, balancer_class, scope)
        members = balancer_class.expand(spec.name, schema.tasks, options)
        # building them raises where an option does not fit the tasks
        for name, member_options in members:
            BALANCERS.load(name)(schema.tasks, member_options)

    for name, member_options in members:
        # a member of a sweep is shown with the options that make it this one
        member = spec
        if member_options is not options:
            member = Spec(name, member_options.model_dump(mode="json", exclude_unset=True))
        methods.append(resolve(member, member_options, BALANCERS))
    return methods


def check_scope(name: str, balancer_class: type[Balancer], scope: str) -> None:
    """A balancer must be able to compare gradients over a scope.

    Raises:
        UsageError: It is not.
    """
    if scope not in balancer_class.scopes:
        raise UsageError(
            f"{name} compares gradients of several batches, "
            "so it cannot work with scope=representation.",
            f"mtlkit bench --balancers {name} --set scope=dense",
        )
