"""The inner loops, as Numba compiles them.

Loops go over tiles of columns that stay in a core's first cache. Rows are given by
their addresses, so one compiled function serves rows of a matrix, of a part of it, and
arrays from messages. Numba infers the types.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from flwr_ctma.engine.kernels.exchange import ROW_BYTES, exchange_of
from flwr_ctma.engine.kernels.numpy import CELL
from flwr_ctma.engine.kernels.tiles import REGISTER, ahead, tile_of

__all__ = ["load", "nearest", "products", "ranked", "squares", "weighted_median"]

# Columns that are summed at a time: they stay in a core's first cache.
_COMBINED = 2048
# Columns that move to their medians together, until all have arrived.
_WALKED = 128
# Columns whose products are summed in the rows' own precision, then in float64: those
# of 17 rows stay in a first cache of 32 kB.
_SUMMED = 496
# Rows of a cell that are multiplied with all rows at a time: a quarter of a megabyte.
_ROWS = 64
# Bytes ahead of the columns in work that are fetched: measured, 17 rows of 1e6.
_AHEAD = 2048


def _exact(function: Any, **options: Any) -> Any:
    """Compile a function at its first call, once on a machine."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no place for a cache: then once in a process
        return njit(**options)(function)


def _sums(function: Any) -> Any:
    """Compile a function whose sums may be split among the lanes of a register.

    The split is fixed at compile time and does not depend on the number of threads.
    """
    return _exact(function, fastmath={"reassoc", "contract"})


