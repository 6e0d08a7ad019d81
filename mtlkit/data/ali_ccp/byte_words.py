"""Bytes and words at an address, for compiled code that reads text eight bytes at a time.

Helpers that take an address instead of an array need no count of references, which numba keeps with
atomic operations for arrays that are passed on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types

from mtlkit.data.ali_ccp.hashing import kernel

_intrinsic: Any = extending.intrinsic
_BYTE, _WORD = ir.IntType(8), ir.IntType(64)
_NIBBLES, _ZEROS = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x3030303030303030)
_OVER_NINE, _HIGH = np.uint64(0x7676767676767676), np.uint64(0x8080808080808080)
_PAIRS, _FOURS = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
_TENS, _HUNDREDS, _MYRIADS = np.uint64(2561), np.uint64(6553601), np.uint64(42949672960001)
_S8, _S16, _S32, _S64 = np.uint64(8), np.uint64(16), np.uint64(32), np.uint64(64)


@_intrinsic
def byte_at(typing: Any, address: Any) -> Any:
    """The byte at an address, as an int64."""

    def load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.load(builder.inttoptr(arguments[0], _BYTE.as_pointer())), _WORD)

    return types.int64(types.int64), load


@_intrinsic
def word_at(typing: Any, address: Any) -> Any:
    """The eight bytes from an address on, as a uint64; the address may be odd.

    The first byte is the lowest: a little-endian machine is taken for granted, here and by whoever
    reads the words.
    """

    def load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], _WORD.as_pointer()), align=1)

    return types.uint64(types.int64), load


@_intrinsic
def put_byte(typing: Any, address: Any, byte: Any) -> Any:
    """Write the low byte of an int64 to an address."""

    def store(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = builder.inttoptr(arguments[0], _BYTE.as_pointer())
        builder.store(builder.trunc(arguments[1], _BYTE), where)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), store


@_intrinsic
def put_word(typing: Any, address: Any, word: Any) -> Any:
    """Write the eight bytes of a uint64 to an address, the lowest first; the address may be odd."""

    def store(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], _WORD.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), store


@_intrinsic
def trailing_zeros(typing: Any, word: Any) -> Any:
    """How many of the lowest bits are 0; 64 if all are."""

    def count(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), count


@_intrinsic
def borrowed(typing: Any, arrays: Any) -> Any:
    """The same named tuple with arrays that have no owner; the caller must keep them alive.

    numba counts the references to an array, with atomic operations, wherever it is passed on. An
    array without an owner is not counted.
    """

    def forget_owners(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments
        for position, field_type in enumerate(signature.return_type):
            if isinstance(field_type, types.Array):
                array = context.make_array(field_type)(
                    context, builder, builder.extract_value(value, position)
                )
                array.meminfo = ir.Constant(array.meminfo.type, None)
                value = builder.insert_value(value, array._getvalue(), position)
        return value

    return arrays(arrays), forget_owners


@kernel
def address_of(array: np.ndarray) -> Any:
    """Where an array begins. It must be kept alive by whoever has it."""
    return np.int64(array.ctypes.data)


@kernel
def digits_of(word: np.uint64) -> np.uint64:
    """How many of a word's bytes are digits before the first that is none: 0 to 8."""
    nibbles = word ^ _ZEROS
    # a byte over 9 sets its high bit here; a carry can only reach bytes above the first such byte
    return trailing_zeros((nibbles + _OVER_NINE | nibbles) & _HIGH) >> np.uint64(3)


@kernel
def number_in(word: np.uint64, digits: np.uint64) -> np.uint64:
    """The value of a word's first ``digits`` bytes, 1 to 8 digits."""
    word = (word << (_S64 - (digits << np.uint64(3)))) & _NIBBLES
    word = word * _TENS >> _S8
    word = (word & _PAIRS) * _HUNDREDS >> _S16
    return (word & _FOURS) * _MYRIADS >> _S32
