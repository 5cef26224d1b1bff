"""What a pass over the pixels says of noise and outliers: the state of the next pass.

Everything here works on the histograms and sums of `mbkg_xr.moments.PassSums`, never on pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .histograms import histogram_quantiles
from .moments import HISTOGRAM_EDGES, PassState, PassSums
from .pass_kernel import BIWEIGHT, HUBER, TAPERED
from .terms import BIN_SPANS

__all__ = ["BIN_PIXELS", "CHOOSE_PASS", "RULES", "Rule", "next_state", "scatter_of"]

Array = NDArray[np.float64]

#: Usual limits: of a clip; of 95 % efficiency for normal noise (Huber 1981; Beaton & Tukey 1974).
RULES = {"clip": (3.0, TAPERED), "huber": (1.345, HUBER), "biweight": (4.685, BIWEIGHT)}
#: The model is chosen among all candidates in this pass, then kept.
CHOOSE_PASS = 4
#: A running centre from fewer pixels than this is noise.
BIN_PIXELS = 200
_CLASS_RANGE = (0.2, 20.0)  # of photon noise, by read noise


@dataclass(frozen=True)
class Rule:
    """How the weight of a pixel falls with its distance from the running centre.

    Attributes
    ----------
    name
        A key of `RULES`.
    limit
        In units of the local scatter.
    """

    name: str = "clip"
    limit: float = 3.0

    @classmethod
    def of(cls, name: str, limit: float | None) -> Rule:
        """The rule of a name, with the limit that is usual where none is given."""
        if name not in RULES:
            raise ParameterError("unknown weights", expected=" ".join(RULES), found=name)
        limit = RULES[name][0] if limit is None else float(limit)
        if not limit > 1:
            raise ParameterError(
                "unusable clipping limit", expected="more than 1 sigma", found=limit
            )
        return cls(name, limit)

    def at(self, number: int) -> tuple[int, float]:
        """Kind of weight, and limit, after pass `number`: a biweight begins with Huber's (1964),
        whose loss has a single minimum.
        """
        if self.name == "biweight" and number + 1 < CHOOSE_PASS:
            return HUBER, RULES["huber"][0]
        return RULES[self.name][1], self.limit


def next_state(
    state: PassState, sums: PassSums, rule: Rule, model: Array, number: int = 0
) -> PassState:
    """Noise, running centre and running width for the pass after pass `number`."""
    n = state.model.shape[0]
    middle = (np.arange(sums.histogram.shape[0]) + 0.5) * BIN_SPANS
    spans = np.arange(n) + 0.5
    smooth = _merged(sums.histogram)
    filled = smooth.sum(axis=1) > 0
    quartiles = histogram_quantiles(smooth[filled], HISTOGRAM_EDGES, (0.25, 0.5, 0.75))
    centre = np.interp(spans, middle[filled], quartiles[:, 1])
    # Half the distance between quartiles is the MAD of a symmetric distribution.
    width = 1.4826 * 0.5 * (quartiles[:, 2] - quartiles[:, 0])
    width = np.interp(spans, middle[filled], np.maximum(width, 0.1))
    model = np.where(np.isfinite(model), model, state.model)
    gain, floor = _noise(sums, n)
    by_class = _by_class(sums)
    kind, limit = rule.at(number)
    return replace(
        state,
        model=model,
        gain=gain,
        by_class=by_class,
        floor=floor,
        centre=centre,
        cut=limit * width,
        rule=kind,
    )


def _merged(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each bin with so many of its neighbours that it holds enough pixels."""
    out = histogram.copy()
    cumulative = np.concatenate([[0], np.cumsum(histogram.sum(axis=1))])
    n = histogram.shape[0]
    for b in range(n):
        low, high = b, b + 1
        while cumulative[high] - cumulative[low] < BIN_PIXELS and (low > 0 or high < n):
            low, high = max(low - 1, 0), min(high + 1, n)
        out[b] = histogram[low:high].sum(axis=0)
    return out


def _noise(sums: PassSums, n_spans: int) -> tuple[Array, Array]:
    """Photon variance a unit of flux at the reference exposure time, and read variance, by span.

    The first is from VAR_POISSON where the product has it. Where not, it is the slope of error^2
    against flux at fixed wavelength: errors derived from a pixel's own counts follow its own noise.
    The second is what is left of the mean error^2. It is one number a bin, since error^2 less the
    photon noise of a pixel's own counts would follow the datum again.
    """
    # A slope asks for many pixels; a ratio of sums does not, and the sensitivity changes fast at
    # the ends of the range.
    known = sums.noise[:, 2].sum() > 0
    n, x, photon, e2, xx, xe = _about(sums.noise[:, :6], (1, 3, 5) if known else (5,)).T
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (n * xe - x * e2) / (n * xx - x * x)
        gain = np.clip(np.where(photon > 0, photon / x, slope), 0, e2 / x)
        read = np.maximum(e2 - gain * x, 0.01 * e2) / n
    middle = (np.arange(n.size) + 0.5) * BIN_SPANS
    spans = np.arange(n_spans) + 0.5
    good = np.isfinite(gain) & np.isfinite(read) & (x > 0)
    if not good.any():
        return np.full(n_spans, np.nan), np.zeros(n_spans)
    return (
        np.interp(spans, middle[good], gain[good]),
        np.interp(spans, middle[good], read[good]),
    )


def _by_class(sums: PassSums) -> Array:
    """Photon variance of pixels of each class of read variance, over that of all; 1 if unknown.

    One number a bin is that of the mean pixel, and most have less: the ramps that are cut short
    have more, and the scatter of the others would seem small.
    """
    photon, mean = sums.noise[:, 6:].sum(axis=0).reshape(-1, 2).T
    good = (photon > 0) & (mean > 0)
    return np.clip(np.where(good, photon / np.where(good, mean, 1.0), 1.0), *_CLASS_RANGE)


def _about(sums: Array, widths: tuple[int, ...]) -> Array:
    """Sums over each bin and its neighbours: the fewest bins of `widths` that hold enough."""
    out = sums
    for width in widths:
        wider = np.array([np.convolve(column, np.ones(width), "same") for column in sums.T]).T
        few = out[:, :1] < BIN_PIXELS if width > widths[0] else np.ones((sums.shape[0], 1), bool)
        out = np.where(few, wider, out)
    return out


def scatter_of(sums: PassSums) -> float:
    """Scaled MAD of all residuals, in units of the model's error."""
    total = sums.histogram.sum(axis=0, keepdims=True)
    low, high = histogram_quantiles(total, HISTOGRAM_EDGES, (0.25, 0.75))[0]
    return float(1.4826 * 0.5 * (high - low))
