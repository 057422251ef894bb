"""The innermost loops of `clients.compiled`, in vector registers of 16 channels."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["LANES", "NONE", "add_vector", "products_of", "sum_of", "window"]

LANES = 16
"""Channels that are computed together: a vector register, or several narrower ones."""

NONE = 4
"""Mark of a window without a gradient; others have the place of its largest number."""

_INT, _BYTE, _FLOAT = ir.IntType(64), ir.IntType(8), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_MARKS = ir.VectorType(_BYTE, LANES)


@intrinsic  # type: ignore[untyped-decorator]
def window(
    context: Any,
    x: Any,
    corner: Any,
    line: Any,
    inside: Any,
    taps: Any,
    weight: Any,
    bias: Any,
    channel: Any,
    values: Any,
    value: Any,
    marks: Any,
    mark: Any,
) -> Any:
    """Compute 16 channels of the window whose first patch begins at a corner of x.

    `values` gets the largest of the four numbers of each channel, or 0 if it is
    negative; `marks` gets its place, or `NONE`.
    """
    signature = types.void(
        x, corner, line, inside, taps, weight, bias, channel, values, value, marks, mark
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, taps, weight, bias, values, marks = (
            context.make_array(signature.args[i])(context, builder, arguments[i])
            for i in (0, 4, 5, 6, 8, 10)
        )
        corner, line, inside, channel = (arguments[i] for i in (1, 2, 3, 7))
        step = cgutils.unpack_tuple(builder, weight.shape)[1]
        length = cgutils.unpack_tuple(builder, taps.shape)[0]
        below = builder.add(corner, line)
        corners = [corner, builder.add(corner, inside), below]
        corners.append(builder.add(below, inside))
        first = builder.load(_at(builder, bias, channel), align=4)
        sums = [cgutils.alloca_once_value(builder, first) for _ in corners]
        with cgutils.for_range(builder, length, intp=_INT) as loop:
            place = builder.add(builder.mul(loop.index, step), channel)
            row = builder.load(_at(builder, weight, place), align=4)
            tap = builder.load(builder.gep(taps.data, [loop.index]))
            for start, total in zip(corners, sums, strict=True):
                one = builder.load(builder.gep(x.data, [builder.add(start, tap)]))
                builder.store(_fma(builder, one, row, builder.load(total)), total)
        found = [builder.load(total) for total in sums]
        best, where = found[0], ir.Constant(_MARKS, [0] * LANES)
        for i, other in enumerate(found[1:], start=1):
            larger = builder.fcmp_ordered(">", other, best)
            best = builder.select(larger, other, best)
            where = builder.select(larger, ir.Constant(_MARKS, [i] * LANES), where)
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        positive = builder.fcmp_ordered(">", best, zero)
        best = builder.select(positive, best, zero)
        where = builder.select(positive, where, ir.Constant(_MARKS, [NONE] * LANES))
        builder.store(best, _at(builder, values, arguments[9]), align=4)
        builder.store(where, _at(builder, marks, arguments[11], _MARKS), align=1)
        return context.get_dummy_value()

    return signature, generate


def products_of(count: int) -> Any:
    """Return a function for Numba code that adds to the gradients of so many weights.

    It visits all windows of an image, for 16 channels outside: a weight is multiplied
    with one number of x below each of the four numbers of a window.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def add(
        context: Any,
        total: Any,
        first: Any,
        channel: Any,
        x: Any,
        corners: Any,
        taps: Any,
        g: Any,
        values: Any,
        marks: Any,
        mark: Any,
    ) -> Any:
        signature = types.void(
            total, first, channel, x, corners, taps, g, values, marks, mark
        )

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            total, x, corners, taps, g, values, marks = (
                context.make_array(signature.args[i])(context, builder, arguments[i])
                for i in (0, 3, 4, 5, 6, 7, 8)
            )
            first, channel, mark = (arguments[i] for i in (1, 2, 9))
            step = cgutils.unpack_tuple(builder, total.shape)[1]
            windows = cgutils.unpack_tuple(builder, values.shape)[0]
            weights = [builder.add(first, _INT(i)) for i in range(count)]
            places = [
                _at(builder, total, builder.add(builder.mul(i, step), channel))
                for i in weights
            ]
            offsets = [builder.load(builder.gep(taps.data, [i])) for i in weights]
            sums = [
                cgutils.alloca_once_value(builder, builder.load(place, align=4))
                for place in places
            ]
            zero = ir.Constant(_VECTOR, [0.0] * LANES)
            with cgutils.for_range(builder, windows, intp=_INT) as loop:
                value = builder.load(builder.gep(values.data, [loop.index]))
                slope = _at(builder, g, builder.add(value, channel))
                slope = builder.load(slope, align=4)
                place = builder.add(mark, builder.mul(loop.index, step))
                place = builder.add(place, channel)
                where = builder.load(_at(builder, marks, place, _MARKS), align=1)
                for i in range(4):
                    chosen = ir.Constant(_MARKS, [i] * LANES)
                    chosen = builder.icmp_unsigned("==", where, chosen)
                    row = builder.select(chosen, slope, zero)
                    corner = builder.add(builder.mul(loop.index, _INT(4)), _INT(i))
                    corner = builder.load(builder.gep(corners.data, [corner]))
                    for offset, one in zip(offsets, sums, strict=True):
                        place = builder.gep(x.data, [builder.add(corner, offset)])
                        found = builder.load(place)
                        more = _fma(builder, found, row, builder.load(one))
                        builder.store(more, one)
            for place, one in zip(places, sums, strict=True):
                builder.store(builder.load(one), place, align=4)
            return context.get_dummy_value()

        return signature, generate

    return add


