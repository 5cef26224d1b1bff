"""The low-rank factor of a model's covariance along wavelength."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse import csr_array

from .basis import ERROR_NODES, Basis

__all__ = ["LOSS", "TO_NODES", "covariance_factor", "low_rank"]

Array = NDArray[np.float64]

#: Largest share of the variance that a factor leaves out, at any node.
LOSS = 1e-3
#: ``(power, node)``: what values at `ERROR_NODES` say of a cubic's value at t, in powers of t. Four
#: nodes determine the cubic, so that between them nothing is lost.
TO_NODES = np.linalg.inv(np.vander(ERROR_NODES, 4, increasing=True)).copy()

_AT_A_TIME = 128  # eigenvectors


def covariance_factor(basis: Basis, covariance: Array, n_spans: int) -> Array:
    """Factor F with ``F F^T`` the covariance of a model's values at `ERROR_NODES`.

    Parameters
    ----------
    basis
        The model on each span (of pixel means, if the factor is to be of those).
    covariance
        ``(size, size)``, of its coefficients.
    n_spans
        Number of spans.

    Returns
    -------
    numpy.ndarray
        ``(span, node, rank)``; zero on spans without basis. The rank is the least that leaves no
        node with less than ``1 - LOSS`` of its variance, by the largest eigenvalues of the
        correlation matrix (principal components).
    """
    powers = np.vander(ERROR_NODES, 4, increasing=True)
    values = np.einsum("em,smw->sew", powers, basis.coef)
    spans, nodes, width = values.shape
    # Of thousands of coefficients all their values together would be gigabytes: what is asked of
    # them goes by the few that each depends on, and by the coefficients' own covariance.
    own = basis.first[:, None] + np.arange(width)
    near = covariance[own[:, :, None], own[:, None, :]]
    size = np.sqrt(np.maximum(np.einsum("sea,sab,seb->se", values, near, values), 0.0)).ravel()
    scaled = values.reshape(-1, width) / np.where(size > 0, size, 1.0)[:, None]
    scaled[size == 0] = 0.0
    start = np.arange(spans * nodes + 1) * width
    column = np.repeat(own, nodes, axis=0).ravel()
    design = csr_array((scaled.ravel(), column, start), shape=(spans * nodes, basis.size))
    root = _root(covariance)
    gram = root.T @ ((design.T @ design) @ root)
    out = _principal(gram, lambda some: design @ (root @ some), size > 0, LOSS)
    whole = np.zeros((n_spans, nodes, out.shape[1]))
    whole[basis.spans] = (out * size[:, None]).reshape(spans, nodes, -1)
    return whole


def _root(covariance: Array) -> Array:
    """A square root R, with ``R R^T`` the covariance."""
    try:
        root: Array = np.linalg.cholesky(covariance).astype(np.float64)
        return root
    except np.linalg.LinAlgError:
        # Rounding may leave a covariance of nearly dependent coefficients a hair below zero.
        variances, vectors = eigh(0.5 * (covariance + covariance.T))
        return vectors * np.sqrt(np.maximum(variances, 0.0))


def low_rank(rows: Array, loss: float = LOSS) -> Array:
    """The rows in fewer columns, with no row losing more than a share of its square.

    Parameters
    ----------
    rows
        ``(row, column)``.
    loss
        The share.

    Examples
    --------
    >>> low_rank(np.array([[1.0, 0.0, 1e-3], [0.0, 1.0, 0.0]])).shape
    (2, 2)
    """
    size = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    scaled = rows / np.where(size > 0, size, 1.0)
    turned = _principal(scaled.T @ scaled, lambda some: scaled @ some, size[:, 0] > 0, loss)
    return np.ascontiguousarray(turned * size)


def _principal(
    gram: Array, project: Callable[[Array], Array], known: NDArray[np.bool_], loss: float
) -> Array:
    """Rows of length one on as few eigenvectors of their Gram matrix as keep all but `loss` of each
    row; one at least.

    Parameters
    ----------
    gram
        ``(column, column)``
    project
        Of ``(column, k)`` vectors the rows' products with them.
    known
        Which rows are of length one; the others are zero.
    loss
        The share.
    """
    _, vectors = eigh(gram)
    parts: list[Array] = []
    left = known.astype(np.float64)
    while not parts or (vectors.shape[1] and left.max() > loss):
        some, vectors = vectors[:, : -_AT_A_TIME - 1 : -1], vectors[:, :-_AT_A_TIME]
        found = project(some)
        after = left[:, None] - np.cumsum(np.square(found), axis=1)
        enough = after.max(axis=0) <= loss
        rank = int(np.argmax(enough)) + 1 if enough.any() else enough.size
        found = found[:, :rank]
        # The sign of an eigenvector is anyone's: fixed here, the same sums give the same factor.
        largest = found[np.abs(found).argmax(axis=0), np.arange(rank)]
        parts.append(found * np.where(largest < 0, -1.0, 1.0))
        left = after[:, rank - 1]
    return np.concatenate(parts, axis=1)
