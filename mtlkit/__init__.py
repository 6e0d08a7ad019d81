"""mtlkit: fair, fast benchmarks of multi-task-learning methods for recommendation.

The public face. A name is imported when it is first used: ``import mtlkit`` loads neither PyTorch
nor NumPy nor pandas. ``mtlkit.fit`` trains one model, ``mtlkit.balancer`` serves a loop of your
own, ``mtlkit.run_grid`` is the command ``mtlkit bench``; methods of your own start from
``mtlkit.Architecture``, ``mtlkit.Balancer``, ``mtlkit.Loss`` and ``mtlkit.DatasetSource``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtlkit._version import __version__

if TYPE_CHECKING:
    from mtlkit.api import (
        balancer,
        fit,
        load_dataset,
        load_run,
        read_results,
        run_grid,
        write_report,
    )
    from mtlkit.balancers._balancer import Balancer, GramBalancer, GramProblem
    from mtlkit.balancers._simplex import on_simplex
    from mtlkit.balancers._step import SharedGradient, Step
    from mtlkit.data.datasets._source import DatasetSource, GeneratedSource
    from mtlkit.data.splits import Dataset, Split, fingerprint
    from mtlkit.data.types import Feature, Schema, Task
    from mtlkit.errors import MissingError, MtlkitError, UsageError
    from mtlkit.losses._groups import RowGroups
    from mtlkit.losses._loss import GroupLoss, Loss
    from mtlkit.models._architecture import Architecture
    from mtlkit.models._embedding import FieldEmbedding
    from mtlkit.models._layers import Gate, GateOptions, StackedMLP, Towers
    from mtlkit.models._moe import GateStack, MoELayer
    from mtlkit.models._options import ModelOptions
    from mtlkit.models._output import Output
    from mtlkit.models._types import Batch, Objective, Prediction
    from mtlkit.records import RunRecord
    from mtlkit.settings import Settings, Sizes
    from mtlkit.training.result import FitResult

__all__ = [
    "Architecture",
    "Balancer",
    "Batch",
    "Dataset",
    "DatasetSource",
    "Feature",
    "FieldEmbedding",
    "FitResult",
    "Gate",
    "GateOptions",
    "GateStack",
    "GeneratedSource",
    "GramBalancer",
    "GramProblem",
    "GroupLoss",
    "Loss",
    "MissingError",
    "MoELayer",
    "ModelOptions",
    "MtlkitError",
    "Objective",
    "Output",
    "Prediction",
    "RowGroups",
    "RunRecord",
    "Schema",
    "Settings",
    "SharedGradient",
    "Sizes",
    "Split",
    "StackedMLP",
    "Step",
    "Task",
    "Towers",
    "UsageError",
    "__version__",
    "balancer",
    "fingerprint",
    "fit",
    "load_dataset",
    "load_run",
    "on_simplex",
    "read_results",
    "run_grid",
    "write_report",
]

# module to the names that are taken from it, as in the imports for type checkers above
_NAMES = {
    "api": "balancer fit load_dataset load_run read_results run_grid write_report",
    "balancers._balancer": "Balancer GramBalancer GramProblem",
    "balancers._simplex": "on_simplex",
    "balancers._step": "SharedGradient Step",
    "data.datasets._source": "DatasetSource GeneratedSource",
    "data.splits": "Dataset Split fingerprint",
    "data.types": "Feature Schema Task",
    "errors": "MissingError MtlkitError UsageError",
    "losses._groups": "RowGroups",
    "losses._loss": "GroupLoss Loss",
    "models._architecture": "Architecture",
    "models._embedding": "FieldEmbedding",
    "models._layers": "Gate GateOptions StackedMLP Towers",
    "models._moe": "GateStack MoELayer",
    "models._options": "ModelOptions",
    "models._output": "Output",
    "models._types": "Batch Objective Prediction",
    "records": "RunRecord",
    "settings": "Settings Sizes",
    "training.result": "FitResult",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    import importlib

    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mtlkit.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # from now on it is found without this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
