"""Which encoder a column has."""

from __future__ import annotations

from mtlkit.data.table.column import ColumnEncoder
from mtlkit.data.table.id_columns import BagEncoder, DateEncoder, IdEncoder
from mtlkit.data.table.number_columns import NumberEncoder, VectorEncoder
from mtlkit.data.table.plan import ColumnPlan


def make_encoder(plan: ColumnPlan, rows: int) -> ColumnEncoder:
    """The encoder of a column of a table with so many rows."""
    if plan.kind == "id":
        return IdEncoder(plan)
    if plan.kind == "bag":
        return BagEncoder(plan)
    if plan.kind == "date":
        return DateEncoder(plan)
    if plan.kind == "vector":
        return VectorEncoder(plan)
    return NumberEncoder(plan, rows)
