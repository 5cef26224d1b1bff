"""What was decided for each slit, and why: a row a slit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from ..left_out import why_left_out
from ..slit_terms import ranks_in

__all__ = ["decisions"]


def decisions(scores: xr.Dataset, master: xr.Dataset) -> pd.DataFrame:
    """What was decided for each slit, and why.

    Parameters
    ----------
    scores
        From `score_slits`, with the master.
    master
        From `fit_master`.

    Returns
    -------
    pandas.DataFrame
        A row a slit: what it is, the part its pixels had in the fit, its scores.

    Examples
    --------
    >>> import mbkg_xr as mx
    >>> ds = mx.select_background(mx.simulate_program(exposures=2, slits=4, background_slits=2))
    >>> master = mx.fit_master(ds)
    >>> scores = mx.score_slits(mx.residuals(mx.subtract(ds, master)), master)
    >>> decisions(scores, master)["sky"].iloc[0]
    'all shutters'
    """
    rank = ranks_in(scores, master)
    selected, used = (np.where(rank >= 0, master[k].values[rank], 0) for k in _COUNTS)
    names = ("exposure", "detector", "slitlet", "nod", "source_name", "sky_reason", "calibration")
    columns: dict = {name: scores[name].values for name in names}
    columns["sky"] = [_sky(scores, i) for i in range(rank.size)]
    columns["selected"], columns["used"] = selected, used
    columns["fit"] = [
        _part(int(n), int(u), _left_out(master, int(r)), why_left_out(master, int(r)))
        for n, u, r in zip(selected, used, rank, strict=True)
    ]
    numbers = ("n", "excess", "excess_error", "mad_sigma", "stack", "scale", "scale_error")
    columns |= {k: scores[k].values for k in numbers if k in scores}
    return pd.DataFrame(columns)


_COUNTS = ("n_selected", "n_used")


def _sky(scores: xr.Dataset, i: int) -> str:
    source = float(scores["source_shutter"].values[i])
    if scores["is_background"].values[i]:
        text = "all shutters"
    elif np.isfinite(source):
        text = f"all but {source:+.0f}"
    else:
        return "unknown: none"
    occupied = str(scores["occupied"].values[i])
    return f"{text} and {occupied}" if occupied else text


def _left_out(master: xr.Dataset, rank: int) -> list[str]:
    """Shutters that exceed their slit's others, and by how much."""
    if "shutter_used" not in master or rank < 0:
        return []
    used, excess = (master[k].values[rank] for k in ("shutter_used", "shutter_excess"))
    found = np.flatnonzero(~used & np.isfinite(excess) & (excess != 0))
    at = master["shutter"].values
    return [f"{at[z]:+d} ({excess[z]:.1f} σ over the others)" for z in found]


def _part(selected: int, used: int, left_out: list[str], whole: str) -> str:
    if selected == 0:
        return "no part: no pixel selected"
    if whole:
        return f"out as a whole: {whole}"
    if left_out:
        return ("in, without shutter " if used else "out: shutter ") + ", ".join(left_out)
    return "in" if used else "no part: all pixels clipped"
