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

from mtlkit.models._lookup import Lookup
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
        lookup: The look-ups of the batch.
        cuts: Gets the outputs of all layers.
    """

    def __init__(self, lookup: Lookup, cuts: Cuts) -> None:
        self.lookup = lookup
        self.cuts = cuts

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weight (O, D) and bias (O,) on x (B, D): (B, O)."""
        x = self.lookup.x()
        return self.cuts.add(F.linear(x, weight, bias), x)

    def linear_by_copy(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weight (copies, O, D) and bias (copies, O) on x (B, copies, D): (B, copies, O)."""
        x = self.lookup.x()
        product = torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
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
        lookup: The look-ups of the batch.
        cuts: Gets the tensors that are made of tables.
        groups: The groups of ids, all of which are folded.
    """

    def __init__(self, lookup: Lookup, cuts: Cuts, groups: Sequence[TableGroup]) -> None:
        self.lookup = lookup
        self.tables = lookup.tables
        self.cuts = cuts
        self.groups = groups
        # Dense values need no look-up: the kernel that sums the rows of the first group adds their
        # share. None where there are bags, with which they are multiplied as a part of x.
        self.dense = None if self.tables.bags else lookup.batch.dense

    def linear(self, weight: Tensor, bias: Tensor | None, copy: int | None = None) -> Tensor:
        """As ``PlainLinear.linear``, on one copy of the tables if there are several."""
        other_weight = weight[:, self.groups[-1].stop :]  # (O, d) of bags and dense features
        if self.dense is None:
            # With bags, the columns of x that follow those of ids are formed and multiplied.
            others = self.lookup.other_features(copy)  # (B, d)
            product = F.linear(others, other_weight, bias)
            terms = [self.cuts.add(product, others)]
            groups_left = self.groups
        else:
            # Bias and dense values go with the first group.
            first_group, *groups_left = self.groups
            if self.tables.dense_vectors is not None:
                other_weight = self._weight_of_dense(other_weight, copy)
            folded = self._fold(first_group, weight, bias, copy)
            row_index = self.lookup.row_index(first_group)
            terms = [sum_rows(folded, row_index, self.dense, other_weight)]

        for group in groups_left:
            folded = self._fold(group, weight, None, copy)
            terms.append(sum_rows(folded, self.lookup.row_index(group)))
        return sum(terms[1:], start=terms[0])

    def linear_by_copy(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As ``PlainLinear.linear_by_copy``."""
        outputs = []
        for copy in range(self.tables.copies):
            copy_bias = None if bias is None else bias[copy]
            outputs.append(self.linear(weight[copy], copy_bias, copy))
        return torch.stack(outputs, dim=1)

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
            # Bags and what stands beside them are a matrix, as in the plain form.
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
        return weight_gradient.t(), bias_gradient, cut_gradients

    def _fold(
        self, group: TableGroup, weight: Tensor, bias: Tensor | None, copy: int | None
    ) -> Tensor:
        """The layer on each row of a table, (V, O); what is made of the table alone is a cut."""
        table = self._table(group)
        if copy is not None:
            table = table[:, copy].contiguous()
        group_weight = weight
        if group.stop - group.start < weight.shape[1]:
            group_weight = weight[:, group.start : group.stop]
        folded, folded_by_table = fold(table, group_weight, bias, self._field(group))
        self.cuts.add(folded_by_table, table)
        return folded

    def _table(self, group: TableGroup) -> Tensor:
        table: Tensor = getattr(self.tables, group.parameter)
        return table

    def _field(self, group: TableGroup) -> Tensor:
        field: Tensor = getattr(self.tables, f"{group.parameter}_field")
        return field

    def _weight_of_dense(self, weight: Tensor, copy: int | None) -> Tensor:
        """What a layer on dense values times vectors does to the values themselves.

        Args:
            weight: (O, D_dense * width) the layer.
            copy: The copy of the vectors (D_dense, width).

        Returns:
            (O, D_dense).
        """
        vectors = self.tables.dense_vectors
        assert vectors is not None
        if copy is not None:
            vectors = vectors[:, copy]
        products = weight.unflatten(1, vectors.shape) * vectors
        return self.cuts.add(products.sum(-1).t(), vectors).t()
