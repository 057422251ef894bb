"""Sorting networks compiled by LLVM to machine code without branches.

The code loads a register of columns from every row, runs the comparators from register
to register, and stores the result: values of the rows never go back to memory. Numba
brings LLVM, which compiles a network of 17 rows in 20 ms, and one of 64 in 0.1 s.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from llvmlite import binding, ir

from flwr_ctma.engine.buffers import Array, Float64
from flwr_ctma.engine.kernels.network import network

__all__ = ["LARGEST", "nearest_mean", "ranked_mean"]

# Rows up to which a network compiles in about 0.1 s.
LARGEST = 64
# The code prefetches memory this many bytes ahead of the columns it computes.
_AHEAD = 768

# Columns whose squares are summed in the rows' own precision, then in float64.
_SUMMED = 1024

Values = list[Any]
Value = Callable[[Any, Values], Any]
INT, BYTE = ir.IntType(64), ir.IntType(8)
SIGNATURE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)


def ranked_mean(
    block: Array, coefficients: tuple[float, ...], squares: Float64 | None
) -> Array:
    """Return Σ_r c_r x_(r) / Σ_r c_r of every column, and add squared distances."""
    code = _compiled(coefficients, None, block.dtype.itemsize, squares is not None)
    return code(block, squares)


def nearest_mean(block: Array, k: int, squares: Float64 | None) -> Array:
    """Return the mean of the k values nearest to the median, and add squares."""
    ranks = tuple(map(float, range(1, len(block) + 1)))
    code = _compiled(ranks, k, block.dtype.itemsize, squares is not None)
    return code(block, squares)


@dataclass(frozen=True)
class _Code:
    """A compiled function of the rows of a block."""

    run: Callable[[int, int, int, int, int], None]
    lanes: int
    engine: Any  # owns the memory of the code

    def __call__(self, block: Array, squares: Float64 | None) -> Array:
        width = block.shape[1]
        if width < self.lanes:  # columns of zeros fill a register, and add nothing
            block = np.pad(block, ((0, 0), (0, self.lanes - width)))
        out = np.empty(block.shape[1], block.dtype)
        start, step = block.__array_interface__["data"][0], block.strides[0]
        total = 0 if squares is None else squares.ctypes.data
        self.run(start, step, block.shape[1], out.ctypes.data, total)
        return out[:width]


@lru_cache(maxsize=256)
def _compiled(
    coefficients: tuple[float, ...], k: int | None, itemsize: int, measured: bool
) -> _Code:
    number = ir.FloatType() if itemsize == 4 else ir.DoubleType()
    vector = ir.VectorType(number, _register_bytes() // itemsize)

    def value(builder: Any, rows: Values) -> Any:
        rows = _sort(builder, rows, coefficients)
        if k is None:
            return _mean(builder, rows, coefficients)
        return _mean(builder, _nearest(builder, rows, k), (1.0,) * k)

    module = ir.Module()
    _Visit(module, vector, itemsize, len(coefficients), value).write(measured)
    engine = _compile(module)
    run = SIGNATURE(engine.get_function_address("run"))
    return _Code(run, vector.count, engine)


class _Visit:
    """A function that visits a block: load columns, compute their value, store it.

    Columns are visited a register at a time. Where the width is not a multiple of the
    register, the last register starts earlier and overlaps the one before.
    """

    def __init__(
        self, module: Any, vector: Any, itemsize: int, n: int, value: Value
    ) -> None:
        self.vector, self.itemsize, self.n, self.value = vector, itemsize, n, value
        kind = ir.FunctionType(ir.VoidType(), [INT] * 5)
        self.function = ir.Function(module, kind, "run")
        self.start, self.step, self.width, self.out, self.squares = self.function.args
        small = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), small, small, small])
        self.prefetch = ir.Function(module, kind, "llvm.prefetch.p0")
        self.hints = [small(0), small(3), small(1)]  # to read, keep near, data
        self.zero = ir.Constant(vector, [0.0] * vector.count)

    def write(self, measured: bool) -> None:
        """Write the function: a loop over tiles of columns, and one over registers."""
        entry, tile, body, after, done = (
            self.function.append_basic_block() for _ in range(5)
        )
        builder = ir.IRBuilder(entry)
        last = builder.sub(self.width, INT(self.vector.count))
        sums = [builder.alloca(self.vector) for _ in range(self.n if measured else 0)]
        builder.branch(tile)
        builder.position_at_end(tile)
        first = builder.phi(INT)
        first.add_incoming(INT(0), entry)
        end = self._smaller(builder, builder.add(first, INT(_SUMMED)), self.width)
        for total in sums:
            builder.store(self.zero, total)
        builder.branch(body)
        builder.position_at_end(body)
        column = builder.phi(INT)
        column.add_incoming(first, tile)
        self._columns(builder, column, self._smaller(builder, column, last), sums)
        following = builder.add(column, INT(self.vector.count))
        column.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, end), body, after)
        builder.position_at_end(after)
        for i, total in enumerate(sums):
            self._add(builder, builder.load(total), i)
        first.add_incoming(end, after)
        builder.cbranch(builder.icmp_signed("<", end, self.width), tile, done)
        ir.IRBuilder(done).ret_void()

    def _columns(self, builder: Any, column: Any, at: Any, sums: Values) -> None:
        offset = builder.mul(at, INT(self.itemsize))
        address, pointers = builder.add(self.start, offset), []
        for _ in range(self.n):
            pointers.append(builder.inttoptr(address, self.vector.as_pointer()))
            ahead = builder.add(address, INT(_AHEAD))
            ahead = builder.inttoptr(ahead, BYTE.as_pointer())
            builder.call(self.prefetch, [ahead, *self.hints])
            address = builder.add(address, self.step)
        rows = [builder.load(p, align=self.itemsize) for p in pointers]
        mark = self.zero  # NaN if a value of the column is not finite
        for row in rows:
            mark = builder.fadd(mark, builder.fmul(row, self.zero), flags=("contract",))
        value = builder.fadd(self.value(builder, rows), mark)
        to = builder.inttoptr(builder.add(self.out, offset), self.vector.as_pointer())
        builder.store(value, to, align=self.itemsize)
        if not sums:
            return
        # Columns of the register before count once.
        lanes = ir.VectorType(INT, self.vector.count)
        number = ir.Constant(lanes, list(range(self.vector.count)))
        skipped = self._spread(builder, builder.sub(column, at), lanes)
        counts = builder.icmp_signed(">=", number, skipped)
        for pointer, total in zip(pointers, sums, strict=True):
            # Loaded again: registers do not hold the rows while they are sorted.
            row = builder.load(pointer, align=self.itemsize)
            apart = builder.select(counts, builder.fsub(row, value), self.zero)
            square = builder.fmul(apart, apart, flags=("contract",))
            more = builder.fadd(builder.load(total), square, flags=("contract",))
            builder.store(more, total)

    def _add(self, builder: Any, total: Any, i: int) -> None:
        """Add the lanes of a sum to the squared distance of row i."""
        double = ir.DoubleType()
        if self.itemsize == 4:
            total = builder.fpext(total, ir.VectorType(double, self.vector.count))
        place = builder.add(self.squares, INT(8 * i))
        pointer = builder.inttoptr(place, double.as_pointer())
        found = builder.load(pointer)
        while total.type.count > 1:
            half = total.type.count // 2
            low, high = (
                builder.shuffle_vector(
                    total,
                    ir.Constant(total.type, ir.Undefined),
                    ir.Constant(ir.VectorType(ir.IntType(32), half), list(part)),
                )
                for part in (range(half), range(half, 2 * half))
            )
            total = builder.fadd(low, high)
        lane = builder.extract_element(total, ir.IntType(32)(0))
        builder.store(builder.fadd(found, lane), pointer)

    @staticmethod
    def _smaller(builder: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.icmp_signed("<", a, b), a, b)

    @staticmethod
    def _spread(builder: Any, scalar: Any, vector: Any) -> Any:
        first, undefined = ir.IntType(32)(0), ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(undefined, scalar, first)
        everywhere = ir.Constant(ir.VectorType(first.type, vector.count), None)
        return builder.shuffle_vector(one, undefined, everywhere)


def _sort(builder: Any, values: Values, coefficients: tuple[float, ...]) -> Values:
    rows = list(values)
    for low, high, keep_low, keep_high in network(coefficients):
        a, b = rows[low], rows[high]
        if keep_low:
            rows[low] = builder.select(builder.fcmp_ordered("<", a, b), a, b)
        if keep_high:
            rows[high] = builder.select(builder.fcmp_ordered(">", a, b), a, b)
    return rows


def _nearest(builder: Any, rows: Values, k: int) -> Values:
    """Return k of the sorted rows, in which each value near the median took a place.

    See `sorting.nearest_mean`.
    """
    rows, n = list(rows), len(rows)
    half = _constant(rows[0], 0.5)
    low, high = rows[(n - 1) // 2], rows[n // 2]
    median = builder.fadd(builder.fmul(low, half), builder.fmul(high, half))
    for j in range(n - k):
        leaves, enters = rows[j], rows[j + k]
        below, above = builder.fsub(median, leaves), builder.fsub(enters, median)
        nearer = builder.fcmp_ordered(">", below, above)
        rows[j % k] = builder.select(nearer, enters, rows[j % k])
    return rows[:k]


def _mean(builder: Any, rows: Values, coefficients: Sequence[float]) -> Any:
    terms = [
        row if c == 1 else builder.fmul(row, _constant(row, c))
        for row, c in zip(rows, coefficients, strict=True)
        if c
    ]
    total = terms[0]
    for term in terms[1:]:
        total = builder.fadd(total, term)
    divisor = sum(coefficients)
    return total if divisor == 1 else builder.fdiv(total, _constant(total, divisor))


def _constant(like: Any, number: float) -> Any:
    return ir.Constant(like.type, [number] * like.type.count)


@cache
def _register_bytes() -> int:
    return 64 if binding.get_host_cpu_features().get("avx512f") else 32


def _compile(module: Any) -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=2,
    )
    parsed = binding.parse_assembly(str(module))
    engine = binding.create_mcjit_compiler(parsed, target)
    engine.finalize_object()
    return engine
