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
    "likely_weights",
    "quadratic_forms",
    "second_differences",
    "trace_of_product",
    "without_each",
]

Array = NDArray[np.float64]

#: Second difference of three coefficients.
DIFFERENCE = np.array([1.0, -2.0, 1.0])
_IN_STEP = 16  # groups


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
def _without_in_step(total, right, bands, rhs, coefficients):  # pragma: no cover - compiled
    """The same without inverses, some groups in step: each waits for its own pivots only."""
    width, k = total.shape
    work, x = np.empty((k, width, _IN_STEP)), np.empty((k, _IN_STEP))
    for first in range(0, bands.shape[0], _IN_STEP):
        n = min(_IN_STEP, bands.shape[0] - first)
        for g in range(_IN_STEP):
            at = first + min(g, n - 1)
            for j in range(k):
                x[j, g] = right[j] - rhs[at, j]
                for d in range(width):
                    work[j, d, g] = total[d, j] - bands[at, d, j]
        for j in range(k):
            last = min(width, k - j)
            if not work[j, 0].min() > 0:
                return False
            for g in range(_IN_STEP):
                work[j, 0, g] = 1 / np.sqrt(work[j, 0, g])
                x[j, g] *= work[j, 0, g]
            for d in range(1, last):
                for g in range(_IN_STEP):
                    work[j, d, g] *= work[j, 0, g]
                    x[j + d, g] -= work[j, d, g] * x[j, g]
            for d in range(1, last):
                for e in range(d, last):
                    for g in range(_IN_STEP):
                        work[j + d, e - d, g] -= work[j, e, g] * work[j, d, g]
        for j in range(k - 1, -1, -1):
            for d in range(1, min(width, k - j)):
                for g in range(_IN_STEP):
                    x[j, g] -= work[j, d, g] * x[j + d, g]
            for g in range(_IN_STEP):
                x[j, g] *= work[j, 0, g]
        coefficients[first : first + n] = x[:, :n].T
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


@kernel
def likely_weights(
    bands, right, information, hats, weight, prior, steps, dispersion, pixels, squares, least, most
):  # pragma: no cover - compiled
    """Weights of second differences, each a factor of one of the hats, moved to the maximum of the
    restricted likelihood by so many steps, in place; False where a matrix is not positive definite.

    NaN for `dispersion` takes it from the fit itself (see `mbkg_xr.models.penalised`).
    """
    width, k = bands.shape
    n, tiny = information.size, np.finfo(np.float64).tiny
    a, z, c = np.empty((k, width)), np.zeros((k, width)), np.empty(k)
    d, found, asked = np.empty(n), np.empty(n), np.empty(n)
    for _ in range(steps):
        for j in range(k):
            c[j] = right[j]
            for e in range(width):
                a[j, e] = bands[e, j]
        d[:] = 0.0
        for i in range(weight.size):
            for j in range(n):
                d[j] += weight[i] * hats[i, j]
        for j in range(n):
            for p in range(3):
                for q in range(p, 3):
                    a[j + p, q - p] += DIFFERENCE[p] * DIFFERENCE[q] * information[j] * d[j]
        if not _factor(a):
            return False
        _solve(a, c)
        _inverse(a, z)
        excess = dispersion
        if np.isnan(dispersion):
            # What errors do not account for counts as noise, not as sky.
            chi2, freedom = squares, float(pixels)
            for j in range(k):
                chi2 += c[j] * (bands[0, j] * c[j] - 2 * right[j])
                freedom -= z[j, 0] * bands[0, j]
                for e in range(1, min(width, k - j)):
                    chi2 += 2 * bands[e, j] * c[j] * c[j + e]
                    freedom -= 2 * z[j, e] * bands[e, j]
            excess = chi2 / max(freedom, 1.0)
        for j in range(n):
            bend = variance = 0.0
            for p in range(3):
                bend += DIFFERENCE[p] * c[j + p]
                for q in range(p, 3):
                    times = 1.0 if p == q else 2.0
                    variance += times * DIFFERENCE[p] * DIFFERENCE[q] * z[j + p, q - p]
            found[j] = 1 / d[j] - information[j] * variance
            asked[j] = information[j] * bend * bend
        usual = np.median(weight)
        for i in range(weight.size):
            up = down = 0.0
            for j in range(n):
                up += hats[i, j] * found[j]
                down += hats[i, j] * asked[j]
            down = down / max(excess, tiny) + prior / usual + 1e-300
            weight[i] = min(max((weight[i] * max(up, 0.0) + prior) / down, least), most)
    return True


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
    solved = (
        _without(total, right, bands, rhs, coefficients, inverses)
        if inverse
        else _without_in_step(total, right, bands, rhs, coefficients)
    )
    if not solved:
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
