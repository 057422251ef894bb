"""The inner loops of the engine, as Numba compiles them.

Loops go over tiles of columns that stay in a core's first cache. Rows are given by
their addresses, so that what is compiled once serves rows of a matrix, a part of it,
and arrays that came in messages. Numba infers the types.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from flwr_ctma.engine.kernels.numpy import CELL

__all__ = ["load", "nearest", "products", "ranked", "squares", "weighted_median"]

# Of a tile that is sorted: it leaves room in a first cache of 48 kB.
_TILE_BYTES = 40 * 2**10
# Columns that walk to their medians together, until the last is there.
_WALKED = 128
# Rows of a cell that meet all others at a time: a quarter of a megabyte.
_ROWS = 64


def _exact(function: Any, **options: Any) -> Any:
    """Compile a function when it is first called, once on a machine."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it: then once in a process
        return njit(**options)(function)


def _sums(function: Any) -> Any:
    """Let sums be split among the lanes of a register, which is what makes them fast.

    How they are is fixed when they are compiled, not by the number of threads.
    """
    return _exact(function, fastmath={"reassoc", "contract"})


@intrinsic
def _pointer(context: Any, address: Any, like: Any) -> Any:
    """An address, as a pointer to numbers like those of an array."""
    pointer = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, like), generate


@_exact
def _row(address, start, width, like):
    """Give columns of a row, of which only the address is known."""
    first = np.uintp(address) + np.uintp(start) * np.uintp(like.itemsize)
    return carray(_pointer(first, like), width)


@_exact
def load(addresses, origin, out):
    """Copy rows, less the origin where there is one, into a block."""
    width = out.shape[1]
    for i in range(len(addresses)):
        row, to = _row(addresses[i], 0, width, out), out[i]
        if origin:
            less = _row(origin, 0, width, out)
            for c in range(width):
                to[c] = row[c] - less[c]
        else:
            for c in range(width):
                to[c] = row[c]


@_sums
def products(addresses, first, width, like, lower):
    """Add inner products, each of 4 rows from the first on with 4 up to them."""
    for start in range(0, width, CELL):
        some = min(CELL, width - start)
        # Some rows after the other meet all rows: they stay in a core's second cache.
        for these in range(0, len(addresses), _ROWS):
            for i in range(max(first, these), len(addresses), 4):
                for j in range(these, min(these + _ROWS, i + 1), 4):
                    _tile(addresses, i, j, start, some, like, lower)


