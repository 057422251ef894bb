"""The top eigenpair of a large symmetric matrix, in a bounded number of steps."""

import numpy as np

from flwr_ctma.engine.stack import Float64

__all__ = ["top_eigenpair"]

# Up to this size LAPACK is as fast.
_SMALL = 160
_STEPS = 96
_CHECK = 8
_TOLERANCE = 1e-12


def top_eigenpair(matrix: Float64, start: Float64) -> tuple[float, Float64]:
    """Return the largest eigenvalue of a positive semidefinite matrix and its vector.

    Matrices of more than 160 rows are left to Lanczos's method with full
    orthogonalisation. It stops at a residual of 1e-12 of the eigenvalue, or after 96
    products with the matrix: at near ties, where any vector of the tied space has
    nearly the largest value.

    Parameters
    ----------
    matrix : ndarray of shape (n, n)
    start : ndarray of shape (n,)
        A guess, such as the vector of a similar matrix. A fixed random vector is added.
    """
    n = len(matrix)
    if n <= _SMALL:
        values, vectors = np.linalg.eigh(matrix)
        return float(values[-1]), vectors[:, -1]
    noise = np.random.default_rng(0).standard_normal(n)
    length = float(np.linalg.norm(start)) or 1.0
    first = start / length + 0.1 * noise / np.linalg.norm(noise)
    basis = np.empty((_STEPS, n))
    basis[0] = first / np.linalg.norm(first)
    diagonal, beside = np.empty(_STEPS), np.empty(_STEPS)
    for k in range(1, _STEPS + 1):
        image = matrix @ basis[k - 1]
        diagonal[k - 1] = basis[k - 1] @ image
        for _ in range(2):
            image = image - (basis[:k] @ image) @ basis[:k]
        beside[k - 1] = np.linalg.norm(image)
        last = k == _STEPS or beside[k - 1] <= _TOLERANCE * abs(diagonal[:k]).max()
        if last or k % _CHECK == 0:
            small = np.diag(diagonal[:k])
            small[np.arange(k - 1), np.arange(1, k)] = beside[: k - 1]
            values, vectors = np.linalg.eigh(small, UPLO="U")
            if last or beside[k - 1] * abs(vectors[-1, -1]) <= _TOLERANCE * values[-1]:
                break
        basis[k] = image / beside[k - 1]
    vector: Float64 = vectors[:, -1] @ basis[:k]
    return float(values[-1]), vector
