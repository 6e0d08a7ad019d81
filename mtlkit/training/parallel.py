"""One run over several processes, each with a block of every batch; the plain trainer is the rule.

A process computes what its own rows add to the losses and to the gradients of the whole batch.
PyTorch's ``all_reduce`` adds these up in three places: the weights and losses of the objectives,
the task gradients that a balancer asks for, and the gradients before the optimiser moves. So every
process takes the same decisions and makes the same step, and the model is the same on all of them.

``DistributedDataParallel`` is not used: it waits for ``backward`` to fill ``.grad``, but the task
gradients of a step are differentiated one by one, and their weights follow from the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mtlkit.balancers._step import Scope, SharedGradient
from mtlkit.errors import UsageError
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Objective
from mtlkit.ops.inner_products import inner_products
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.checkpoints import Checkpoints
from mtlkit.training.evaluation import Evaluator
from mtlkit.training.optimizers import Optimizers
from mtlkit.training.result import FitResult
from mtlkit.training.scoring import Scores
from mtlkit.training.seeding import seed_for
from mtlkit.training.sharded_tables import ShardedTables
from mtlkit.training.step import LoopStep
from mtlkit.training.task_schedule import TaskSchedule
from mtlkit.training.trainer import Trainer

TRIAL_ROWS = 512  # rows on which it is tried whether the losses of blocks make up that of the whole


def sum_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums of tensors over all processes, sent as one; they have one type."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class ParallelStep(LoopStep):
    """A step on a block of a batch. What a balancer asks for is that of the whole batch."""

    def gramian(self, scope: Scope | None = None) -> Tensor:
        scope = scope or self.default_scope
        if scope not in self._gramians:
            if scope == "representation":
                # the rows of each process are other columns of the Jacobian
                dist.all_reduce(super().gramian(scope))
            else:
                self._gramians[scope] = inner_products(list(self.jacobian(scope)))
        return self._gramians[scope]

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        scope = scope or self.default_scope
        if scope not in self._jacobians:
            dist.all_reduce(super().jacobian(scope))
        return self._jacobians[scope]

    def _part_vectors(self, part: str) -> list[Tensor]:
        return sum_over_processes(super()._part_vectors(part))

    def _shared_gradients(self, decision: SharedGradient, scale: float) -> dict[str, Tensor]:
        # every process has the whole direction, and they will be added up
        return super()._shared_gradients(decision, scale / dist.get_world_size())


class ParallelEvaluator(Evaluator):
    """Scores a split with all processes, each some of its batches."""

    def score(self, split: DeviceSplit) -> Scores:
        number, processes = dist.get_rank(), dist.get_world_size()
        batches = -(-len(split) // self.batch_size)
        if batches < processes:
            return super().score(split)

        # The batches are those of one process, for losses are means over batches.
        starts = [batches * k // processes * self.batch_size for k in (number, number + 1)]
        rows = torch.arange(starts[0], min(starts[1], len(split)))
        own = super().score(split.subset(rows))
        if starts[1] - starts[0] < -(-batches // processes) * self.batch_size:
            # as many forward passes as elsewhere: all look up sharded tables together
            super().score(split.subset(rows[:1]))

        # Logits go to their place among those of all rows, and means count by their rows.
        values = []
        for logits in own.logits.values():
            values.append(logits.new_zeros(len(split), *logits.shape[1:]))
            values[-1][rows] = logits
        for mean in (own.losses, *own.gate_mean.values(), *own.gate_entropy.values()):
            values.append(mean.to(split.storage_device) * (len(rows) / len(split)))
        summed = iter(sum_over_processes(values))
        return Scores(
            {name: next(summed) for name in own.logits},
            own.derived,
            next(summed).to(own.losses),
            {name: next(summed) for name in own.gate_mean},
            {name: next(summed) for name in own.gate_entropy},
        )

    def _metrics(self, scores: Scores) -> dict[str, dict[str, Any]]:
        # the first process measures: what is selected, and when to stop, is the same everywhere
        measured = [super()._metrics(scores) if dist.get_rank() == 0 else {}]
        dist.broadcast_object_list(measured)
        return measured[0]


class BlockTrainer(Trainer):
    """What each of the processes that train a model together begins with; none of them is asked.

    Args:
        arguments: Those of :class:`Trainer`.

    Attributes:
        tables: The tables that no process holds alone, still closed.

    Raises:
        UsageError: As there, or something needs all rows of a batch, or of a table, at once.
    """

    def __init__(self, *arguments: Any) -> None:
        model, balancer, dataset, setup, *rest = arguments
        number = dist.get_rank() if dist.is_initialized() else 0
        self.tables = ShardedTables(model, setup, number, setup.execution.processes)
        if self.tables.names:  # no process has all that would be kept
            execution = setup.execution.model_copy(update={"save_weights": "none"})
            setup = replace(setup, execution=execution)
        super().__init__(model, balancer, dataset, setup, *rest)
        self._check_blocks()

    def _check_blocks(self) -> None:
        """Look that the model can be trained on blocks of a batch.

        Raises:
            UsageError: It cannot.
        """
        processes, settings, balancer = self.execution.processes, self.settings, self.balancer
        needs = "losses" if balancer is None else balancer.needs
        of_rows = settings.scope == "representation"
        scope = [] if of_rows or needs == "losses" else self.sharing.scope(settings.scope)
        large = [sliced.name for sliced in scope if sliced.sparse]
        groups = list(self.train.columns.groups)
        norms = [name for name, part in self.model.named_modules() if isinstance(part, _BatchNorm)]
        reason = hint = ""
        if settings.batch_size < processes:
            reason = f"A batch of {settings.batch_size} rows has none for some of the processes"
            hint = "--set batch_size=1024"
        elif norms:
            reason = f"The batch norm {norms[0]} takes the mean over all rows of a batch"
            hint = "norm=layer or norm=none in the brackets of the model"
        elif groups:
            reason = f"A loss compares the rows of a {groups[0]} with each other"
        elif needs == "rows" and of_rows:
            reason = "The balancer asks for the representation of all rows of a batch"
            hint = "--set scope=dense"
        elif large:
            reason = f"The balancer compares gradients of the rows of {large[0]} in a batch"
            hint = "--set scope=dense, or --set sparse_rows=1000000000"
        elif not self._is_mean_over_rows(processes):
            reason = "A loss of the model is no mean over the rows of a batch"
            hint = "give its Objective as total what a mean is divided by"
        if reason:
            message = f"{reason}, but each of {processes} processes has a part of the batch."
            raise UsageError(message, f"{hint}, or --processes 1" if hint else "--processes 1")

    @torch.no_grad()
    def _is_mean_over_rows(self, processes: int) -> bool:
        """Whether the losses of blocks make up those of a whole: those of a user need not."""
        rows = torch.arange(min(TRIAL_ROWS, len(self.train)))
        self.model.eval()
        tried = []
        for part in (rows, *rows.tensor_split(processes)):
            batch = self.train.take(part)
            objectives = self.model.objectives(self.model(batch), batch)
            totals = _stacked([objective.total for objective in objectives], len(batch))
            tried.append((_stacked([objective.loss for objective in objectives]), totals))
        self.model.train()
        (whole, total), *blocks = tried
        parts = sum(losses * weight for losses, weight in blocks) / total.clamp_min(1e-30)
        return torch.allclose(parts, whole, rtol=1e-4, atol=1e-6, equal_nan=True)


class ParallelTrainer(BlockTrainer):
    """Trains a model together with the other processes of ``torch.distributed``'s group.

    The numbers are those of one process with the same batches, up to rounding; each process draws
    dropout of its own.

    Args:
        arguments: Those of :class:`Trainer`.

    Raises:
        UsageError: As :class:`BlockTrainer`.
    """

    evaluator_type = ParallelEvaluator

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stream.block = self.fresh.block = (dist.get_rank(), dist.get_world_size())
        self.notes = [*self.notes, f"trained by {dist.get_world_size()} processes"]

        # the first weights are drawn alike, but other versions of a library may draw others
        for value in self.model.state_dict().values():
            dist.broadcast(value, 0)
        if self.tables.names:
            self._open_tables()
        elif self.execution.shard_rows is not None:
            self.warnings.append("no row-sparse table has shard_rows rows: none is sharded")

    def _open_tables(self) -> None:
        """Take the shards of large tables; what is as large as a table begins anew."""
        self.tables.open(self.device)
        sparse = [sliced.name for sliced in self.sharing.parameters if sliced.sparse]
        factors = self.model.learning_rates()
        self.optimizer = Optimizers(self.model, self.settings, factors, sparse)
        self.schedule = TaskSchedule(self.settings, self.model.tasks, self.sharing, self.device)
        self.probes.whole = self._sum_shards
        names = ", ".join(self.tables.names)
        self.notes.append(f"sharded row by row, and not kept: {names}")

    def _sum_shards(self, name: str, gramian: Tensor) -> Tensor:
        """Inner products over all rows of a table; each process has sent all rows of the probe."""
        if name in self.tables.names:
            dist.all_reduce(gramian)
            gramian /= dist.get_world_size() ** 2
        return gramian

    def _finish(self) -> FitResult:
        result = super()._finish()
        for name in ("parameters", "embedding_parameters"):
            result.cost[name] += self.tables.elsewhere
        return result

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if dist.get_rank():  # the state of its random numbers is that of the first process
            self._seed_dropout()

    def _seed_dropout(self) -> None:
        torch.manual_seed(seed_for(self.seed, "dropout") + dist.get_rank() + self.steps)

    def _step(self, batch: Batch, index: int, step_type: type[LoopStep] = ParallelStep) -> LoopStep:
        # every process has all rows of the probe
        return super()._step(batch, index, LoopStep if batch is self.probe_batch else step_type)

    def _objectives(self, output: Output, batch: Batch) -> list[Objective]:
        """The objectives of the whole batch, whose gradients are those of this block's rows."""
        objectives = super()._objectives(output, batch)
        if batch is self.probe_batch:
            return objectives

        # what each loss is divided by, the sum that is divided, and whether a row has a label
        totals = _stacked([objective.total for objective in objectives], len(batch))
        losses = _stacked([objective.loss.detach() for objective in objectives])
        active = _stacked([objective.active for objective in objectives])
        sums = torch.stack([totals, totals * losses, active])
        dist.all_reduce(sums)
        whole_totals, whole_sums, whole_active = sums
        divisors = torch.where(whole_totals > 0, whole_totals, 1.0)
        shares, means = totals / divisors, whole_sums / divisors

        whole = []
        for k, objective in enumerate(objectives):
            # the value is that of the whole batch, and the gradient that of the part
            part = objective.loss * shares[k].to(objective.loss)
            loss = means[k].to(part) + (part - part.detach())
            known = None if objective.active is None else whole_active[k] > 0
            whole.append(replace(objective, loss=loss, active=known))
        return whole

    def move(self) -> None:
        """Add up the gradients of all processes, and move the parameters as one process would."""
        # the gradients of a sharded table are where its rows are
        found = [
            value
            for name, value in self.model.named_parameters()
            if value.grad is not None and name not in self.tables.names
        ]
        grads = [value.grad for value in found if value.grad is not None]
        summed = iter(sum_over_processes([grad for grad in grads if not grad.is_sparse]))
        for value, grad in zip(found, grads, strict=True):
            if not grad.is_sparse:
                value.grad = next(summed)
                continue

            # Of large tables, the rows are sent that a block holds.
            rows = grad.coalesce().cpu()
            dist.all_reduce(rows)
            value.grad = rows.to(grad.device).coalesce()
        super().move()


def _stacked(values: Sequence[Tensor | None], default: float = 1.0) -> Tensor:
    """Scalars as one tensor in double precision, with a number where there is none."""
    known = next((value for value in values if value is not None), torch.zeros(()))
    filled = [known.new_tensor(default, dtype=torch.float64) if v is None else v for v in values]
    return torch.stack([value.double() for value in filled])


class SharedCheckpoints(Checkpoints):
    """Checkpoints that the first process writes and reads; all go on from the same state."""

    def load(self) -> dict[str, Any] | None:
        found: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                found = [super().load()]
            except ValueError as error:
                found = [error]
        dist.broadcast_object_list(found)
        if isinstance(found[0], ValueError):
            raise found[0]
        return found[0]

    def save(self, steps: int, state: dict[str, Any]) -> None:
        if dist.get_rank() == 0:
            super().save(steps, state)
        else:
            self._settle(steps)
