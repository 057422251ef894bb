"""The direction of largest variance among weighted rows, in a bounded time."""

import numpy as np

from flwr_ctma.engine.stack import Float64

__all__ = ["top_direction"]

# Up to this number of rows LAPACK is as fast as Lanczos's method.
_SMALL = 160
_STEPS = 64
_CHECK = 8
_TOLERANCE = 1e-12


def top_direction(gram: Float64, p: Float64, guess: Float64) -> tuple[float, Float64]:
    """Return the largest variance of rows, and ⟨v, x_i − μ⟩ along its direction v.

    With up to 160 rows from all eigenvalues; with more by Lanczos's method with full
    orthogonalisation. That stops at a residual of 1e-12 of the eigenvalue, or after 64
    products with the Gram matrix, as at near ties, where every direction of the tied
    space has nearly the largest variance.

    Parameters
    ----------
    gram : ndarray of shape (n, n)
        Inner products of the rows x_i about any point.
    p : ndarray of shape (n,)
        Weights of the rows, with a sum of 1; μ = Σ p_i x_i.
    guess : ndarray of shape (n,)
        ⟨v, x_i − μ⟩ for similar weights, or zeros.
    """
    root = np.sqrt(p)
    if len(p) <= _SMALL:
        to_mean = gram @ p
        centred = gram - to_mean[:, None] - to_mean + p @ to_mean
        values, vectors = np.linalg.eigh(root[:, None] * centred * root)
        top, vector = float(values[-1]), vectors[:, -1]
    else:
        top, vector = _lanczos(gram, p, root, root * guess)
    if top <= 0:
        return 0.0, np.zeros(len(p))
    return top, _centred(gram, p, root * vector) / np.sqrt(top)


def _centred(gram: Float64, p: Float64, vector: Float64) -> Float64:
    """Multiply a vector by the Gram matrix about the mean μ."""
    image: Float64 = gram @ (vector - p * vector.sum())
    image -= p @ image
    return image


def _lanczos(
    gram: Float64, p: Float64, root: Float64, guess: Float64
) -> tuple[float, Float64]:
    noise = root * np.random.default_rng(0).standard_normal(len(p))
    length = float(np.linalg.norm(guess)) or 1.0
    first = guess / length + 0.1 * noise / np.linalg.norm(noise)
    basis = np.empty((_STEPS, len(p)))
    basis[0] = first / np.linalg.norm(first)
    diagonal, beside = np.empty(_STEPS), np.empty(_STEPS)
    for k in range(1, _STEPS + 1):
        image = root * _centred(gram, p, root * basis[k - 1])
        diagonal[k - 1] = basis[k - 1] @ image
        for _ in range(2):
            image -= (basis[:k] @ image) @ basis[:k]
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
