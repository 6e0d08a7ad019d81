"""The one place that decides which fast forms a model takes in a training."""

from __future__ import annotations

from dataclasses import replace

from mtlkit.balancers._balancer import Balancer
from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._types import Batch
from mtlkit.settings import TrainingSettings
from mtlkit.training.sharing import SharedParameters


def prepare_model(
    model: Architecture, balancer: Balancer | None, settings: TrainingSettings, probe_batch: Batch
) -> SharedParameters:
    """Let a model take every fast form that its balancer allows, and find what its tasks share in
    its final form.

    Both are decided together: whether a form is allowed may depend on what is shared, and the
    gradients of what is shared take other ways where a form is refused. A form that the model was
    told not to take before stays refused.

    Args:
        model: The model on its device. Its fast paths are set.
        settings: ``scope`` and ``sparse_rows`` count here.
        probe_batch: Rows with a label, and a positive, of every task.
    """
    # A fused mixture never forms the experts' outputs, but a balancer that asks for the rows of the
    # Jacobian may ask for them by these outputs.
    needs_jacobian = balancer is not None and balancer.needs == "rows"
    paths = model.fast_paths
    fuse = paths.fuse and not needs_jacobian
    model.use(replace(paths, fuse=fuse, sparse_from=settings.sparse_rows))
    sharing = SharedParameters(model, probe_batch)

    # Without a boundary, the representation is the embedded batch x. A folded layer never forms x,
    # so that nothing could be differentiated by it. Only now is it known that there is no boundary.
    compares_representation = balancer is not None and settings.scope == "representation"
    if compares_representation and not sharing.has_boundary:
        model.use(replace(model.fast_paths, fold=False))
        sharing = SharedParameters(model, probe_batch)

    return sharing


def check_comparable_rows(
    balancer: Balancer | None, sharing: SharedParameters, settings: TrainingSettings
) -> None:
    """Check that gradients that a balancer compares between batches are of the same table rows.

    A row-sparse gradient holds the rows of its own batch, so those of two batches cannot be
    compared.

    Raises:
        UsageError: The balancer compares batches, and a shared table has row-sparse gradients.
    """
    # Balancers that compare batches are those that refuse the scope "representation", whose
    # gradients are of other rows in each batch as well.
    if balancer is None or "representation" in balancer.scopes:
        return
    large_tables = [sliced.name for sliced in sharing.scope(settings.scope) if sliced.sparse]
    if large_tables:
        raise UsageError(
            "The balancer compares gradients of several batches, but those of "
            f"{large_tables[0]} hold the rows of one.",
            "--set scope=dense, or another balancer, or --set sparse_rows=1000000000",
        )
