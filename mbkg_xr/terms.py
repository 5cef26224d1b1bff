"""What differs from slit to slit, as the fit, its diagnostics and the projection all apply it.

The expected signal of a pixel at wavelength l and position r along slit j is

    f_j(l) g(r, l) S(l) + p_j q(l) v(r, l),

S the master (at the time of the slit, where it changes), f the slit's scale (a low Legendre series
in the phase of l, which is its logarithm, from -1 to 1 over the fitted range), g the residual
bar-shadow profile, p a pedestal, q its shape and v how it goes along the slit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .kernels import kernel

__all__ = [
    "BIN_SPANS",
    "FIRST_SHUTTER",
    "N_SHUTTERS",
    "ProfileTable",
    "Terms",
    "bin_phase",
    "profile_at",
    "profile_layer",
    "profile_place",
    "shutter_of",
]

Array = NDArray[np.float64]

#: Spans in one wavelength bin of residual histograms, noise sums, shutter sums and profiles.
BIN_SPANS = 16
#: Shutters told apart, by yrel: those of a slitlet of five; longer ones fold into the outermost.
FIRST_SHUTTER, N_SHUTTERS = -2, 5


@dataclass(frozen=True)
class ProfileTable:
    """Bar-shadow profiles on a grid in yrel and wavelength bins, one a kind of slitlet.

    Attributes
    ----------
    first, step
        yrel of the first node and between nodes.
    values
        ``(kind, node, bin)``; bilinear between nodes and bin centres, held beyond. Empty: 1.
    error
        Its standard error.
    kinds
        Numbers of open shutters, one a kind.
    factor
        ``(kind, node, order, rank)``, of the covariance of the coefficients of `basis`.
    basis
        ``(bin, order)``, the series in wavelength that errors follow at each node.
    pedestal
        As `values`: what a pedestal is there. Empty: the same all along the slit.
    """

    first: float = 0.0
    step: float = 1.0
    values: Array = field(default_factory=lambda: np.empty((0, 0, 0)))
    error: Array = field(default_factory=lambda: np.empty((0, 0, 0)))
    kinds: tuple[int, ...] = ()
    factor: Array = field(default_factory=lambda: np.empty((0, 0, 0, 0)))
    basis: Array = field(default_factory=lambda: np.empty((0, 0)))
    pedestal: Array = field(default_factory=lambda: np.empty((0, 0, 0)))

    def index(self, n_shutters: NDArray) -> NDArray[np.int64]:
        """Kind of each slit, -1 where no profile is known for it."""
        rank = {k: i for i, k in enumerate(self.kinds)}
        return np.array([rank.get(int(n), -1) for n in n_shutters], dtype=np.int64)

    @property
    def place(self) -> Array:
        """What `profile_place` asks for: yrel of the first node, and nodes a pitch."""
        return np.array([self.first, 1 / self.step])

    def rows(self, kind: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of `stacked` for kinds of slits: the last one for those of no kind."""
        return np.where(kind < 0, len(self.kinds), kind)

    def stacked(self) -> Array:
        """``(kind + 1, node, bin, 3)``: profile, pedestal and error of the profile.

        Kernels find all three in one place; the last row is of slits of no kind, and says nothing.
        """
        nodes, bins = self.values.shape[1:] if self.kinds else (2, 2)
        out = np.zeros((len(self.kinds) + 1, max(nodes, 2), max(bins, 2), 3))
        out[..., :2] = 1.0
        if self.kinds:
            for k, values in enumerate((self.values, self.pedestal, self.error)):
                if values.size:
                    out[:-1, ..., k] = values
        return out


