"""Compiled linear algebra of banded, symmetric systems: the normal equations of local bases.

A matrix is held by its lower bands, ``bands[d, j] = A[j + d, j]``, as `scipy.linalg` does. A spline
has four bands, whatever the number of its coefficients, so that everything here takes time in
proportion to that number: also the elements of the inverse within the bands, which are all that
errors of a local basis and effective numbers of parameters need.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels import kernel

__all__ = [
    "DIFFERENCE",
    "accumulate_normal",
    "banded_factor",
    "banded_solve",
    "inverse_bands",
    "quadratic_forms",
    "second_differences",
    "trace_of_product",
    "without_each",
]

Array = NDArray[np.float64]

#: Second difference of three coefficients.
DIFFERENCE = np.array([1.0, -2.0, 1.0])


@kernel
def accumulate_normal(
    moments, spans, first, coef, offset, bands, rhs
):  # pragma: no cover - compiled
    """Add up normal equations of each group from the moments of each span.

    ``moments (group, span, 12)``; the basis is ``coef (i, 4, width)`` on ``spans[i]``, beginning
    with function ``first[i]``; ``offset (span, 4)`` is taken off the data; results go to
    ``bands (group, width, size)`` and ``rhs (group, size)``.
    """
    width = coef.shape[2]
    product = np.empty((4, width))
    data = np.empty(4)
    for g in range(moments.shape[0]):
        for i in range(spans.shape[0]):
            m = moments[g, spans[i]]
            if not m.any():
                continue
            for p in range(4):
                data[p] = m[7 + p]
                for q in range(4):
                    data[p] -= m[p + q] * offset[spans[i], q]
                for a in range(width):
                    total = 0.0
                    for q in range(4):
                        total += m[p + q] * coef[i, q, a]
                    product[p, a] = total
            for a in range(width):
                for p in range(4):
                    rhs[g, first[i] + a] += coef[i, p, a] * data[p]
                for b in range(a + 1):
                    total = 0.0
                    for p in range(4):
                        total += coef[i, p, a] * product[p, b]
                    bands[g, a - b, first[i] + b] += total


@kernel
def _factor(a):  # pragma: no cover - compiled
    """Cholesky factor in place, ``a[j, d]``; False where the matrix is not positive definite."""
    k, width = a.shape
    for j in range(k):
        if not a[j, 0] > 0:
            return False
        a[j, 0] = np.sqrt(a[j, 0])
        last = min(width, k - j)
        for d in range(1, last):
            a[j, d] /= a[j, 0]
        for d in range(1, last):
            for e in range(d, last):
                a[j + d, e - d] -= a[j, e] * a[j, d]
    return True


@kernel
def _solve(a, x):  # pragma: no cover - compiled
    k, width = a.shape
    for j in range(k):
        x[j] /= a[j, 0]
        for d in range(1, min(width, k - j)):
            x[j + d] -= a[j, d] * x[j]
    for j in range(k - 1, -1, -1):
        for d in range(1, min(width, k - j)):
            x[j] -= a[j, d] * x[j + d]
        x[j] /= a[j, 0]


@kernel
def _inverse(a, z):  # pragma: no cover - compiled
    """Elements of the inverse within the bands, from the last column on (Takahashi et al. 1973)."""
    k, width = a.shape
    for j in range(k - 1, -1, -1):
        last = min(width, k - j)
        for d in range(last - 1, -1, -1):
            total = 1 / a[j, 0] if d == 0 else 0.0
            for e in range(1, last):
                # z is symmetric: its element (j + d, j + e).
                low, high = min(d, e), max(d, e)
                total -= a[j, e] * z[j + low, high - low]
            z[j, d] = total / a[j, 0]


@kernel
def _without(total, right, bands, rhs, coefficients, inverses):  # pragma: no cover - compiled
    width, k = total.shape
    work = np.empty((k, width))
    for g in range(bands.shape[0]):
        for j in range(k):
            coefficients[g, j] = right[j] - rhs[g, j]
            for d in range(width):
                work[j, d] = total[d, j] - bands[g, d, j]
        if not _factor(work):
            return False
        _solve(work, coefficients[g])
        if inverses.shape[0] > 0:
            _inverse(work, inverses[g])
    return True


@kernel
def _quadratic(bands, rhs, coefficients, out):  # pragma: no cover - compiled
    _, width, k = bands.shape
    for g in range(bands.shape[0]):
        c = coefficients[g]
        total = 0.0
        for j in range(k):
            total += c[j] * (bands[g, 0, j] * c[j] - 2 * rhs[g, j])
            for d in range(1, min(width, k - j)):
                total += 2 * bands[g, d, j] * c[j] * c[j + d]
        out[g] = total


# ------------------------------------------------------------------------------------------------


def banded_factor(bands: Array) -> Array:
    """Cholesky factor ``(size, width)`` of a banded matrix.

    Raises
    ------
    numpy.linalg.LinAlgError
        Where the matrix is not positive definite.
    """
    factor = np.ascontiguousarray(bands.T, dtype=np.float64).copy()
    if not _factor(factor):
        raise np.linalg.LinAlgError("not positive definite")
    return factor


def banded_solve(factor: Array, rhs: Array) -> Array:
    """Solution for one right-hand side."""
    x = np.array(rhs, dtype=np.float64)
    _solve(factor, x)
    return x


def inverse_bands(factor: Array) -> Array:
    """Bands ``(width, size)`` of the inverse."""
    out = np.zeros_like(factor)
    _inverse(factor, out)
    return np.ascontiguousarray(out.T)


def without_each(
    total: Array, right: Array, bands: Array, rhs: Array, *, inverse: bool = False
) -> tuple[Array, Array]:
    """Solutions ``(group, size)`` without each group, and the bands of the inverses if asked for.

    Raises
    ------
    numpy.linalg.LinAlgError
        Where a matrix is not positive definite.
    """
    groups, width, k = bands.shape
    coefficients = np.empty((groups, k))
    inverses = np.zeros((groups if inverse else 0, k, width))
    if not _without(total, right, bands, rhs, coefficients, inverses):
        raise np.linalg.LinAlgError("not positive definite")
    return coefficients, np.ascontiguousarray(inverses.transpose(0, 2, 1))


def quadratic_forms(bands: Array, rhs: Array, coefficients: Array) -> Array:
    """``c A c - 2 c r`` of each group: its chi2 less the sum of its squares."""
    out = np.empty(bands.shape[0])
    wide = np.broadcast_to(coefficients, rhs.shape)
    _quadratic(bands, rhs, np.ascontiguousarray(wide), out)
    return out


def second_differences(weight: Array) -> Array:
    """Bands of ``D.T diag(weight) D``, D the second differences of the coefficients.

    Examples
    --------
    >>> second_differences(np.array([2.0])).tolist()
    [[2.0, 8.0, 2.0], [-4.0, -4.0, 0.0], [2.0, 0.0, 0.0]]
    """
    n = weight.size
    out = np.zeros((3, n + 2))
    for a in range(3):
        for b in range(a + 1):
            out[a - b, b : b + n] += DIFFERENCE[a] * DIFFERENCE[b] * weight
    return out


def trace_of_product(a: Array, b: Array) -> float:
    """Trace of A B, from bands of which A has all that B is not zero in."""
    return float((a[0] * b[0]).sum() + 2 * (a[1:] * b[1:]).sum())
