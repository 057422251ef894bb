"""Comparators of a sorting network on rows of a tile, a register at a time."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from flwr_ctma.engine.kernels.tiles import REGISTER

__all__ = ["ROW_BYTES", "exchange_of"]

# Bytes of a row of a tile, in whole registers: 112 rows stay in a first cache of 32 kB.
ROW_BYTES = 256

INT = ir.IntType(64)


def exchange_of(keep_low: bool, keep_high: bool) -> Any:
    """Return a function for Numba code that sorts each column of two rows.

    The rows are given by their addresses. The first gets the smaller values, if these
    are kept, and the second the larger ones.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def exchange(context: Any, low: Any, high: Any, like: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            number = context.get_value_type(like.dtype)
            itemsize = like.dtype.bitwidth // 8
            vector = ir.VectorType(number, REGISTER // itemsize)
            for at in range(0, ROW_BYTES, REGISTER):
                x, y = (
                    builder.inttoptr(
                        builder.add(arguments[k], INT(at)), vector.as_pointer()
                    )
                    for k in (0, 1)
                )
                a, b = builder.load(x, align=itemsize), builder.load(y, align=itemsize)
                if keep_low:
                    less = builder.fcmp_ordered("<", a, b)
                    builder.store(builder.select(less, a, b), x, align=itemsize)
                if keep_high:
                    more = builder.fcmp_ordered(">", a, b)
                    builder.store(builder.select(more, a, b), y, align=itemsize)
            return context.get_dummy_value()

        return types.void(low, high, like), generate

    return exchange