@dataclass(frozen=True)
class Terms:
    """Terms of a set of slits.

    Attributes
    ----------
    scale
        ``(slit, order)``, Legendre coefficients of ``f - 1``.
    phase
        ``(span,)``, -1 to 1 over the fitted range and held beyond it.
    pedestal
        ``(slit,)``, in units of `pedestal_shape`.
    pedestal_shape
        ``(span,)``, in units of flux.
    profile
        Bar-shadow profiles.
    kind
        ``(slit,)``, of the profiles; -1 for none.
    level
        ``(slit, shutter)``, what each shutter adds to f of its own.
    used
        ``(slit, shutter)``, shutters that see only sky.
    leak
        ``(slit, shutter)``, share of the slit's source in each of them.
    light
        ``(slit, bin)``, light of the slit's source as a share of the master.
    times, drift
        ``(slit, term)`` and ``(term, span)``: the master at the time of a slit is
        ``1 + times @ drift`` of itself; empty where it does not change.
    """

    scale: Array
    phase: Array
    pedestal: Array
    pedestal_shape: Array
    profile: ProfileTable
    kind: NDArray[np.int64]
    level: Array
    used: NDArray[np.bool_]
    leak: Array
    light: Array
    times: Array = field(default_factory=lambda: np.empty((0, 0)))
    drift: Array = field(default_factory=lambda: np.empty((0, 0)))

    @classmethod
    def none(cls, n_slits: int, n_spans: int) -> Terms:
        """All slits alike."""
        return cls(
            np.zeros((n_slits, 1)),
            np.zeros(n_spans),
            np.zeros(n_slits),
            np.zeros(n_spans),
            ProfileTable(),
            np.full(n_slits, -1, dtype=np.int64),
            np.zeros((n_slits, N_SHUTTERS)),
            np.ones((n_slits, N_SHUTTERS), dtype=np.bool_),
            np.zeros((n_slits, N_SHUTTERS)),
            np.zeros((n_slits, -(-n_spans // BIN_SPANS))),
        )

    def part(self, slits: slice | NDArray[np.int64]) -> Terms:
        """The same for some of the slits."""
        names = ["scale", "pedestal", "kind", "level", "used", "leak", "light"]
        if self.drift.size:
            names.append("times")
        return replace(self, **{name: getattr(self, name)[slits] for name in names})

    def factor(self) -> Array:
        """``(slit, span)``, f."""
        return 1.0 + self.scale @ self.basis().T

    def basis(self) -> Array:
        """``(span, order)``, of the scales."""
        return np.ascontiguousarray(legendre.legvander(self.phase, self.scale.shape[1] - 1))

    def change(self) -> Array:
        """``(slit, span)``, the master at the slit's time over the master."""
        if not self.drift.size:
            return np.ones((self.scale.shape[0], self.phase.size))
        return 1.0 + self.times @ self.drift

    def offset(self) -> Array:
        """``(slit, span)``, the pedestal in units of flux."""
        return self.pedestal[:, None] * self.pedestal_shape

    def stray(self) -> Array:
        """``(slit, shutter, span)``, light of the slit's source as a share of the master."""
        spans = (np.arange(self.phase.size) + 0.5) / BIN_SPANS - 0.5
        low = np.clip(np.floor(spans).astype(int), 0, max(self.light.shape[1] - 2, 0))
        high = np.minimum(low + 1, self.light.shape[1] - 1)
        part = np.clip(spans - low, 0.0, 1.0)
        light = self.light[:, low] * (1 - part) + self.light[:, high] * part
        return self.leak[:, :, None] * light[:, None, :]


@kernel(inline="always")
def shutter_of(yrel):  # pragma: no cover - compiled
    """Index of the shutter a pixel looks through."""
    return min(max(int(np.floor(yrel + 0.5)) - FIRST_SHUTTER, 0), N_SHUTTERS - 1)


def bin_phase(edges: Array, covered: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Phase of spans and of bins: -1 to 1 from the first covered span to the last, held beyond.

    Linear in log wavelength: what throughputs differ by goes with powers of the wavelength, and a
    cubic of it follows the flats of real PRISM slits better than one of the detector pixel.
    """
    inside = np.flatnonzero(covered)
    low, high = np.log(edges[[inside[0], inside[-1] + 1]])
    spans = np.arange(covered.size) + 0.5
    bins = (np.arange(-(-covered.size // BIN_SPANS)) + 0.5) * BIN_SPANS

    def phase(u: NDArray) -> Array:
        at = np.interp(u, np.arange(edges.size), np.log(edges))
        return np.clip((2 * at - low - high) / (high - low), -1.0, 1.0)

    return phase(spans), phase(bins)


@kernel(inline="always")
def light_at(light, n, bin_spans):  # pragma: no cover - compiled
    """Light of a slit's source ``(bin,)`` in the middle of span n, linear between bins."""
    at = (n + 0.5) / bin_spans - 0.5
    k = min(max(int(np.floor(at)), 0), max(light.shape[0] - 2, 0))
    part = min(max(at - k, 0.0), 1.0)
    return light[k] * (1 - part) + light[min(k + 1, light.shape[0] - 1)] * part


@kernel(inline="always")
def profile_place(profile, place_of, yrel, u):  # pragma: no cover - compiled
    """Where a stacked profile of one kind is read at yrel and detector-pixel coordinate u: the
    node, the bin, and the weights of (node, bin), (node, bin + 1), (node + 1, bin) and the last.
    """
    nodes, bins, _ = profile.shape
    p, q = (yrel - place_of[0]) * place_of[1], u * (1 / BIN_SPANS) - 0.5
    # Written out: what compilers make of min and max has branches. NaN stays NaN.
    p = 0.0 if p < 0.0 else (nodes - 1.0 if p > nodes - 1.0 else p)
    q = 0.0 if q < 0.0 else (bins - 1.0 if q > bins - 1.0 else q)
    i, k = min(max(int(p), 0), nodes - 2), min(max(int(q), 0), bins - 2)
    p, q = p - i, q - k
    return i, k, (1 - p) * (1 - q), (1 - p) * q, p * (1 - q), p * q


@kernel(inline="always")
def profile_layer(profile, place, k):  # pragma: no cover - compiled
    """Layer k of a stacked profile of one kind, where `profile_place` says."""
    i, j, a, b, c, d = place
    low = a * profile[i, j, k] + b * profile[i, j + 1, k]
    return low + (c * profile[i + 1, j, k] + d * profile[i + 1, j + 1, k])


@kernel(inline="always")
def profile_at(values, first, step, kind, yrel, u):  # pragma: no cover - compiled
    """Profile of a kind at yrel and detector-pixel coordinate u, bilinear; 1 without a kind."""
    if kind < 0 or values.shape[0] == 0:
        return 1.0
    p = (yrel - first) / step
    i = min(max(int(np.floor(p)), 0), values.shape[1] - 2)
    p = min(max(p - i, 0.0), 1.0)
    q = u / BIN_SPANS - 0.5
    k = min(max(int(np.floor(q)), 0), max(values.shape[2] - 2, 0))
    q = min(max(q - k, 0.0), 1.0)
    m = min(k + 1, values.shape[2] - 1)
    low = values[kind, i, k] * (1 - q) + values[kind, i, m] * q
    high = values[kind, i + 1, k] * (1 - q) + values[kind, i + 1, m] * q
    return low * (1 - p) + high * p
