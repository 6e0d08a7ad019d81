"""Build a balancer by its name, for a training loop outside of mtlkit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from mtlkit.balancers._balancer import Balancer
from mtlkit.data.types import Task
from mtlkit.errors import UsageError
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
        UsageError: There is no such method, or an option does not fit it or the tasks, or these
            are none.

    Examples:
        >>> build("mgda[normalize=l2]", tasks=("click", "purchase"), update_every=2).update_every
        2
    """
    task_list = _as_tasks(tasks)
    spec = parse_spec(name)
    method = BALANCERS.load(spec.name)
    values = validate(method.Options, spec.options | options, f"balancer {spec.name}")
    balancer: Balancer = method(task_list, values)
    return balancer


def _as_tasks(tasks: int | Sequence[str] | Sequence[Task]) -> list[Task]:
    """Tasks by their number or their names, or as they are; one or more, of different names."""
    wrong = UsageError(
        f"There are no tasks {tasks!r}.", "give their number (2), or different names (['a', 'b'])"
    )
    if isinstance(tasks, int) and not isinstance(tasks, bool):
        tasks = [f"task {t + 1}" for t in range(tasks)]
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise wrong
    try:
        task_list = [
            task if isinstance(task, Task) else Task.model_validate({"name": task})
            for task in tasks
        ]
    except ValidationError:
        raise wrong from None
    if not task_list or len({task.name for task in task_list}) < len(task_list):
        raise wrong
    return task_list
