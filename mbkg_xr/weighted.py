"""Weighted sums of the pixels of one slit, and how each depends on what the master was made of.

For a sum T = sum_i h_i (y_i - b_i), with the background of pixel i at wavelength l and position r

    b = response (f g m + p q v),

m the master's pixel mean, f the slit's scale, g the profile and p q v the pedestal, these are the
derivatives of T by the values of m at the nodes along wavelength, by the coefficients of f, by what
is a shutter's own, by the floor of each shutter and wavelength bin, and by the profile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .kernels import kernel
from .models.factor import TO_NODES
from .shutters import CENTRE
from .slit_terms import SlitTerms
from .spans import SpanGrid, find_span
from .terms import BIN_SPANS, profile_at

__all__ = ["COLUMNS", "PARTS", "Master", "slit_sums"]

Array = NDArray[np.float64]

#: What of the pixels is needed.
PIXELS = (
    "flux",
    "error",
    "background",
    "background_error",
    "wavelength",
    "yrel",
    "quality",
    "response",
    "selected",
    "weight",
)
#: Columns of `slit_sums` before those of the master: what adds up over slits.
COLUMNS = ("value", "n_pixels", "n_missing", "noise", "scale", "scale_shared", "floor")
#: Parts of the variance.
PARTS = ("noise", "master", "scale", "floor", "profile", "shared")


@dataclass(frozen=True)
class Master:
    """What of a master the sums need.

    Attributes
    ----------
    grid
        Its spans.
    factor
        ``(span * node, rank)``, of its covariance.
    ratio
        ``(group, span, node)``: errors without each group of slits over those of the whole; one
        group of ones where nothing is left out.
    group
        ``(slit,)``, of the slits of the dataset.
    terms
        What differs from slit to slit.
    fitted
        ``(slit, shutter)``: selected pixels there had a part in the fit.
    heldout
        The master of each slit, and the scale of each shutter, was found without it.
    bad
        Quality bits of pixels without a usable value.
    """

    grid: SpanGrid
    factor: Array
    ratio: Array
    group: NDArray[np.int64]
    terms: SlitTerms
    fitted: NDArray[np.bool_]
    heldout: bool
    bad: int


@kernel
def _add_up(
    flux, error, background, background_error, wavelength, yrel, quality, response, selected,
    weight, label, bad,
    to_nodes, ratio, edges, lookup, step, bin_spans,
    factor, basis, pedestal, profile, along_pedestal, profile_basis, first, pitch, kind,
    first_shutter, fitted, heldout, centre, plain, nodes, shared, coefficients, levels, bins, along,
):  # pragma: no cover - compiled  # fmt: skip
    shutters = factor.shape[0]
    has_response = response.shape[0] > 0
    has_selected = selected.shape[0] > 0
    has_profile = kind >= 0 and profile.shape[0] > 0
    for i in range(flux.shape[0]):
        for j in range(flux.shape[1]):
            k, h = label[i, j], np.float64(weight[i, j])
            if k < 0 or h == 0 or np.isnan(h):
                continue
            y, b = np.float64(flux[i, j]), np.float64(background[i, j])
            e, eb = np.float64(error[i, j]), np.float64(background_error[i, j])
            n, t = find_span(np.float64(wavelength[i, j]), edges, lookup, step)
            fine = np.isfinite(y) and np.isfinite(b) and np.isfinite(eb) and e > 0
            if n < 0 or not (fine and np.isfinite(e)) or quality[i, j] & bad:
                plain[k, 2] += 1
                continue
            plain[k, 0] += h * y
            plain[k, 1] += 1
            plain[k, 3] += h * h * max(e - eb, 0.0) * (e + eb)
            r = np.float64(yrel[i, j])
            c = np.float64(response[i, j]) if has_response else 1.0
            z = min(max(int(np.floor(r + 0.5)) - first_shutter, 0), shutters - 1)
            f = factor[z, n]
            g = profile_at(profile, first, pitch, kind, r, n + t)
            other = pedestal[n]
            if along_pedestal.shape[0] > 0 and other != 0:
                other *= profile_at(along_pedestal, first, pitch, kind, r, n + t)
            level = h * (b - c * other)
            fit = has_selected and selected[i, j] and fitted[z]
            for m in range(4):
                at = ((to_nodes[3, m] * t + to_nodes[2, m]) * t + to_nodes[1, m]) * t
                at = (at + to_nodes[0, m]) * ratio[n, m] * h * c * f * g
                nodes[k, n, m] += at
                if fit and not heldout:
                    shared[k, n, m] += at
            if f != 0:
                # Scales are found at shutter centres.
                both = 2 if fit and abs(r - np.floor(r + 0.5)) <= centre else 1
                for u in range(both):
                    for o in range(basis.shape[1]):
                        coefficients[u, k, z, o] += level / f * basis[n, o]
                    levels[u, k, z] += level / f
            bins[k, z, n // bin_spans] += level
            if has_profile and g != 0:
                # As `profile_at` does it: bilinear between nodes and bins.
                p = (r - first) / pitch
                node = min(max(int(np.floor(p)), 0), profile.shape[1] - 2)
                p = min(max(p - node, 0.0), 1.0)
                q = (n + t) / bin_spans - 0.5
                low = min(max(int(np.floor(q)), 0), max(profile.shape[2] - 2, 0))
                q = min(max(q - low, 0.0), 1.0)
                high = min(low + 1, profile.shape[2] - 1)
                for o in range(profile_basis.shape[1]):
                    part = (1 - q) * profile_basis[low, o] + q * profile_basis[high, o]
                    along[k, node, o] += level / g * (1 - p) * part
                    along[k, node + 1, o] += level / g * p * part


def slit_sums(
    pixels: dict[str, NDArray], slit: int, master: Master
) -> tuple[NDArray[np.int64], Array]:
    """Sums of one slit.

    Parameters
    ----------
    pixels
        Its `PIXELS` ``(y, x)``, ``response`` and ``selected`` empty where there are none, and
        ``label``, the sum each pixel belongs to, -1 for none.
    slit
        Its index in the dataset.
    master
        The master, made ready for the dataset.

    Returns
    -------
    rows
        The sums that have pixels here.
    columns
        ``(row, column)``: `COLUMNS`, then by kind of slitlet the profile's part in terms of its
        factor, and the master's part and that of the pixels fitted in terms of the master's. Once
        added up over all slits, their squares are variances.
    """
    grid, terms = master.grid, master.terms
    spans, rank = grid.size, master.factor.shape[1]
    n_bins = -(-spans // BIN_SPANS)
    basis, table = terms.basis, terms.profile
    factor = 1.0 + terms.scale[slit] @ basis.T
    pedestal = terms.pedestal[slit] * terms.pedestal_shape
    kind = int(terms.kind[slit])
    shutters, order = factor.shape[0], basis.shape[1]
    label = pixels["label"]
    rows, compact = np.unique(label, return_inverse=True)
    compact = compact.reshape(label.shape) - np.count_nonzero(rows < 0)
    rows = rows[rows >= 0]
    n_sums = rows.size
    # Pages of memory that no pixel touches are never made.
    plain = np.zeros((n_sums, len(COLUMNS)))
    nodes, shared = np.zeros((2, n_sums, spans, TO_NODES.shape[1]))
    # Of all pixels, and of those that the scales were found from.
    coefficients, levels = np.zeros((2, n_sums, shutters, order)), np.zeros((2, n_sums, shutters))
    bins = np.zeros((n_sums, shutters, n_bins))
    along = np.zeros((n_sums, table.values.shape[1], table.basis.shape[1]))
    _add_up(
        *(pixels[name] for name in PIXELS), compact, pixels["quality"].dtype.type(master.bad),
        TO_NODES, master.ratio[master.group[slit]], grid.edges, grid.lookup, grid.step, BIN_SPANS,
        factor, basis, pedestal, table.values, table.pedestal, table.basis, table.first, table.step,
        kind, terms.first_shutter, np.resize(master.fitted[slit], shutters),
        master.heldout, CENTRE, plain, nodes, shared, coefficients, levels, bins, along,
    )  # fmt: skip
    plain[:, 4:6] = _scale_parts(coefficients, levels, terms, slit, master.heldout)
    plain[:, 6] = terms.floor**2 * np.square(bins).sum(axis=(1, 2))
    kinds, _, _, profile_rank = table.factor.shape
    by_kind = np.zeros((n_sums, kinds, profile_rank))
    if kind >= 0:
        by_kind[:, kind] = np.einsum("tyo,yor->tr", along, table.factor[kind])
    parts = [np.empty((n_sums, rank)) for _ in range(2)]
    for part, of in zip(parts, (nodes, shared), strict=True):
        for i in range(n_sums):
            # A sum over few wavelengths meets few rows of the factor.
            low, high = _extent(of[i])
            node = slice(low * TO_NODES.shape[1], high * TO_NODES.shape[1])
            part[i] = of[i, low:high].ravel() @ master.factor[node]
    return rows, np.concatenate(
        [plain, by_kind.reshape(n_sums, kinds * profile_rank), *parts], axis=1
    )


def _scale_parts(
    coefficients: Array, levels: Array, terms: SlitTerms, slit: int, heldout: bool
) -> Array:
    """``(sum, 2)``: what errors of a slit's scale add, and what the pixels they came from share.

    With A the information of all shutters and C_z the covariance without shutter z, the estimates
    without z and without another y have the covariance ``C_z + C_y - C_z A C_y``. Where nothing is
    held out all C_z are the inverse of A.
    """
    coefficients = coefficients + levels[..., None] * terms.slope[slit]
    each = terms.covariance[slit]
    information = np.linalg.pinv(terms.whole[slit])
    together = each[:, None] + each[None] - np.einsum("zop,pq,yqr->zyor", each, information, each)
    z = np.arange(each.shape[0])
    together[z, z] = each
    every = coefficients[0]
    variance = np.einsum("tzo,zyop,typ->t", every, together, every, optimize=True)
    variance = np.maximum(variance, 0.0) + np.square(levels[0]) @ terms.own[slit]
    if heldout:
        # The noise of a shutter's pixels has no part in its own scale, and that it has one in the
        # scales of the slit's other shutters is left out: sums over several are the safer for it.
        return np.stack([variance, np.zeros_like(variance)], axis=1)
    shared = ((every.sum(axis=1) @ terms.whole[slit]) * coefficients[1].sum(axis=1)).sum(axis=1)
    shared += (levels[0] * levels[1]) @ terms.own[slit]
    return np.stack([variance, -2 * shared], axis=1)


@kernel
def _extent(nodes):  # pragma: no cover - compiled
    """First span with anything and the one past the last."""
    low, high = 0, 0
    for n in range(nodes.shape[0]):
        for m in range(nodes.shape[1]):
            if nodes[n, m] != 0:
                if high == 0:
                    low = n
                high = n + 1
                break
    return low, high