def sum_of(count: int) -> Any:
    """Return a function for Numba code that sums so many vectors of 16 of some rows."""

    @intrinsic  # type: ignore[untyped-decorator]
    def add(
        context: Any,
        total: Any,
        at: Any,
        matrix: Any,
        rows: Any,
        factors: Any,
        end: Any,
    ) -> Any:
        signature = types.void(total, at, matrix, rows, factors, end)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            total, matrix, rows, factors = (
                context.make_array(signature.args[i])(context, builder, arguments[i])
                for i in (0, 2, 3, 4)
            )
            at, end = arguments[1], arguments[5]
            width = cgutils.unpack_tuple(builder, matrix.shape)[1]
            places = [builder.add(at, _INT(LANES * i)) for i in range(count)]
            zero = ir.Constant(_VECTOR, [0.0] * LANES)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in places]
            with cgutils.for_range(builder, end, intp=_INT) as loop:
                factor = builder.load(builder.gep(factors.data, [loop.index]))
                row = builder.load(builder.gep(rows.data, [loop.index]))
                row = builder.mul(row, width)
                for place, one in zip(places, sums, strict=True):
                    more = _at(builder, matrix, builder.add(row, place))
                    more = builder.load(more, align=4)
                    builder.store(_fma(builder, factor, more, builder.load(one)), one)
            for place, one in zip(places, sums, strict=True):
                builder.store(builder.load(one), _at(builder, total, place), align=4)
            return context.get_dummy_value()

        return signature, generate

    return add


@intrinsic  # type: ignore[untyped-decorator]
def add_vector(context: Any, total: Any, at: Any, row: Any, first: Any) -> Any:
    """Add 16 numbers of a row."""
    signature = types.void(total, at, row, first)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, row = (
            context.make_array(signature.args[i])(context, builder, arguments[i])
            for i in (0, 2)
        )
        to, more = _at(builder, total, arguments[1]), _at(builder, row, arguments[3])
        found = builder.fadd(builder.load(to, align=4), builder.load(more, align=4))
        builder.store(found, to, align=4)
        return context.get_dummy_value()

    return signature, generate


def _at(builder: Any, array: Any, place: Any, kind: Any = _VECTOR) -> Any:
    """Return the address of the vector that starts at a place of an array."""
    pointer = builder.gep(array.data, [place])
    return builder.bitcast(pointer, kind.as_pointer())


def _fma(builder: Any, factor: Any, row: Any, total: Any) -> Any:
    """Return total + factor · row."""
    small, undefined = ir.IntType(32), ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, factor, small(0))
    everywhere = ir.Constant(ir.VectorType(small, LANES), None)
    factors = builder.shuffle_vector(one, undefined, everywhere)
    product = builder.fmul(factors, row, flags=("contract",))
    return builder.fadd(total, product, flags=("contract",))
