"""A convolution, the largest of every 2 × 2 of its numbers, and ReLU, in one pass.

Numba compiles it. What the convolution computes never goes to memory: four numbers stay
in registers until the largest is known. Only these largest ones have a gradient, and of
them only those above 0: the way back multiplies an eighth as often as that of a
convolution. Each client has weights of its own, which costs nothing here.

Images are (height, width, channels), with a border of zeros half as wide as the kernel
that reads them.
"""

from typing import Any

import numpy as np
from numba import njit

from clients.registers import LANES, NONE, add_vector, products_of, sum_of, window

__all__ = ["backward", "forward"]

# As many sums as fit in the registers.
_products_9, _products_1 = products_of(9), products_of(1)
_sum_9, _sum_1 = sum_of(9), sum_of(1)


def _compiled(function: Any) -> Any:
    """Compile a function at its first call, once on a machine."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no place for a cache: then once in a process
        return njit(**options)(function)


@_compiled
def _taps(x, kernel):
    """Return the place of each number of a patch of x, from that of the first."""
    inside, line = x.shape[4], x.shape[3] * x.shape[4]
    taps = np.empty(kernel * kernel * inside, np.int64)
    for k in range(kernel):
        for c in range(kernel * inside):
            taps[k * kernel * inside + c] = k * line + c
    return taps


@_compiled
def forward(x, weight, bias, kernel, y, edge, marks):
    """Compute the block of n clients, for m images of each.

    Parameters
    ----------
    x : float32 of shape (n, m, height, width, inside)
    weight : float32 of shape (n, outside, kernel · kernel · inside)
    bias : float32 of shape (n, outside)
    kernel : int
        Its height and width.
    y : float32 of shape (n, m, rows + 2 · edge, columns + 2 · edge, outside)
    edge : int
        Width of the border of y, which is not written.
    marks : uint8 of shape (n, m, rows, columns, outside)
        Where the gradient of each number goes, for `backward`.
    """
    n, m, rows, columns, outside = marks.shape
    inside, line, taps = x.shape[4], x.shape[3] * x.shape[4], _taps(x, kernel)
    xs, ys, places = x.reshape(-1), y.reshape(-1), marks.reshape(-1)
    for client in range(n):
        turned, own = np.ascontiguousarray(weight[client].T), bias[client].copy()
        for image in range(client * m, client * m + m):
            for row in range(rows):
                corner = (image * x.shape[2] + 2 * row) * line
                value = (image * y.shape[2] + row + edge) * y.shape[3] + edge
                mark = (image * rows + row) * columns
                for column in range(columns):
                    for c in range(0, outside, LANES):
                        window(
                            xs,
                            corner + 2 * column * inside,
                            line,
                            inside,
                            taps,
                            turned,
                            own,
                            c,
                            ys,
                            (value + column) * outside + c,
                            places,
                            (mark + column) * outside + c,
                        )


@_compiled
def backward(x, weight, marks, kernel, g, edge, d_weight, d_bias, d_x):
    """Compute the gradients of a block, given the gradient g of its y.

    Parameters
    ----------
    x, weight, marks, kernel, edge : as of `forward`
    g, d_weight, d_bias, d_x : arrays of the shapes of y, weight, bias and x
        d_x must be 0; an empty one is not computed.
    """
    n, m, rows, columns, outside = marks.shape
    inside, line, taps = x.shape[4], x.shape[3] * x.shape[4], _taps(x, kernel)
    corners = np.empty(4 * rows * columns, np.int64)
    values = np.empty(rows * columns, np.int64)
    # By place in a window: the channels with a gradient there.
    channels, counts = np.empty((5, outside), np.int64), np.empty(5, np.int64)
    slopes, piece = np.empty((5, outside), np.float32), np.empty(len(taps), np.float32)
    xs, gs, places = x.reshape(-1), g.reshape(-1), marks.reshape(-1)
    d_xs = d_x.reshape(-1)
    for client in range(n):
        total = np.zeros((len(taps), outside), np.float32)
        own, sums = np.ascontiguousarray(weight[client]), np.zeros(outside, np.float32)
        for image in range(client * m, client * m + m):
            for row in range(rows):
                for column in range(columns):
                    window = row * columns + column
                    value = (image * g.shape[2] + row + edge) * g.shape[3] + edge
                    values[window] = (value + column) * outside
                    corner = (image * x.shape[2] + 2 * row) * line + 2 * column * inside
                    for i in range(4):
                        corners[4 * window + i] = (
                            corner + i // 2 * line + i % 2 * inside
                        )
            mark = image * rows * columns * outside
            for c in range(0, outside, LANES):
                whole = len(taps) // 9 * 9
                for i in range(0, whole, 9):
                    _products_9(
                        total, i, c, xs, corners, taps, gs, values, places, mark
                    )
                for i in range(whole, len(taps)):
                    _products_1(
                        total, i, c, xs, corners, taps, gs, values, places, mark
                    )
            for window in range(len(values)):
                value = values[window]
                for c in range(outside):
                    if places[mark + window * outside + c] != NONE:
                        sums[c] += gs[value + c]
            for window in range(len(values) if d_x.size else 0):
                counts[:] = 0
                for c in range(outside):
                    place = places[mark + window * outside + c]
                    slope = gs[values[window] + c]
                    channels[place, counts[place]] = c
                    slopes[place, counts[place]] = slope
                    counts[place] += 1
                for i in range(4):
                    if counts[i] == 0:
                        continue
                    whole = len(taps) // (9 * LANES) * (9 * LANES)
                    for c in range(0, whole, 9 * LANES):
                        _sum_9(piece, c, own, channels[i], slopes[i], counts[i])
                    for c in range(whole, len(taps), LANES):
                        _sum_1(piece, c, own, channels[i], slopes[i], counts[i])
                    for c in range(0, len(taps), LANES):
                        add_vector(d_xs, corners[4 * window + i] + taps[c], piece, c)
        for c in range(outside):
            d_bias[client, c] = sums[c]
            for i in range(len(taps)):
                d_weight[client, c, i] = total[i, c]
