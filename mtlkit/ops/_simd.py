"""Vectors of 16 numbers or of 8, and a hint to the memory, for compiled kernels.

The compiler makes vectors of inner loops by itself, but each such loop asks anew whether its arrays
overlap and how much is left over, which costs more than a row of 16 numbers. These are vectors from
the start, on any machine.

Kernels take the first numbers of a row a vector at a time, and the rest, from ``vector_end`` on,
one by one. They take rows out of their inner loops (``row = table[v]``): only then does the
compiler see that rows do not overlap.

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
HALF_LANES = 8  # as wide as an embedding is by default

INT8, INT32 = ir.IntType(8), ir.IntType(32)

# the numbers that llvm.prefetch takes
TO_READ, KEEP_LONG, DATA = 0, 3, 1

# An intrinsic is called with the types of its arguments, and returns its signature and a function
# that builds its instructions from the values of the arguments.
_intrinsic: Any = extending.intrinsic


class Lanes(types.Type):
    """The type of a vector of 16 numbers, or of ``count``, inside kernels."""

    def __init__(self, dtype: types.Type, count: int = LANES) -> None:
        super().__init__(f"Lanes({dtype}, {count})")
        self.dtype = dtype
        self.count = count


@extending.register_model(Lanes)
class _LanesModel(PrimitiveModel):
    """How such a vector is held: in a vector of LLVM's."""

    def __init__(self, manager: Any, lanes: Lanes) -> None:
        number = manager[lanes.dtype].get_value_type()
        super().__init__(manager, lanes, ir.VectorType(number, lanes.count))


def _address(context: Any, builder: Any, row: Any, values: Any) -> Any:
    """The address of the i-th number of a row; values are the array and i."""
    array = cgutils.create_struct_proxy(row)(context, builder, values[0])
    return builder.gep(array.data, [values[1]])


def _lanes_address(context: Any, builder: Any, row: Any, values: Any, lanes: Lanes) -> Any:
    """The address of a vector that begins with the i-th number of a row."""
    pointer = context.get_value_type(lanes).as_pointer()
    return builder.bitcast(_address(context, builder, row, values), pointer)


def _load(row: Any, count: int) -> Any:
    """Load the numbers of a contiguous row from the i-th on."""
    result = Lanes(row.dtype, count)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(_lanes_address(context, builder, row, values, result), align=1)

    return result(row, types.intp), build


@_intrinsic
def load(typing: Any, row: Any, i: Any) -> Any:
    """The 16 numbers of a contiguous row from the i-th on, which must be there."""
    return _load(row, LANES)


@_intrinsic
def load_half(typing: Any, row: Any, i: Any) -> Any:
    """The 8 numbers of a contiguous row from the i-th on, which must be there."""
    return _load(row, HALF_LANES)


@_intrinsic
def store(typing: Any, row: Any, i: Any, lanes: Any) -> Any:
    """Write a vector into a contiguous row from the i-th number on, where there must be room."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = _lanes_address(context, builder, row, values, lanes)
        builder.store(values[2], address, align=1)
        return context.get_dummy_value()

    return types.void(row, types.intp, lanes), build


def _zeros(row: Any, count: int) -> Any:
    """Zeros of the type of a row's numbers."""
    result = Lanes(row.dtype, count)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(context.get_value_type(result), None)

    return result(row), build


@_intrinsic
def zeros(typing: Any, row: Any) -> Any:
    """16 zeros of the type of a row's numbers."""
    return _zeros(row, LANES)


@_intrinsic
def zeros_half(typing: Any, row: Any) -> Any:
    """8 zeros of the type of a row's numbers."""
    return _zeros(row, HALF_LANES)


@_intrinsic
def zero(typing: Any, row: Any) -> Any:
    """A single 0 of the type of a row's numbers."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.get_constant(row.dtype, 0)

    return row.dtype(row), build


def _broadcast(builder: Any, number: Any, vector_type: Any) -> Any:
    """A vector that holds one number only."""
    undefined = ir.Constant(vector_type, ir.Undefined)
    first_only = builder.insert_element(undefined, number, INT32(0))
    from_first = ir.Constant(ir.VectorType(INT32, vector_type.count), None)
    return builder.shuffle_vector(first_only, undefined, from_first)


@_intrinsic
def fma(typing: Any, factor: Any, lanes: Any, added: Any) -> Any:
    """``factor * lanes + added``; the factor is a vector or a number of the same type."""
    is_vector = isinstance(factor, Lanes)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        factor_value, lanes_value, added_value = values
        if not is_vector:
            factor_value = _broadcast(builder, factor_value, lanes_value.type)
        product = builder.fmul(factor_value, lanes_value, flags=("contract",))
        return builder.fadd(product, added_value, flags=("contract",))

    return lanes(factor if is_vector else lanes.dtype, lanes, lanes), build


@_intrinsic
def scale(typing: Any, factor: Any, lanes: Any) -> Any:
    """``factor * lanes`` for a number, rounded before anything is added to it."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fmul(_broadcast(builder, values[0], values[1].type), values[1])

    return lanes(lanes.dtype, lanes), build


@_intrinsic
def add(typing: Any, one: Any, other: Any) -> Any:
    """``one + other``, vectors both."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fadd(*values)

    return one(one, other), build


@_intrinsic
def total(typing: Any, lanes: Any) -> Any:
    """The sum of a vector."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        (vector,) = values
        size = lanes.count
        # add the upper half to the lower one until one number is left
        while size > 1:
            size //= 2
            indices = ir.VectorType(INT32, size)
            lower = ir.Constant(indices, list(range(size)))
            upper = ir.Constant(indices, list(range(size, 2 * size)))
            undefined = ir.Constant(vector.type, ir.Undefined)
            vector = builder.fadd(
                builder.shuffle_vector(vector, undefined, lower),
                builder.shuffle_vector(vector, undefined, upper),
            )
        return builder.extract_element(vector, INT32(0))

    return lanes.dtype(lanes), build


def _where_positive(builder: Any, compared: Any, chosen: Any) -> Any:
    """0 where a vector is at most 0, else what is chosen, also where the vector is NaN."""
    zero_vector = ir.Constant(compared.type, None)
    at_most_zero = builder.fcmp_ordered("<=", compared, zero_vector)
    return builder.select(at_most_zero, zero_vector, chosen)


@_intrinsic
def positive(typing: Any, lanes: Any) -> Any:
    """The rectified vector: 0 for what is below 0."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _where_positive(builder, values[0], values[0])

    return lanes(lanes), build


@_intrinsic
def where_positive(typing: Any, lanes: Any, other: Any) -> Any:
    """Another vector where the first is above 0, else 0: the gradient of ``positive``."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _where_positive(builder, values[0], values[1])

    return other(lanes, other), build


@_intrinsic
def prefetch(typing: Any, row: Any, i: Any) -> Any:
    """Say that the i-th number of a contiguous row is soon wanted; the processor may ignore it."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number = _address(context, builder, row, values)
        address = builder.bitcast(number, INT8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, INT32, INT32, INT32])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(hint, [address, INT32(TO_READ), INT32(KEEP_LONG), INT32(DATA)])
        return context.get_dummy_value()

    return types.void(row, types.intp), build
