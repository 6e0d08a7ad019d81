"""Which balancers are one method, tested on random gradients, and what to say of copies in a grid.

Two balancers are one method when the steps of the shared parameters point the same way whatever the
gradients. Their lengths may differ, which is a question of the learning rate, and hardly one for an
optimiser that divides by it.

The families of such balancers are listed here; who belongs to one says so itself, in its attribute
``same_as``: the family's name, and the options with which it is a member.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtlkit.registry import BALANCERS
from mtlkit.spec import Spec

EVERY = "update_every"  # the option of all balancers whose weights may be used for several steps

Typed = tuple[str, Mapping[str, Any]]
"""A balancer of a grid: its name, and its options with or without the defaults."""


@dataclass(frozen=True)
class Member:
    """A balancer with the options with which it belongs to a family."""

    name: str  # of the balancer
    # Option to the value that it must have. Where the option has one value a task, all of them must
    # be this number; None means that they must be equal.
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """As a user would type it; ``None``, for equal numbers, is the default."""
        defaults = BALANCERS.facts(self.name).defaults
        typed = {}
        for key, value in self.options.items():
            if value is not None and value != defaults.get(key):
                typed[key] = value
        return str(Spec(self.name, typed))


@dataclass(frozen=True)
class Family:
    """Balancers that are one method."""

    name: str  # by which balancers refer to it
    what: str  # the step that all of them take, in words
    includes: tuple[str, ...] = ()  # families whose members all belong to this one
    tasks: int | None = None  # for how many tasks it holds; None for any number
    when: str = ""  # in which steps it holds, in words; empty for all

    def membership(self, name: str) -> Mapping[str, Any] | None:
        """The options with which a balancer is a member; None if it is none."""
        families = _same_as(name)
        for family in (self.name, *self.includes):
            if family in families:
                return families[family]
        return None

    def holds(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether a balancer of a grid is a member."""
        wanted = self.membership(name)
        if wanted is None:
            return False
        complete = {**BALANCERS.facts(name).defaults, **options}  # a grid may leave defaults out
        return all(_fits(complete.get(key), value) for key, value in wanted.items())

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, those of included families first."""
        members = []
        names = sorted(BALANCERS.names(), reverse=True)
        for family in (*self.includes, self.name):
            for name in names:
                families = _same_as(name)
                if family in families:
                    members.append(Member(name, families[family]))
        return tuple(members)


def _same_as(name: str) -> Mapping[str, Mapping[str, Any]]:
    """The families that a balancer says it belongs to, each with the options that it must have."""
    families = BALANCERS.facts(name).attributes.get("same_as")
    return families if isinstance(families, dict) else {}


def _fits(value: Any, wanted: Any) -> bool:
    """Whether an option has the wanted value; of one number a task, whether all have."""
    if not isinstance(value, list | tuple):
        return bool(value == wanted)
    distinct = set(value)
    return len(distinct) <= 1 if wanted is None else distinct == {wanted}


FAMILIES = (
    # one method in some steps only; the later in this list, the more steps those are
    Family(
        "sum without conflict",
        "the sum of the gradients",
        includes=("sum", "surgery"),
        when="in which no two gradients conflict (cosines of 0 and above)",
    ),
    Family(
        "sum without conflict with the sum",
        "the sum of the gradients",
        includes=("sum",),
        when="in which no gradient conflicts with the sum of all",
    ),
    Family(
        "equal cosines inside",
        "the step with the same cosine with every gradient",
        includes=("equal cosines",),
        when="in which mgda gives every task a weight above 0",
    ),
    # one method in every step
    Family("sum", "the sum of the gradients"),
    Family("shortest mixture", "the shortest mixture of the gradients"),
    Family("shortest mixture of two", "the shortest mixture of the gradients", tasks=2),
    Family("bargaining", "the step on which the tasks agree as in a bargaining game"),
    Family("equal cosines", "the step with the same cosine with every gradient"),
    Family("surgery", "each gradient without what points against the others, in random order"),
    Family(
        "bisector",
        "the bisector of the two gradients",
        includes=("bargaining", "equal cosines"),
        tasks=2,
    ),
    Family(
        "surgery of two",
        "each gradient without what points against the other one",
        includes=("surgery",),
        tasks=2,
    ),
)
"""``equal cosines`` needs linearly independent gradients, the bisector two that are not exactly
opposite. With more parameters than tasks this is practically always so.
"""


def notices(balancers: Sequence[Typed], tasks: int) -> list[str]:
    """What a reader must know about copies among the balancers of a grid.

    Returns:
        A sentence for each set of balancers that are one method, always or in some steps; none for
        a single task, for which there is nothing to balance.
    """
    if tasks < 2:
        return []

    # sets of copies; of several families that hold the same set, the last
    copies: dict[tuple[str, ...], Family] = {}
    for family in FAMILIES:
        if family.tasks in {None, tasks}:
            for labels in _copies(family, balancers):
                copies[labels] = family

    # not those that are part of a larger set of balancers that are always one method
    always = [set(labels) for labels, family in copies.items() if not family.when]
    sentences = []
    for labels, family in copies.items():
        if not any(set(labels) < larger for larger in always):
            order = (bool(family.when), FAMILIES.index(family))
            sentences.append((order, _sentence(labels, family)))
    return [sentence for _, sentence in sorted(sentences, key=lambda pair: pair[0])]


def alike(balancers: Sequence[Typed], tasks: int) -> list[str]:
    """For each balancer of a grid, those that are always one method with it and itself, in one
    text; empty for one that is like no other.
    """
    largest: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES if tasks > 1 else ():
        if not family.when and family.tasks in {None, tasks}:
            for labels in _copies(family, balancers):
                for label in labels:
                    largest[label] = max(largest.get(label, ()), labels, key=len)
    return [" = ".join(largest.get(_label(name, options), ())) for name, options in balancers]


def relatives(name: str) -> list[str]:
    """What ``mtlkit info`` says of a balancer: which others are the same, for how many tasks."""
    sentences = []
    for family in sorted(FAMILIES, key=lambda family: bool(family.when)):
        itself = [str(member) for member in family.members if member.name == name]
        others = [str(member) for member in family.members if member.name != name]
        if itself and others:
            sentences.append(_sentence([*itself, *others], family))
    return sentences


def _copies(family: Family, balancers: Sequence[Typed]) -> Iterator[tuple[str, ...]]:
    """Labels of the balancers of a grid that belong to a family: a tuple for each number of steps
    for which weights are used.
    """
    members = [(name, options) for name, options in balancers if family.holds(name, options)]
    for every in sorted({options.get(EVERY, 1) for _, options in balancers}):
        labels = set()
        for name, options in members:
            # constant weights are those of all steps anyway
            constant = BALANCERS.facts(name).attributes.get("constant_weights")
            if constant or options.get(EVERY, 1) == every:
                labels.add(_label(name, options))
        if len(labels) > 1:
            yield tuple(sorted(labels))


def _label(name: str, options: Mapping[str, Any]) -> str:
    """A balancer with those of its options that make it another one."""
    # the options that some family asks for, and how often weights are made
    deciding = {key for wanted in _same_as(name).values() for key in wanted}
    all_defaults = BALANCERS.facts(name).defaults
    defaults = {key: value for key, value in all_defaults.items() if key in deciding}
    defaults[EVERY] = 1

    # of those, what is not the default; a list is how a record holds a tuple
    shown = {}
    for key, default in defaults.items():
        value = options.get(key, default)
        comparable = tuple(value) if isinstance(value, list) else value
        if comparable != default:
            shown[key] = value
    return str(Spec(name, shown))


def _sentence(labels: Sequence[str], family: Family) -> str:
    always = f"With {family.tasks} tasks" if family.tasks else "With any number of tasks"
    where = f"In steps {family.when}" if family.when else always
    listed = f"{', '.join(labels[:-1])} and {labels[-1]}"
    return f"{where}, {listed} are one method up to the length of the step: {family.what}."
