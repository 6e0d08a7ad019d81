"""Large tables whose rows are spread over the processes of a cell; TorchRec sends them.

Each process holds one block of the rows, and their moments. In a look-up a row number goes to the
process that has the row, and the vector comes back; in the backward pass its gradient goes the same
way. There, rows are taken, their gradients summed and moved as those of a table in one process.

TorchRec's own lookups are not used: they move rows as soon as a gradient arrives, but here several
backward passes, the decay and the sum over accumulated batches may come before a step, and on a CPU
they know no Adam.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._tables import FOLD_VOCABULARY, EmbeddingTables
from mtlkit.ops.take_rows import take_rows
from mtlkit.training.setup import TrainingSetup

FIRST_ROWS = 4096  # rows that stand for all of a table until it is opened


class ShardedTables:
    """The tables of a model that are sharded over processes, row by row.

    Until they are opened, a few rows stand for each of them: what is tried before a training is the
    same on all processes, and sends nothing.

    Args:
        model: A freshly initialised model, which loses the rows of others.
        setup: Tables are sharded that have row-sparse gradients (``sparse_rows``) and at least
            ``shard_rows`` rows; none where that is None.
        number: Of this process, from 0.
        processes: How many there are.

    Attributes:
        names: The tables, by parameter name.
        elsewhere: Numbers of all tables that others hold.

    Raises:
        UsageError: The settings ask for all gradients of such a table.
    """

    def __init__(
        self, model: Architecture, setup: TrainingSetup, number: int, processes: int
    ) -> None:
        self.names: list[str] = []
        self.elsewhere = 0
        self._closed: list[tuple[EmbeddingTables, str, int, Tensor]] = []
        if setup.execution.shard_rows is None:
            return
        smallest = max(setup.execution.shard_rows, setup.settings.sparse_rows)
        for prefix, module in model.named_modules():
            for group in module.groups if isinstance(module, EmbeddingTables) else ():
                table = getattr(module, group.parameter)
                if group.largest <= FOLD_VOCABULARY or len(table) < smallest:
                    continue
                block = -(-len(table) // processes)  # as TorchRec cuts them
                own = table.detach()[number * block : (number + 1) * block].clone()
                self._closed.append((module, group.parameter, len(table), own))
                self.names.append(f"{prefix}.{group.parameter}")
                self.elsewhere += table.numel() - own.numel()
                table.data = table.detach()[:FIRST_ROWS].clone()
                module.takers[group.parameter] = _take_first_rows
        if self.names and (setup.settings.scope == "all" or setup.settings.clip_norm is not None):
            raise UsageError(
                f"scope=all and clip_norm ask for all gradients of {self.names[0]}, but each "
                "process has those of its rows.",
                "--set scope=dense, without clip_norm, or without shard_rows",
            )

    def open(self, device: torch.device) -> None:
        """Put the rows of this process in their place; from now on, all look up together."""
        for module, parameter, rows, own in self._closed:
            getattr(module, parameter).data = own.to(device)
            module.takers[parameter] = RowExchange(rows, device).take
        self._closed.clear()


def _take_first_rows(table: Tensor, rows: Tensor) -> Tensor:
    return take_rows(table, rows % len(table))


class RowExchange:
    """The look-ups of one sharded table, in which all processes take part.

    Args:
        rows: Rows of the whole table.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        from torchrec.distributed import comm_ops
        from torchrec.distributed.sharding.rw_sequence_sharding import RwSequenceEmbeddingDist
        from torchrec.distributed.sharding.rw_sharding import RwSparseFeaturesDist

        # losses are shares of that of the whole batch, and gradients may be asked for twice
        comm_ops.set_gradient_division(False)
        comm_ops.set_use_sync_collectives(True)
        group: Any = dist.group.WORLD
        self._numbers = RwSparseFeaturesDist(group, 1, [rows], device=device, is_sequence=True)
        self._vectors = RwSequenceEmbeddingDist(group, 1, device)

    def take(self, shard: Tensor, rows: Tensor) -> Tensor:
        """Rows (M,) of the whole table: (M, ...); every process may ask for another number.

        Args:
            shard: (V / N, ...) the rows that this process holds.
            rows: Numbers in the whole table.
        """
        from torchrec.distributed.sharding.sequence_sharding import SequenceShardingContext
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        # Ask each process for those of the rows that it has, and answer what others ask for.
        length = torch.tensor([len(rows)], device=rows.device)
        asked = KeyedJaggedTensor(["row"], rows.long(), lengths=length)
        counted = self._numbers(asked).wait()
        wanted = counted.wait()
        found = take_rows(shard, wanted.values())

        # Send each vector back, in the order in which its row was asked for.
        context = SequenceShardingContext(
            input_splits=counted._input_splits["values"],
            output_splits=counted._output_splits["values"],
            unbucketize_permute_tensor=self._numbers.unbucketize_permute_tensor,
            lengths_after_input_dist=wanted.lengths().view(1, -1),
        )
        vectors: Tensor = self._vectors(found.flatten(1), context).wait()
        return vectors.unflatten(1, shard.shape[1:])
