"""Vectors of 16 numbers, and a hint to the memory, for compiled kernels.

The compiler makes vectors of inner loops by itself, but each such loop asks anew whether its arrays
overlap and how much is left over, which costs more than a row of 16 numbers. These are vectors from
the start, on any machine.

numba's cache does not look here: after a change, delete the compiled kernels of the files that
import this one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel

LANES = 16

_intrinsic: Any = extending.intrinsic


class Lanes(types.Type):
    """The type of a vector of 16 numbers inside kernels."""

    def __init__(self, dtype: types.Type) -> None:
        super().__init__(f"Lanes({dtype})")
        self.dtype = dtype


@extending.register_model(Lanes)
class _Model(PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(manager[kind.dtype].get_value_type(), LANES))


def _pointer(context: Any, builder: Any, kind: Any, args: Any, lanes: Any) -> Any:
    array = cgutils.create_struct_proxy(kind)(context, builder, args[0])
    return builder.bitcast(
        builder.gep(array.data, [args[1]]), context.get_value_type(lanes).as_pointer()
    )


@_intrinsic
def load(typing: Any, row: Any, i: Any) -> Any:
    """The 16 numbers of a contiguous row from the i-th on, which must be there."""
    result = Lanes(row.dtype)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, row, args, result), align=1)

    return result(row, types.intp), build


@_intrinsic
def store(typing: Any, row: Any, i: Any, lanes: Any) -> Any:
    """Write a vector into a contiguous row from the i-th number on, where there must be room."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, row, args, lanes), align=1)
        return context.get_dummy_value()

    return types.void(row, types.intp, lanes), build


@_intrinsic
def zeros(typing: Any, row: Any) -> Any:
    """16 zeros of the type of a row's numbers."""
    result = Lanes(row.dtype)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(result), None)

    return result(row), build


@_intrinsic
def fma(typing: Any, factor: Any, lanes: Any, added: Any) -> Any:
    """``factor * lanes + added``; the factor is a vector or a number of the same type."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        own, other, rest = args
        if not isinstance(factor, Lanes):
            first = builder.insert_element(
                ir.Constant(other.type, ir.Undefined), own, ir.IntType(32)(0)
            )
            spread = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
            own = builder.shuffle_vector(first, ir.Constant(other.type, ir.Undefined), spread)
        return builder.fadd(
            builder.fmul(own, other, flags=("contract",)), rest, flags=("contract",)
        )

    return lanes(factor if isinstance(factor, Lanes) else lanes.dtype, lanes, lanes), build


@_intrinsic
def add(typing: Any, one: Any, other: Any) -> Any:
    """``one + other``, vectors both."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return one(one, other), build


@_intrinsic
def total(typing: Any, lanes: Any) -> Any:
    """The sum of a vector."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (value,) = args
        size = LANES
        while size > 1:
            size //= 2
            halves = [
                ir.Constant(ir.VectorType(ir.IntType(32), size), list(range(start, start + size)))
                for start in (0, size)
            ]
            empty = ir.Constant(value.type, ir.Undefined)
            low, high = (builder.shuffle_vector(value, empty, half) for half in halves)
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.IntType(32)(0))

    return lanes.dtype(lanes), build


def _compared(builder: Any, lanes: Any, chosen: Any) -> Any:
    """0 where the vector is at most 0, else what is chosen; of NaN, too."""
    empty = ir.Constant(lanes.type, None)
    return builder.select(builder.fcmp_ordered("<=", lanes, empty), empty, chosen)


@_intrinsic
def positive(typing: Any, lanes: Any) -> Any:
    """The rectified vector: 0 for what is below 0."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _compared(builder, args[0], args[0])

    return lanes(lanes), build


@_intrinsic
def where_positive(typing: Any, lanes: Any, other: Any) -> Any:
    """Another vector where the first is above 0, else 0: the gradient of ``positive``."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _compared(builder, args[0], args[1])

    return other(lanes, other), build


@_intrinsic
def prefetch(typing: Any, row: Any, i: Any) -> Any:
    """Say that the i-th number of a contiguous row is soon wanted; the processor may bring it, or
    do nothing.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = cgutils.create_struct_proxy(row)(context, builder, args[0])
        place = builder.bitcast(builder.gep(array.data, [args[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(hint, [place, number(0), number(3), number(1)])  # to read, for long, data
        return context.get_dummy_value()

    return types.void(row, types.intp), build