@intrinsic
def _pointer(context: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to numbers like those of an array."""
    pointer = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, like), generate


@_exact
def _row(address, start, width, like):
    """Return columns of a row, given by its address."""
    first = np.uintp(address) + np.uintp(start) * np.uintp(like.itemsize)
    return carray(_pointer(first, like), width)


_sort_both, _keep_low, _keep_high = (
    exchange_of(*kept) for kept in ((True, True), (True, False), (False, True))
)
_tile_1, _tile_2, _tile_3, _tile_4 = (tile_of(p, 4) for p in range(1, 5))
_diagonal_1, _diagonal_2, _diagonal_3, _diagonal_4 = (
    tile_of(p, None) for p in range(1, 5)
)


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
def combine(addresses, origin, coefficients, out):
    """Write the sum of rows, less the origin where there is one, times coefficients."""
    n = len(addresses)
    zeros = np.zeros(_COMBINED, out.dtype)
    for start in range(0, len(out), _COMBINED):
        to = out[start : start + _COMBINED]
        width = len(to)
        less = _row(origin, start, width, out) if origin else zeros[:width]
        to[:] = 0
        for i in range(0, n - n % 4, 4):
            a = _row(addresses[i], start, width, out)
            b = _row(addresses[i + 1], start, width, out)
            x = _row(addresses[i + 2], start, width, out)
            y = _row(addresses[i + 3], start, width, out)
            p, q = coefficients[i], coefficients[i + 1]
            r, s = coefficients[i + 2], coefficients[i + 3]
            for c in range(width):
                to[c] += (
                    p * (a[c] - less[c])
                    + q * (b[c] - less[c])
                    + r * (x[c] - less[c])
                    + s * (y[c] - less[c])
                )
        for i in range(n - n % 4, n):
            a, p = _row(addresses[i], start, width, out), coefficients[i]
            for c in range(width):
                to[c] += p * (a[c] - less[c])


@_exact
def products(addresses, origin, first, width, like, lower):
    """Add inner products of the rows, from the first on, with those before them.

    Rows less an origin are copied, a few columns at a time, next to each other.
    """
    n, lanes = len(addresses), REGISTER // like.itemsize
    copied = _room(n if origin else 0, _SUMMED, like)
    places = addresses
    if origin:
        places = np.empty(n, np.uintp)
        for i in range(n):
            places[i] = copied[i].ctypes.data
    for start in range(0, width, _SUMMED):
        some = min(_SUMMED, width - start)
        whole = some // lanes * lanes
        at, fetched = start, start + _AHEAD // like.itemsize
        if origin:
            at, fetched = 0, start + some
            for i in range(n):
                # Numba frees an array after its last use, whoever has its address:
                # a use in the loop keeps the copies until the loop ends.
                to = copied[i]
                row = _row(addresses[i], start, some, like)
                less = _row(origin, start, some, like)
                ahead(addresses[i], start + 2 * _SUMMED, some, like)
                for c in range(some):
                    to[c] = row[c] - less[c]
        # Each group of rows meets all rows: the group stays in the second cache.
        for these in range(0, n, _ROWS):
            for i in range(max(first, these) // 4 * 4, n, 4):
                for j in range(these, min(these + _ROWS, i + 1), 4):
                    _tile(places, i, j, at, whole, like, lower, addresses, fetched)
        if whole < some:
            _rest(places, first, at + whole, some - whole, like, lower)


@_exact
def _tile(addresses, i, j, start, width, like, lower, source, fetched):
    """Add inner products of up to 4 rows from i with up to 4 from j ≤ i."""
    rows = len(addresses) - i
    if i == j:
        if rows >= 4:
            _diagonal_4(addresses, i, j, start, width, like, lower, source, fetched)
        elif rows == 3:
            _diagonal_3(addresses, i, j, start, width, like, lower, source, fetched)
        elif rows == 2:
            _diagonal_2(addresses, i, j, start, width, like, lower, source, fetched)
        else:
            _diagonal_1(addresses, i, j, start, width, like, lower, source, fetched)
    elif rows >= 4:
        _tile_4(addresses, i, j, start, width, like, lower, source, fetched)
    elif rows == 3:
        _tile_3(addresses, i, j, start, width, like, lower, source, fetched)
    elif rows == 2:
        _tile_2(addresses, i, j, start, width, like, lower, source, fetched)
    else:
        _tile_1(addresses, i, j, start, width, like, lower, source, fetched)


@_exact
def _rest(addresses, first, start, width, like, lower):
    """Add inner products over the columns that do not fill a register."""
    for i in range(first, len(addresses)):
        a = _row(addresses[i], start, width, like)
        for j in range(i + 1):
            b = _row(addresses[j], start, width, like)
            for c in range(width):
                lower[i, j] += a[c] * b[c]


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
def _room(n, width, like):
    """Return memory for n rows, from the start of a line of the cache."""
    whole = np.empty(n * width + REGISTER // like.itemsize, like.dtype)
    past = np.uintp(whole.ctypes.data) % np.uintp(REGISTER)
    first = (REGISTER - np.int64(past)) // like.itemsize
    return whole[first : first + n * width].reshape(n, width)


@_exact
def _sort(addresses, comparators, start, tile, mark):
    """Load columns into a tile and run the comparators over them.

    There are as many columns as marks: 0, or NaN for a column that is not finite.
    """
    width = len(mark)
    mark[:] = 0
    for i in range(len(addresses)):
        row, to = _row(addresses[i], start, width, tile), tile[i]
        for c in range(width):
            to[c] = row[c]
            mark[c] += row[c] - row[c]
    base, step = np.uintp(tile.ctypes.data), np.uintp(ROW_BYTES)
    for k in range(len(comparators)):
        x = base + np.uintp(comparators[k, 0]) * step
        y = base + np.uintp(comparators[k, 1]) * step
        if comparators[k, 2] and comparators[k, 3]:
            _sort_both(x, y, tile)
        elif comparators[k, 2]:
            _keep_low(x, y, tile)
        else:
            _keep_high(x, y, tile)


@_exact
def ranked(addresses, comparators, coefficients, out):
    """Write the mean of the values, weighted by rank."""
    tile = _room(len(addresses), ROW_BYTES // out.itemsize, out)
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
    tile = _room(n, ROW_BYTES // out.itemsize, out)
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
            # A loop of its own: the row that leaves may be the row to replace.
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
    """Replace a guess in `out` by the weighted median, one value up or down a step.

    A step goes down if the values below m weigh half or more, and up if the values up
    to m weigh less. The result is NaN for a column that is not finite.
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
