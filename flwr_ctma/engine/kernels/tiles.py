"""Inner products of a few rows with a few others, held in vector registers.

Every product is summed in one register, in the same order of columns whatever
the shape of its tile. So its bits depend on its two rows only.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["REGISTER", "ahead", "tile_of"]

# Bytes of a vector register.
REGISTER = 64 if binding.get_host_cpu_features().get("avx512f") else 32

INT, BYTE, HINT = ir.IntType(64), ir.IntType(8), ir.IntType(32)


def tile_of(p: int, q: int | None) -> Any:
    """Return a function for Numba code that adds inner products to a matrix.

    It multiplies p rows from i with q rows from j, or with each other if q is None:
    then it adds the lower triangle, and fetches columns of the same rows of a source.
    All rows are read once.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        context: Any,
        addresses: Any,
        i: Any,
        j: Any,
        start: Any,
        width: Any,
        like: Any,
        lower: Any,
        source: Any,
        fetched: Any,
    ) -> Any:
        given = (addresses, i, j, start, width, like, lower, source, fetched)
        signature = types.void(*given)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            where, size, read = (
                context.make_array(signature.args[k])(context, builder, arguments[k])
                for k in (0, 6, 7)
            )
            number = context.get_value_type(like.dtype)
            itemsize = like.dtype.bitwidth // 8
            vector = ir.VectorType(number, REGISTER // itemsize)
            offset = builder.mul(arguments[3], INT(itemsize))

            def row(first: Any, k: int, of: Any = where, at: Any = offset) -> Any:
                place = builder.gep(of.data, [builder.add(first, INT(k))])
                return builder.add(builder.load(place), at)

            left = [row(arguments[1], k) for k in range(p)]
            right, following = None, []
            if q is not None:
                right = [row(arguments[2], k) for k in range(q)]
            else:  # every row is in one such tile
                at = builder.mul(arguments[8], INT(itemsize))
                following = [row(arguments[1], k, read, at) for k in range(p)]
            width = arguments[4]
            sums = _loop(builder, left, right, following, width, vector, itemsize)
            columns = cgutils.unpack_tuple(builder, size.shape)[1]

            def place(r: int, s: int) -> Any:
                line = builder.mul(builder.add(arguments[1], INT(r)), columns)
                at = builder.add(line, builder.add(arguments[2], INT(s)))
                return builder.gep(size.data, [at])

            if p == 4:
                _add_all(builder, sums, place)
            else:
                for (r, s), total in sums.items():
                    found = builder.load(place(r, s))
                    total = builder.fadd(found, _reduced(builder, total))
                    builder.store(total, place(r, s))
            return context.get_dummy_value()

        return signature, generate

    return tile


def _loop(
    builder: Any,
    left: list[Any],
    right: list[Any] | None,
    following: list[Any],
    width: Any,
    vector: Any,
    itemsize: int,
) -> dict[tuple[int, int], Any]:
    """Sum products over whole registers of columns; return the sums by row.

    Columns of the following addresses are fetched into the second cache meanwhile.
    """
    pairs = [
        (r, s)
        for r in range(len(left))
        for s in range(r + 1 if right is None else len(right))
    ]
    zero = ir.Constant(vector, [0.0] * vector.count)
    before = builder.block
    head, body, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    column = builder.phi(INT)
    sums = {pair: builder.phi(vector) for pair in pairs}
    builder.cbranch(builder.icmp_signed("<", column, width), body, after)
    builder.position_at_end(body)
    offset = builder.mul(column, INT(itemsize))

    def load(address: Any) -> Any:
        pointer = builder.inttoptr(builder.add(address, offset), vector.as_pointer())
        return builder.load(pointer, align=itemsize)

    a = [load(address) for address in left]
    b = a if right is None else [load(address) for address in right]
    for address in following:
        _prefetch(builder, builder.add(address, offset))
    column.add_incoming(INT(0), before)
    column.add_incoming(builder.add(column, INT(vector.count)), body)
    for (r, s), total in sums.items():
        product = builder.fmul(a[r], b[s], flags=("contract",))
        total.add_incoming(zero, before)
        total.add_incoming(builder.fadd(total, product, flags=("contract",)), body)
    builder.branch(head)
    builder.position_at_end(after)
    return sums


def _add_all(
    builder: Any, sums: dict[tuple[int, int], Any], place: Callable[[int, int], Any]
) -> None:
    """Add the lanes of 4 × 4 sums to a matrix, in the order of `_reduced`.

    Each step adds halves of all sums at once: two registers of sums become one. What
    lies above the diagonal is zero.
    """
    vector = sums[0, 0].type
    zero, undefined = (ir.Constant(vector, x) for x in (None, ir.Undefined))
    found = [sums.get((r, s), zero) for r in range(4) for s in range(4)]
    size = vector.count  # lanes of each sum
    while size > 1:
        half, starts = size // 2, range(0, 2 * vector.count, size)
        low = [k for start in starts for k in range(start, start + half)]
        masks = [
            ir.Constant(ir.VectorType(HINT, vector.count), [k + more for k in low])
            for more in (0, half)
        ]
        found = [
            builder.fadd(*(builder.shuffle_vector(x, y, mask) for mask in masks))
            for x, y in zip(found[::2], found[1::2], strict=True)
        ]
        size = half
    four = ir.VectorType(ir.DoubleType(), 4)
    for r in range(4):
        register, start = divmod(4 * r, vector.count)
        lanes = ir.Constant(ir.VectorType(HINT, 4), list(range(start, start + 4)))
        line = builder.shuffle_vector(found[register], undefined, lanes)
        if line.type != four:
            line = builder.fpext(line, four)
        pointer = builder.bitcast(place(r, 0), four.as_pointer())
        total = builder.fadd(builder.load(pointer, align=8), line)
        builder.store(total, pointer, align=8)


def _reduced(builder: Any, total: Any) -> Any:
    """Return the sum of the lanes, as a double."""
    while total.type.count > 1:
        half = total.type.count // 2
        undefined = ir.Constant(total.type, ir.Undefined)
        lanes = ir.VectorType(HINT, half)
        low, high = (
            builder.shuffle_vector(total, undefined, ir.Constant(lanes, list(part)))
            for part in (range(half), range(half, 2 * half))
        )
        total = builder.fadd(low, high)
    lane = builder.extract_element(total, HINT(0))
    double = ir.DoubleType()
    return lane if lane.type == double else builder.fpext(lane, double)


def _prefetch(builder: Any, address: Any) -> None:
    pointer = BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, HINT, HINT, HINT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    place = builder.inttoptr(address, pointer)
    # To read, keep in the second cache, data.
    builder.call(function, [place, HINT(0), HINT(2), HINT(1)])


@intrinsic  # type: ignore[untyped-decorator]
def ahead(context: Any, address: Any, start: Any, width: Any, like: Any) -> Any:
    """Fetch columns of a row into the cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        itemsize = like.dtype.bitwidth // 8
        first = builder.add(arguments[0], builder.mul(arguments[1], INT(itemsize)))
        size = builder.mul(arguments[2], INT(itemsize))
        with cgutils.for_range_slice(builder, INT(0), size, INT(64), INT) as (at, _):
            _prefetch(builder, builder.add(first, at))
        return context.get_dummy_value()

    return types.void(address, start, width, like), generate
