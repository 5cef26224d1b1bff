"""Whole slits that a fit left out, and why."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from .parts import has_parts, master_part
from .schema import SLIT_IDENTITY
from .terms import BIN_SPANS

__all__ = ["left_out_slits", "why_left_out"]


def left_out_slits(master: xr.Dataset) -> pd.DataFrame:
    """List the slits that a fit left out as a whole, the worst first.

    Parameters
    ----------
    master
        From `fit_master`.

    Returns
    -------
    pandas.DataFrame
        ``exposure``, ``detector``, ``slitlet``; ``level``, ``colour`` and ``bin``: by how much the
        slit departs from the middle of all, % of the sky (of the wavelength bin where it does so
        most); ``score``, the largest of these in standard deviations; ``reason`` in words.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.simulate_program(exposures=2, slits=8, background_slits=8, contaminated_fraction=0)
    >>> wrong = ds.slitlet == ds.slitlet[3]
    >>> ds["flux"] = ds.flux.where(~wrong, 2 * ds.flux).assign_attrs(ds.flux.attrs)
    >>> found = left_out_slits(mx.fit_master(mx.select_background(ds)))
    >>> found.slitlet.tolist(), bool((found.level > 70).all())
    ([4, 4], True)
    >>> " ".join(found.reason[0].split()[2:6])
    'brighter than the others'
    """
    if has_parts(master):
        parts = [left_out_slits(master_part(master, value)) for value in master["part"].values]
        return pd.concat(parts, ignore_index=True)
    columns = (*SLIT_IDENTITY, "level", "colour", "bin", "score", "reason")
    if "slit_used" not in master:
        return pd.DataFrame(columns=columns)
    out = np.flatnonzero(~master["slit_used"].values)
    departure = 100 * master["slit_departure"].values[out]
    table = pd.DataFrame(
        {
            **{name: master[name].values[out] for name in SLIT_IDENTITY},
            "level": departure[:, 0],
            "colour": departure[:, 1],
            "bin": departure[:, 2],
            "score": master["slit_departure_score"].values[out].max(axis=1),
            "reason": [why_left_out(master, int(i)) for i in out],
        },
        columns=columns,
    )
    return table.sort_values("score", ascending=False, ignore_index=True)


def why_left_out(master: xr.Dataset, index: int) -> str:
    """Why a slit of the master, by its place there (-1 for none), is left out as a whole; empty
    where it is not.

    Its level is named first: a slit that is wrong as a whole is so in colour and bins, too.
    """
    if index < 0 or "slit_used" not in master or master["slit_used"].values[index]:
        return ""
    score = master["slit_departure_score"].values[index]
    departure = 100 * master["slit_departure"].values[index]
    which = np.flatnonzero(score > master.attrs["slit_veto"])
    if not which.size:
        return "as in most exposures of its slitlet"
    k = int(which[0])
    sigma = f"{score[k]:.1f} σ"
    if k == 0:
        what = "brighter" if departure[0] > 0 else "fainter"
        return f"{abs(departure[0]):.0f} % {what} than the others ({sigma})"
    if k == 1:
        return f"of another colour than the others, by {abs(departure[1]):.0f} % ({sigma})"
    edge = master["edge"].values
    middle = (int(master["slit_departure_bin"].values[index]) + 0.5) * BIN_SPANS
    at = float(np.interp(middle, np.arange(edge.size), edge))
    return f"{departure[2]:+.0f} % about {at:.2f} um against the others ({sigma})"
