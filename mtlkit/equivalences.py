"""Which balancers are one method: a table, tested on random gradients, and what to say of a grid
that holds copies.

Two balancers are one method when the steps of the shared parameters point the same way whatever the
gradients. Their lengths may differ, which is a question of the learning rate, and hardly one for an
optimiser that divides by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtlkit.spec import Spec

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cagrad": {"c": 0.4},
    "db-mtl": {"beta": 0.9},
    "fairgrad": {"alpha": 2.0},
    "gradvac": {"beta": 0.01},
    "mgda": {"normalize": "loss+"},
    "pareto": {"c": None, "solver": "exact"},
    "static": {"w": ()},
}
"""Defaults of the options that decide whether a balancer is another one."""

EVERY = "update_every"
"""The option of all balancers whose weights may be used for several steps."""

CONSTANT = ("uniform", "static")
"""Balancers whose weights are those of all steps anyway."""


@dataclass(frozen=True)
class Member:
    """A balancer with options.

    Args:
        name: Of the balancer.
        options: What they must be. A number for one with a value a task: this number for all; None:
            all equal.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """As a user would type it; ``None``, for equal numbers, is the default."""
        usual = DEFAULTS.get(self.name, {})
        return str(
            Spec(
                self.name,
                {k: v for k, v in self.options.items() if v is not None and v != usual[k]},
            )
        )

    def matches(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether a balancer of a grid is this one."""
        given = {**DEFAULTS.get(name, {}), **options}
        return name == self.name and all(
            _fits(given.get(key), wanted) for key, wanted in self.options.items()
        )


def _fits(given: Any, wanted: Any) -> bool:
    if isinstance(given, list | tuple):
        return len(set(given)) <= 1 if wanted is None else bool(given) and set(given) == {wanted}
    return bool(given == wanted)


@dataclass(frozen=True)
class Same:
    """Balancers that are one method.

    Args:
        what: The step that all of them take, in words.
        members: They.
        tasks: For how many tasks it holds; None for any number.
        when: In which steps it holds, in words; empty for all.
    """

    what: str
    members: tuple[Member, ...]
    tasks: int | None = None
    when: str = ""

    def holds(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether a balancer of a grid is among them."""
        return any(member.matches(name, options) for member in self.members)


MGDA = Member("mgda", {"normalize": "none"})
MGDA_OF_UNITS = Member("mgda", {"normalize": "l2"})
BARGAINING = (Member("nash"), Member("fairgrad", {"alpha": 1}))
UNIFORM = (Member("uniform"), Member("static", {"w": None}), Member("cagrad", {"c": 0}))
EQUAL_COSINES = (Member("imtl-g"), Member("imtl"), Member("config"))
SURGERY = (Member("pcgrad"), Member("gradvac", {"beta": 0}))

TABLE = (
    # in some steps, the more steps the later
    Same(
        "the sum of the gradients",
        (*UNIFORM, *SURGERY, Member("upgrad"), Member("dualproj")),
        when="in which no two gradients conflict (cosines of 0 and above)",
    ),
    Same(
        "the sum of the gradients",
        (*UNIFORM, Member("dualproj")),
        when="in which no gradient conflicts with the sum of all",
    ),
    Same(
        "the step with the same cosine with every gradient",
        (*EQUAL_COSINES, MGDA_OF_UNITS),
        when="in which mgda gives every task a weight above 0",
    ),
    # always
    Same("the sum of the gradients", UNIFORM),
    Same(
        "the shortest mixture of the gradients",
        (MGDA, Member("pareto", {"c": 0, "solver": "exact"})),
    ),
    Same("the shortest mixture of the gradients", (MGDA, Member("pareto", {"c": 0})), tasks=2),
    Same("the step on which the tasks agree as in a bargaining game", BARGAINING),
    Same("the step with the same cosine with every gradient", EQUAL_COSINES),
    Same("each gradient without what points against the others, in random order", SURGERY),
    Same(
        "the bisector of the two gradients",
        (*BARGAINING, *EQUAL_COSINES, MGDA_OF_UNITS, Member("db-mtl", {"beta": 0})),
        tasks=2,
    ),
    Same(
        "each gradient without what points against the other one",
        (*SURGERY, Member("upgrad")),
        tasks=2,
    ),
)
"""``imtl-g``, ``imtl`` and ``config`` need linearly independent gradients, the bisector two that
are not exactly
opposite: as good as sure with more parameters than tasks. ``static`` stands for equal weights."""


def notices(balancers: Sequence[tuple[str, Mapping[str, Any]]], tasks: int) -> list[str]:
    """What a reader must know about copies among the balancers of a grid.

    Args:
        balancers: Name and options of each, with or without the defaults.
        tasks: Number of tasks.

    Returns:
        A sentence for each set of balancers that are one method, always or in some steps; none for
        a single task, for which there is nothing to balance.
    """
    found: dict[tuple[str, ...], Same] = {}
    for same in TABLE:
        if tasks > 1 and same.tasks in {None, tasks}:
            for labels in _copies(same, balancers):
                found[labels] = same
    always = [set(labels) for labels, same in found.items() if not same.when]
    told = {labels for labels in found if any(set(labels) < more for more in always)}
    kept = [(labels, same) for labels, same in found.items() if labels not in told]
    return [
        _sentence(labels, same)
        for labels, same in sorted(
            kept, key=lambda item: (bool(item[1].when), TABLE.index(item[1]))
        )
    ]


def relatives(name: str) -> list[str]:
    """What ``mtlkit info`` says of a balancer: with which others it is one method, and for how many
    tasks.
    """
    found = []
    for same in sorted(TABLE, key=lambda same: bool(same.when)):
        own = [member for member in same.members if member.name == name]
        others = [str(member) for member in same.members if member.name != name]
        if own and others:
            found.append(_sentence([*map(str, own), *others], same))
    return found


def _copies(
    same: Same, balancers: Sequence[tuple[str, Mapping[str, Any]]]
) -> Iterable[tuple[str, ...]]:
    """Labels of the balancers of a grid that are this method, apart for those whose weights are
    used for k steps.
    """
    for every in sorted({options.get(EVERY, 1) for _, options in balancers}):
        labels = {
            _label(name, options)
            for name, options in balancers
            if same.holds(name, options) and (name in CONSTANT or options.get(EVERY, 1) == every)
        }
        if len(labels) > 1:
            yield tuple(sorted(labels))


def _label(name: str, options: Mapping[str, Any]) -> str:
    """A balancer with those of its options that make it another one."""
    given = {**DEFAULTS.get(name, {}), **options}
    usual = {**DEFAULTS.get(name, {}), EVERY: 1}
    deciding = {
        key: given[key]
        for key, value in usual.items()
        if key in given and _plain(given[key]) != value
    }
    return str(Spec(name, deciding))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _sentence(labels: Sequence[str], same: Same) -> str:
    always = f"With {same.tasks} tasks" if same.tasks else "With any number of tasks"
    where = f"In steps {same.when}" if same.when else always
    listed = f"{', '.join(labels[:-1])} and {labels[-1]}"
    return f"{where}, {listed} are one method up to the length of the step: {same.what}."
