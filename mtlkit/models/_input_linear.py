"""Linear layers on the embedded features x, in two forms side by side.

``PlainLinear`` looks up all rows, forms x and multiplies it. ``FoldedLinear`` never forms x: where
vocabularies are small it applies a layer to the tables once, and each row of the batch sums the
results of its ids. This is the same sum in another order.

Both note their :class:`Cuts`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.models._lookup import Lookup, Reads, sums_of_copies
from mtlkit.models._tables import TableGroup
from mtlkit.ops.folded_linear import add_fold_weight_gradients, fold
from mtlkit.ops.sum_rows import sum_rows


class Cuts(list[Tensor]):
    """Tensors through which alone the tables reach everything else, none made of another.

    The passes of single tasks stop there; one weighted sum of all tasks goes on to the tables.
    """

    def add(self, tensor: Tensor, source: Tensor) -> Tensor:
        """Note a tensor that is made of ``source``, and return it."""
        if source.requires_grad:  # without tables there is no gradient to look for
            self.append(tensor)
        return tensor


class PlainLinear:
    """Linear layers on x as it is.

    Args:
        cuts: Gets the outputs of all layers.
    """

    def __init__(self, lookup: Lookup, cuts: Cuts) -> None:
        self.lookup = lookup
        self.cuts = cuts

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weight (O, D) and bias (O,) on x (B, D): (B, O)."""
        x = self.lookup.x()
        return self.cuts.add(F.linear(x, weight, bias), x)

    def linear_by_copy(self, weight: Tensor, bias: Tensor | None, reads: Reads | None) -> Tensor:
        """Weight (n, O, D) and bias (n, O) on the copies of x (B, copies, D), or on sums of them:
        (B, n, O).
        """
        x = self.lookup.x()
        inputs = x.transpose(0, 1)
        if reads is not None:
            inputs = sums_of_copies(self.lookup.copies(), reads, dim=0)  # (n, B, D)
        product = torch.bmm(inputs, weight.transpose(1, 2)).transpose(0, 1)
        return self.cuts.add(product if bias is None else product + bias, x)

    def weight_and_cut_gradients(self, columns: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """As ``EmbeddedBatch.weight_and_cut_gradients``."""
        x = self.lookup.x()
        weight_gradient = columns.t() @ x.detach().to(columns.dtype)
        return weight_gradient, columns.sum(0), [columns] if x.requires_grad else []


class FoldedLinear:
    """Linear layers applied to the tables instead of to x.

    A weight (O, D) falls into the columns of each group of ids, and the columns of all other
    features, which are the last ones.

    Args:
        cuts: Gets the tensors that are made of tables.
        groups: The groups of ids, all of which are folded.
    """

    def __init__(self, lookup: Lookup, cuts: Cuts, groups: Sequence[TableGroup]) -> None:
        self.lookup = lookup
        self.tables = lookup.tables
        self.cuts = cuts
        self.groups = groups
        # Dense values need no look-up: the kernel that sums the rows of the first group adds their
        # share. None where there are bags, with which they are multiplied as a part of x, or where
        # x holds something else that is made of them.
        is_formed = self.tables.bags or self.tables.number_embedding is not None
        self.dense = None if is_formed else lookup.batch.dense

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As ``PlainLinear.linear``."""
        return self._linear(weight[None], None if bias is None else bias[None])

    def linear_by_copy(self, weight: Tensor, bias: Tensor | None, reads: Reads | None) -> Tensor:
        """As ``PlainLinear.linear_by_copy``."""
        reads = [(k,) for k in range(self.tables.copies)] if reads is None else reads
        return self._linear(weight, bias, reads).unflatten(1, weight.shape[:2])

    def _linear(self, weight: Tensor, bias: Tensor | None, reads: Reads | None = None) -> Tensor:
        """(B, n * O) of n layers of one shape, on sums of the copies of the tables if there are
        several.

        Args:
            weight: (n, O, D).
            bias: (n, O).
            reads: The copies that each layer reads.
        """
        other_weight = weight[:, :, self.groups[-1].stop :]  # (n, O, d) of bags and dense features
        if self.dense is None:
            # The columns of x that follow those of ids are formed and multiplied.
            others = self.lookup.other_features()  # (B, [copies,] d)
            if reads is None:
                product = F.linear(others, other_weight[0], None if bias is None else bias[0])
            else:
                inputs = sums_of_copies(others.unbind(1), reads, dim=0)  # (n, B, d)
                product = torch.bmm(inputs, other_weight.transpose(1, 2)).transpose(0, 1)
                product = (product if bias is None else product + bias).flatten(1)
            terms = [self.cuts.add(product, others)]
            groups_left = self.groups
        else:
            # Bias and dense values go with the first group.
            first_group, *groups_left = self.groups
            other_weight = self._weight_of_dense(other_weight, reads)
            folded = self._fold(first_group, weight, bias, reads)
            row_index = self.lookup.row_index(first_group)
            terms = [sum_rows(folded, row_index, self.dense, other_weight.flatten(0, 1))]

        for group in groups_left:
            folded = self._fold(group, weight, None, reads)
            terms.append(sum_rows(folded, self.lookup.row_index(group)))
        return sum(terms[1:], start=terms[0])

    def weight_and_cut_gradients(self, columns: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """As ``EmbeddedBatch.weight_and_cut_gradients``.

        Cuts come in the order in which ``linear`` notes them.
        """
        # Transposed gradients, so that each group writes a block of whole rows.
        weight_gradient = columns.new_zeros(self.tables.width, columns.shape[1])  # (D, C)
        other_gradient = weight_gradient[self.groups[-1].stop :]  # (d, C) a view
        cut_gradients: list[Tensor] = []

        # Sum the columns by id, for each group a tensor (V, C).
        row_indices = [self.lookup.row_index(group) for group in self.groups]
        if self.dense is None:
            # These columns are a matrix, as in the plain form.
            others = self.lookup.other_features()  # (B, d)
            torch.mm(others.detach().t(), columns, out=other_gradient)
            if others.requires_grad:
                cut_gradients.append(columns)
            sums = [row_index.scatter_sum(columns) for row_index in row_indices]
        else:
            # The kernel of the first sum fills the gradient by dense value, too.
            first_index, *indices_left = row_indices
            vectors = self.tables.dense_vectors
            dense_gradient = other_gradient
            if vectors is not None:
                dense_gradient = columns.new_zeros(self.dense.shape[1], columns.shape[1])
            sums = [first_index.scatter_sum(columns, self.dense, dense_gradient)]
            sums += [row_index.scatter_sum(columns) for row_index in indices_left]

            # Where values are multiplied by vectors, it is a step on the way to both factors.
            if vectors is not None:
                by_vector = dense_gradient[:, None] * vectors.detach()[..., None]
                other_gradient.copy_(by_vector.flatten(0, 1))
                if vectors.requires_grad:
                    cut_gradients.append(dense_gradient)

        # From the rows of the tables to the weights that were applied to them. Each table gives the
        # gradient of the bias, too, as the sum over its first feature: they differ by rounding
        # alone, and that of the last table is taken.
        for group, group_sums in zip(self.groups, sums, strict=True):
            table = self._table(group)
            bias_gradient = add_fold_weight_gradients(
                table, self._field(group), group_sums, weight_gradient[group.start : group.stop]
            )
            if table.requires_grad:
                cut_gradients.append(group_sums)
        return weight_gradient.t(), bias_gradient[0], cut_gradients

    def _fold(
        self, group: TableGroup, weight: Tensor, bias: Tensor | None, reads: Reads | None
    ) -> Tensor:
        """The layers (n, O, D) on each row of a table, (V, n * O), which is a cut."""
        table, field = self._table(group), self._field(group)
        group_weight = weight
        if group.stop - group.start < weight.shape[2]:
            group_weight = weight[:, :, group.start : group.stop]
        if reads is None:
            rows, layer = table, group_weight[0]
        else:
            # A row for each layer, as if each layer were there for fields of its own: the first n
            # fields are then the first one of each layer, which takes its bias.
            n = len(weight)
            rows = sums_of_copies(table.unbind(1), reads, dim=1).flatten(0, 1)  # (V * n, width)
            by_field = group_weight.unflatten(2, (-1, group.width))  # (n, O, F, width)
            layer = by_field.permute(1, 2, 0, 3).flatten(1)  # (O, F * n * width)
            field = (field[:, None] * n + torch.arange(n, dtype=field.dtype)).flatten()
        folded, folded_by_table = fold(rows, layer, bias, field)
        self.cuts.add(folded_by_table, table)
        return folded.view(len(table), -1)

    def _table(self, group: TableGroup) -> Tensor:
        table: Tensor = getattr(self.tables, group.parameter)
        return table

    def _field(self, group: TableGroup) -> Tensor:
        field: Tensor = getattr(self.tables, f"{group.parameter}_field")
        return field

    def _weight_of_dense(self, weight: Tensor, reads: Reads | None) -> Tensor:
        """(n, O, D_dense) what layers on dense values, or on values times vectors, do to the values
        themselves.

        Args:
            weight: (n, O, D_dense), or (n, O, D_dense * width) where there are vectors.
            reads: The copies that each layer reads; a value is the same in all of them.
        """
        vectors = self.tables.dense_vectors  # (D_dense, [copies,] width)
        if vectors is None:
            times = [1] if reads is None else [len(copies) for copies in reads]
            return weight if max(times) == 1 else weight * weight.new_tensor(times)[:, None, None]
        by_layer = vectors[None]  # (n, D_dense, width)
        if reads is not None:
            by_layer = sums_of_copies(vectors.unbind(1), reads, dim=0)
        products = weight.unflatten(2, by_layer.shape[1:]) * by_layer[:, None]
        by_column = self.cuts.add(products.sum(-1).flatten(0, 1).t(), vectors)  # (D_dense, n * O)
        return by_column.t().unflatten(0, weight.shape[:2])
