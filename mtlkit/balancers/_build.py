"""Build a balancer by its name, for a training loop outside of mtlkit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtlkit.balancers._balancer import Balancer
from mtlkit.data.types import Task
from mtlkit.registry import BALANCERS
from mtlkit.settings import validate
from mtlkit.spec import parse_spec


def build(name: str, tasks: int | Sequence[str] | Sequence[Task], **options: Any) -> Balancer:
    """A balancer, ready for :meth:`mtlkit.balancers._balancer.Balancer.backward`.

    Args:
        name: Of the method, as in ``mtlkit list balancers``, or the path of a plugin file; options
            may stand in brackets.
        tasks: Their number, their names, or the tasks themselves for a method such as uwl that
            treats regression in its own way.
        options: Options of the method, as in ``mtlkit info NAME``; they win over those in brackets.

    Raises:
        UsageError: There is no such method, or an option does not fit it or the tasks.

    Examples:
        >>> build("mgda[normalize=l2]", tasks=("click", "purchase"), update_every=2).update_every
        2
    """
    names = [f"task {t + 1}" for t in range(tasks)] if isinstance(tasks, int) else tasks
    task_list = [Task(name=task) if isinstance(task, str) else task for task in names]

    spec = parse_spec(name)
    method = BALANCERS.load(spec.name)
    values = validate(method.Options, spec.options | options, f"balancer {spec.name}")
    balancer: Balancer = method(task_list, values)
    return balancer
