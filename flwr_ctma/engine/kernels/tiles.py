"""Inner products of a few rows with a few others, held in vector registers.

Every product is summed in one register, in the same order of columns whatever
the shape of its tile. So its bits depend on its two rows only.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["REGISTER", "tile_of"]

# Bytes of a vector register.
REGISTER = 64 if binding.get_host_cpu_features().get("avx512f") else 32

# Bytes ahead of the columns in work that are fetched: measured, 17 rows of 1e6.
_AHEAD = 2048

INT, BYTE, HINT = ir.IntType(64), ir.IntType(8), ir.IntType(32)


def tile_of(p: int, q: int | None) -> Any:
    """Return a function for Numba code that adds inner products to a matrix.

    It multiplies p rows from i with q rows from j, or with each other if q is None:
    then it adds the lower triangle. All rows are read once.
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
    ) -> Any:
        signature = types.void(addresses, i, j, start, width, like, lower)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            where, size = (
                context.make_array(signature.args[k])(context, builder, arguments[k])
                for k in (0, 6)
            )
            number = context.get_value_type(like.dtype)
            itemsize = like.dtype.bitwidth // 8
            vector = ir.VectorType(number, REGISTER // itemsize)
            offset = builder.mul(arguments[3], INT(itemsize))

            def row(first: Any, k: int) -> Any:
                place = builder.gep(where.data, [builder.add(first, INT(k))])
                return builder.add(builder.load(place), offset)

            left = [row(arguments[1], k) for k in range(p)]
            right = None if q is None else [row(arguments[2], k) for k in range(q)]
            sums = _loop(builder, left, right, arguments[4], vector, itemsize)
            columns = cgutils.unpack_tuple(builder, size.shape)[1]
            for (r, s), total in sums.items():
                line = builder.mul(builder.add(arguments[1], INT(r)), columns)
                at = builder.add(line, builder.add(arguments[2], INT(s)))
                place = builder.gep(size.data, [at])
                found = builder.load(place)
                builder.store(builder.fadd(found, _reduced(builder, total)), place)
            return context.get_dummy_value()

        return signature, generate

    return tile


def _loop(
    builder: Any,
    left: list[Any],
    right: list[Any] | None,
    width: Any,
    vector: Any,
    itemsize: int,
) -> dict[tuple[int, int], Any]:
    """Sum products over whole registers of columns; return the sums by row."""
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
    if right is None:  # every row is in one such tile
        for address in left:
            _prefetch(builder, builder.add(address, offset), _AHEAD)
    column.add_incoming(INT(0), before)
    column.add_incoming(builder.add(column, INT(vector.count)), body)
    for (r, s), total in sums.items():
        product = builder.fmul(a[r], b[s], flags=("contract",))
        total.add_incoming(zero, before)
        total.add_incoming(builder.fadd(total, product, flags=("contract",)), body)
    builder.branch(head)
    builder.position_at_end(after)
    return sums


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


def _prefetch(builder: Any, address: Any, ahead: int) -> None:
    pointer = BYTE.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, HINT, HINT, HINT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    place = builder.inttoptr(builder.add(address, INT(ahead)), pointer)
    # To read, keep in the second cache, data.
    builder.call(function, [place, HINT(0), HINT(2), HINT(1)])