@_sums
def _tile(addresses, i, j, start, width, like, lower):
    """Add 4 × 4 inner products: 16 registers hold them while 8 rows are read once."""
    a0 = _row(addresses[i], start, width, like)
    a1 = _row(addresses[i + 1], start, width, like)
    a2 = _row(addresses[i + 2], start, width, like)
    a3 = _row(addresses[i + 3], start, width, like)
    b0 = _row(addresses[j], start, width, like)
    b1 = _row(addresses[j + 1], start, width, like)
    b2 = _row(addresses[j + 2], start, width, like)
    b3 = _row(addresses[j + 3], start, width, like)
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = like.dtype.type(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = like.dtype.type(0)
    for c in range(width):
        x0, x1, x2, x3 = a0[c], a1[c], a2[c], a3[c]
        y0, y1, y2, y3 = b0[c], b1[c], b2[c], b3[c]
        s00, s01, s02, s03 = s00 + x0 * y0, s01 + x0 * y1, s02 + x0 * y2, s03 + x0 * y3
        s10, s11, s12, s13 = s10 + x1 * y0, s11 + x1 * y1, s12 + x1 * y2, s13 + x1 * y3
        s20, s21, s22, s23 = s20 + x2 * y0, s21 + x2 * y1, s22 + x2 * y2, s23 + x2 * y3
        s30, s31, s32, s33 = s30 + x3 * y0, s31 + x3 * y1, s32 + x3 * y2, s33 + x3 * y3
    sums = (
        (s00, s01, s02, s03),
        (s10, s11, s12, s13),
        (s20, s21, s22, s23),
        (s30, s31, s32, s33),
    )
    for p in range(4):
        for q in range(4):
            lower[i + p, j + q] += sums[p][q]


@_sums
def squares(addresses, middle, width, like, squares):
    """Add the squared distances of the rows to a vector."""
    for start in range(0, width, CELL):
        some = min(CELL, width - start)
        centre = _row(middle, start, some, like)
        for i in range(len(addresses)):
            row = _row(addresses[i], start, some, like)
            total = like.dtype.type(0)
            for c in range(some):
                total += (row[c] - centre[c]) ** 2
            squares[i] += total


@_exact
def _room(n, like):
    """Give room for a tile, in whole registers and whole lines of the cache."""
    width = _TILE_BYTES // (n * like.itemsize) // 32 * 32
    return np.empty((n, min(max(width, 64), 256)), like.dtype)


@_exact
def _sort(addresses, comparators, start, tile, mark):
    """Put the columns of a tile in order, as far as the comparators do.

    As many columns as there are marks: 0, or NaN for a column that is not finite.
    """
    width = len(mark)
    mark[:] = 0
    for i in range(len(addresses)):
        row, to = _row(addresses[i], start, width, tile), tile[i]
        for c in range(width):
            to[c] = row[c]
            mark[c] += row[c] - row[c]
    for k in range(len(comparators)):
        x, y = tile[comparators[k, 0]], tile[comparators[k, 1]]
        keep_low, keep_high = comparators[k, 2], comparators[k, 3]
        if keep_low and keep_high:
            for c in range(width):
                a, b = x[c], y[c]
                x[c] = a if a < b else b
                y[c] = a if a > b else b
        elif keep_low:
            for c in range(width):
                a, b = x[c], y[c]
                x[c] = a if a < b else b
        else:
            for c in range(width):
                a, b = x[c], y[c]
                y[c] = a if a > b else b


@_exact
def ranked(addresses, comparators, coefficients, out):
    """Write the mean of the ranks that count."""
    tile = _room(len(addresses), out)
    total = coefficients.dtype.type(0)
    for coefficient in coefficients:
        total += coefficient
    for start in range(0, len(out), tile.shape[1]):
        to = out[start : start + tile.shape[1]]
        _sort(addresses, comparators, start, tile, to)
        for rank in range(len(coefficients)):
            coefficient = coefficients[rank]
            if coefficient != 0:
                row = tile[rank]
                for c in range(len(to)):
                    to[c] += coefficient * row[c]
        for c in range(len(to)):
            to[c] /= total


@_exact
def nearest(addresses, comparators, k, out):
    """Write the mean of the k values nearest to the median."""
    n = len(addresses)
    tile = _room(n, out)
    median, below = np.empty((2, tile.shape[1]), tile.dtype)
    count = out.dtype.type(k)
    for start in range(0, len(out), tile.shape[1]):
        to = out[start : start + tile.shape[1]]
        width = len(to)
        _sort(addresses, comparators, start, tile, to)
        low, high = tile[(n - 1) // 2], tile[n // 2]
        for c in range(width):
            median[c] = low[c] / 2 + high[c] / 2
        for j in range(n - k):
            leaves, enters, place = tile[j], tile[j + k], tile[j % k]
            # By itself, as the row that leaves may be the place.
            for c in range(width):
                below[c] = median[c] - leaves[c]
            for c in range(width):
                out_of, into = place[c], enters[c]
                place[c] = into if below[c] > into - median[c] else out_of
        for i in range(k):
            row = tile[i]
            for c in range(width):
                to[c] += row[c]
        for c in range(width):
            to[c] /= count


@_sums
def weighted_median(addresses, weights, out):
    """Write the weighted median, found from what is there: one value up or down a step.

    From m the way is down if the values below it weigh half or more, up if those up to
    it weigh less. NaN for a column that is not finite.
    """
    half = weights.sum() / 2
    # Sums of weights in different orders differ by rounding: equality is up to that.
    least, most = half * (1 - 1e-12), half * (1 + 1e-12)
    infinity = out.dtype.type(np.inf)
    below, upto = np.empty((2, _WALKED))
    lower, upper, mark = np.empty((3, _WALKED), out.dtype)
    for start in range(0, len(out), _WALKED):
        middle = out[start : start + _WALKED]
        width = len(middle)
        walking = True
        while walking:
            below[:], upto[:], mark[:] = 0, 0, 0
            lower[:], upper[:] = -infinity, infinity
            for i in range(len(addresses)):
                row, weight = _row(addresses[i], start, width, out), weights[i]
                for c in range(width):
                    mark[c] += row[c] - row[c]
                if weight == 0:
                    continue
                for c in range(width):
                    x, m = row[c], middle[c]
                    below[c] += weight if x < m else 0.0
                    upto[c] += weight if x <= m else 0.0
                    low = x if x < m else -infinity
                    high = x if x > m else infinity
                    lower[c] = low if low > lower[c] else lower[c]
                    upper[c] = high if high < upper[c] else upper[c]
            walking = False
            for c in range(width):
                if mark[c] != 0 or not half > 0:
                    continue
                if below[c] >= least:
                    middle[c], walking = lower[c], True
                elif upto[c] < least:
                    middle[c], walking = upper[c], True
        for c in range(width):
            if upto[c] <= most:
                middle[c] = middle[c] / 2 + upper[c] / 2
            middle[c] += mark[c]
