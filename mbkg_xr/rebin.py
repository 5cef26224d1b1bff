"""Area-overlap rebinning of a regular (yrel, wavelength) grid on irregular pixels.

A detector pixel is a quadrilateral in the plane of wavelength and yrel. `pixel_corners` finds its
corners from the pixel centres, `rebin2d` averages a gridded surface brightness over it, and
`pixel_areas` gives its area, so that ``mean * coverage * area`` is the flux it receives.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from .errors import ParameterError
from .kernels import kernel

__all__ = ["pixel_areas", "pixel_corners", "rebin2d"]

# Coordinates of order 1 place pixels of order 0.01 to about 1e-14 of their size: areas below this
# fraction of a pixel's bounding box are rounding noise, not geometry.
_ROUNDING = 1e-13

# Weights of the three values before and the three after a half step, the best rule first.
_HALF_STEP_RULES = (
    np.array([0, -1, 9, 9, -1, 0]) / 16,
    np.array([0, 0, 3, 6, -1, 0]) / 8,
    np.array([0, -1, 6, 3, 0, 0]) / 8,
    np.array([0, 0, 1, 1, 0, 0]) / 2,
    np.array([0, 0, 0, 15, -10, 3]) / 8,
    np.array([3, -10, 15, 0, 0, 0]) / 8,
    np.array([0, 0, 0, 3, -1, 0]) / 2,
    np.array([0, -1, 3, 0, 0, 0]) / 2,
)


def pixel_corners(wavelength: ArrayLike, yrel: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Corners of detector pixels from the coordinates of their centres.

    Neighbouring pixels share their corners, so they tile without gap or overlap. Coordinates half
    a pixel on are found along x and from those along y, in each direction by the highest of these
    rules that has its pixels (Lagrange interpolation at half a step): cubic between four pixels,
    ``(-1, 9, 9, -1) / 16``; quadratic beside a border, ``(3, 6, -1) / 8``; the mean of two; and,
    beyond the border, quadratic, ``(15, -10, 3) / 8``, or linear, ``(3, -1) / 2``. A part of the
    slit that is one pixel thick takes the corners it lacks from the lattice of its neighbours.

    Parameters
    ----------
    wavelength, yrel
        ``(..., ny, nx)`` pixel centres (um and shutter pitches, though any units will do), with
        NaN outside the slit. A pixel is valid where both are finite.

    Returns
    -------
    wavelength_corners, yrel_corners : numpy.ndarray
        ``(..., ny + 1, nx + 1)`` float64; corner ``[j, i]`` is the outer corner of pixel ``[j, i]``
        towards lower indices. NaN where no valid pixel touches the corner, and where the valid
        pixels do not define it (a lone pixel, or a single row or column of them). An invalid
        pixel between valid ones has all its corners: mask it by its own coordinates.

    Raises
    ------
    ParameterError
        If the shapes differ or there are fewer than two rows or columns.

    Examples
    --------
    >>> x, y = np.meshgrid([1.0, 2.0, 3.0], [0.5, 0.0, -0.5])
    >>> wave, yrel = pixel_corners(x, y)
    >>> wave[0].tolist()
    [0.5, 1.5, 2.5, 3.5]
    >>> yrel[:, 0].tolist()
    [0.75, 0.25, -0.25, -0.75]
    """
    wave, pos = np.asarray(wavelength), np.asarray(yrel)
    if wave.shape != pos.shape or wave.ndim < 2 or min(wave.shape[-2:]) < 2:
        raise ParameterError(
            "pixel corners need matching pixel centres",
            expected="wavelength and yrel of one shape (..., ny, nx), with ny and nx at least 2",
            found=f"wavelength {wave.shape}, yrel {pos.shape}",
        )
    ny, nx = wave.shape[-2:]
    centres = np.stack([wave, pos]).astype(np.float64)
    valid = np.isfinite(centres).all(axis=0)
    centres[:, ~valid] = np.nan
    corners = np.swapaxes(_half_steps(np.swapaxes(_half_steps(centres), -1, -2)), -1, -2)

    touched = np.zeros(corners.shape[1:], bool)
    for j, i in ((0, 0), (0, 1), (1, 0), (1, 1)):
        touched[..., j : j + ny, i : i + nx] |= valid
    lacking = touched & np.isnan(corners[0])
    for slit in np.argwhere(lacking.any(axis=(-2, -1))):
        _complete(corners[(slice(None), *slit)], lacking[tuple(slit)])
    return np.ascontiguousarray(corners[0]), np.ascontiguousarray(corners[1])


def pixel_areas(yrel_corners: ArrayLike, wavelength_corners: ArrayLike) -> np.ndarray:
    """Areas of the quadrilaterals of a corner mesh, half the cross product of their diagonals.

    Parameters
    ----------
    yrel_corners, wavelength_corners
        ``(..., ny + 1, nx + 1)`` corners, as from `pixel_corners`.

    Returns
    -------
    numpy.ndarray
        ``(..., ny, nx)`` float64, yrel units times wavelength units; never negative, NaN where a
        corner is not finite. Parts of a pixel folded over itself count with opposite signs.

    Raises
    ------
    ParameterError
        If the shapes differ or hold no pixel.

    Examples
    --------
    >>> pixel_areas([[0.0, 0.0], [2.0, 2.0]], [[1.0, 4.0], [2.0, 5.0]]).tolist()
    [[6.0]]
    """
    y, x = _corner_mesh(yrel_corners, wavelength_corners)
    with np.errstate(invalid="ignore"):
        (x1, x2), (y1, y2) = (
            (a[..., 1:, 1:] - a[..., :-1, :-1], a[..., 1:, :-1] - a[..., :-1, 1:]) for a in (x, y)
        )
        area = 0.5 * np.abs(x1 * y2 - y1 * x2)
    area[~np.isfinite(area)] = np.nan
    return area


def rebin2d(
    grid: ArrayLike,
    yrel_edges: ArrayLike,
    wavelength_edges: ArrayLike,
    yrel_corners: ArrayLike,
    wavelength_corners: ArrayLike,
) -> tuple[np.ndarray, np.ndarray]:
    """Average a gridded surface brightness over irregular pixels, by exact overlap areas.

    The overlap of a pixel with every cell follows from Green's theorem: each side of the pixel,
    cut at the edges of the cells, adds the signed area between itself and the far side of its
    cell, and its height to all cells beyond (the coverage accumulation of font rasterisers). No
    polygon is built, so tilted, non-convex and triangular pixels of either orientation are alike.
    Flux is conserved: ``sum(mean * coverage * area)`` is the integral of the grid over the pixels.

    Parameters
    ----------
    grid
        ``(n_yrel, n_wave)`` surface brightness, constant in each cell. A cell that is not finite
        counts as not covered.
    yrel_edges, wavelength_edges
        ``(n_yrel + 1,)`` and ``(n_wave + 1,)`` edges of the cells, strictly increasing; their
        spacing may vary. In the units of the corners.
    yrel_corners, wavelength_corners
        ``(..., ny + 1, nx + 1)`` corners of the pixels, as from `pixel_corners`.

    Returns
    -------
    mean : numpy.ndarray
        ``(..., ny, nx)`` float64, mean surface brightness over the covered part of each pixel, in
        the units of `grid`; NaN where nothing of it is covered, a corner is not finite or its area
        is zero.
    coverage : numpy.ndarray
        ``(..., ny, nx)`` float64 in [0, 1], covered fraction of each pixel's area; exactly 1
        inside the grid. Parts of a pixel folded over itself count with opposite signs in both.

    Raises
    ------
    ParameterError
        If a shape does not fit or edges are not finite and strictly increasing.

    Examples
    --------
    >>> yrel, wave = [[0.0, 0.0], [1.0, 1.0]], [[0.5, 1.5], [0.5, 1.5]]
    >>> mean, coverage = rebin2d([[2.0, 4.0]], [0.0, 1.0], [0.0, 1.0, 2.0], yrel, wave)
    >>> mean.tolist(), coverage.tolist()
    ([[3.0]], [[1.0]])
    """
    y_edges = _edges("yrel_edges", yrel_edges)
    x_edges = _edges("wavelength_edges", wavelength_edges)
    cells = _float64(grid)
    if cells.shape != (y_edges.size - 1, x_edges.size - 1):
        raise ParameterError(
            "the grid does not fit its edges",
            expected=f"shape {(y_edges.size - 1, x_edges.size - 1)}, one cell between two edges",
            found=f"shape {cells.shape}",
        )
    y, x = _corner_mesh(yrel_corners, wavelength_corners)
    ny, nx = y.shape[-2] - 1, y.shape[-1] - 1
    stack = y.size // ((ny + 1) * (nx + 1))
    mean, coverage = np.empty((2, stack, ny, nx))
    meshes = (mesh.reshape(stack, ny + 1, nx + 1) for mesh in (y, x))
    _rebin(cells, y_edges, x_edges, *meshes, mean, coverage)
    shape = (*y.shape[:-2], ny, nx)
    return mean.reshape(shape), coverage.reshape(shape)


def _float64(values: ArrayLike) -> np.ndarray:
    # One layout, native and writeable, so that numba compiles each kernel only once.
    return np.require(values, np.float64, ["C", "W"])


def _edges(name: str, values: ArrayLike) -> np.ndarray:
    edges = _float64(values)
    if edges.ndim != 1 or edges.size < 2:
        raise ParameterError(
            f"{name} cannot bound cells", expected="at least 2 in 1-D", found=f"shape {edges.shape}"
        )
    if not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        bad = int(np.argmin(np.append(np.diff(edges) > 0, False)))
        raise ParameterError(
            f"{name} cannot bound cells",
            expected="finite and strictly increasing values",
            found=f"{edges[bad : bad + 2].tolist()} at index {bad}",
        )
    return edges


def _corner_mesh(yrel_corners: ArrayLike, wave_corners: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, x = _float64(yrel_corners), _float64(wave_corners)
    if y.shape != x.shape or y.ndim < 2 or min(y.shape[-2:]) < 2:
        raise ParameterError(
            "the corners do not bound pixels",
            expected="yrel_corners and wavelength_corners of one shape (..., ny + 1, nx + 1)",
            found=f"yrel_corners {y.shape}, wavelength_corners {x.shape}",
        )
    return y, x


def _half_steps(values: np.ndarray) -> np.ndarray:
    """Values half a step before, between and after those along the last axis."""
    around = [(0, 0)] * (values.ndim - 1) + [(3, 3)]
    windows = sliding_window_view(np.pad(values, around, constant_values=np.nan), 6, axis=-1)
    out = np.full(windows.shape[:-1], np.nan)
    for rule in _HALF_STEP_RULES:
        todo = np.isnan(out)
        used = np.flatnonzero(rule)
        # NaN propagates: a rule that lacks a pixel leaves its place to the next.
        out[todo] = sum(rule[i] * windows[..., i][todo] for i in used)
    return out


def _complete(corners: np.ndarray, lacking: np.ndarray) -> None:
    """Continue a lattice of corners in place, linearly, into the corners it lacks."""
    ny, nx = lacking.shape
    while lacking.any():
        padded = np.pad(corners, ((0, 0), (2, 2), (2, 2)), constant_values=np.nan)
        total, known = np.zeros(corners.shape), np.zeros(lacking.shape)
        for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            next_, second = (
                padded[:, 2 + n * dy : 2 + n * dy + ny, 2 + n * dx : 2 + n * dx + nx]
                for n in (1, 2)
            )
            step = 2 * next_ - second
            total += np.nan_to_num(step)
            known += np.isfinite(step[0])
        found = lacking & (known > 0)
        if not found.any():
            return
        corners[:, found] = total[:, found] / known[found]
        lacking = lacking & ~found


@kernel
def _rebin(cells, y_edges, x_edges, y_mesh, x_mesh, mean, coverage):
    # Scratch for the cells that one pixel can touch; it grows to what the widest pixel needs.
    beside = np.zeros(256)  # area between the sides of the pixel and the right side of their cell
    beyond = np.zeros(256)  # height of those sides, due to every cell to the right
    bottom = np.empty(64)  # edges of rows and columns, from the pixel's first corner
    edge = np.empty(64)
    px, py = np.zeros(5), np.zeros(5)  # corners of the pixel; the last is the first again
    for s in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            for i in range(mean.shape[2]):
                mean[s, j, i], coverage[s, j, i] = np.nan, 0.0
                # With a local origin only the pixel's own size enters the rounding, not its
                # distance from zero.
                x0, y0 = x_mesh[s, j, i], y_mesh[s, j, i]
                px[1], py[1] = x_mesh[s, j, i + 1] - x0, y_mesh[s, j, i + 1] - y0
                px[2], py[2] = x_mesh[s, j + 1, i + 1] - x0, y_mesh[s, j + 1, i + 1] - y0
                px[3], py[3] = x_mesh[s, j + 1, i] - x0, y_mesh[s, j + 1, i] - y0
                area = 0.5 * ((px[3] - px[1]) * py[2] - px[2] * (py[3] - py[1]))
                if not np.isfinite(area):
                    continue
                xlo, xhi, ylo, yhi = px.min(), px.max(), py.min(), py.max()
                noise = _ROUNDING * (xhi - xlo) * (yhi - ylo)
                if abs(area) <= noise:
                    continue
                ys, xs = y_mesh[s, j : j + 2, i : i + 2], x_mesh[s, j : j + 2, i : i + 2]
                row0 = max(np.searchsorted(y_edges, ys.min(), side="right") - 1, 0)
                row1 = min(np.searchsorted(y_edges, ys.max(), side="left"), cells.shape[0])
                col0 = max(np.searchsorted(x_edges, xs.min(), side="right") - 1, 0)
                col1 = min(np.searchsorted(x_edges, xs.max(), side="left"), cells.shape[1])
                nrow, ncol = row1 - row0, col1 - col0
                if nrow <= 0 or ncol <= 0:
                    continue
                if nrow * (ncol + 1) > beside.size:
                    beside, beyond = np.zeros(nrow * (ncol + 1)), np.zeros(nrow * (ncol + 1))
                if nrow + 1 > bottom.size:
                    bottom = np.empty(nrow + 1)
                if ncol + 1 > edge.size:
                    edge = np.empty(ncol + 1)
                # Cells larger than the pixel are cut to its bounding box: their far sides would
                # only add large numbers that cancel.
                for k in range(nrow + 1):
                    bottom[k] = min(max(y_edges[row0 + k] - y0, ylo), yhi)
                for k in range(ncol + 1):
                    edge[k] = min(max(x_edges[col0 + k] - x0, xlo), xhi)

                for side in range(4):
                    _add_side(
                        px[side], py[side], px[side + 1], py[side + 1],
                        bottom, edge, nrow, ncol, beside, beyond,
                    )  # fmt: skip

                covered, flux = 0.0, 0.0
                for k in range(nrow):
                    height = 0.0
                    for c in range(ncol):
                        at = k * (ncol + 1) + c
                        height += beyond[at]
                        overlap = height * (edge[c + 1] - edge[c]) + beside[at]
                        value = cells[row0 + k, col0 + c]
                        if np.isfinite(value):
                            covered += overlap
                            flux += overlap * value
                        beside[at], beyond[at] = 0.0, 0.0
                    beyond[k * (ncol + 1) + ncol] = 0.0
                if (covered if area > 0.0 else -covered) > noise:
                    mean[s, j, i] = flux / covered
                    complete = abs(covered) > abs(area) - noise
                    coverage[s, j, i] = 1.0 if complete else covered / area


@kernel
def _add_side(xa, ya, xb, yb, bottom, edge, nrow, ncol, beside, beyond):
    """Accumulate one side of a pixel, cut at the rows and columns it crosses."""
    if ya == yb:
        return
    sign = 1.0
    if ya > yb:
        xa, ya, xb, yb, sign = xb, yb, xa, ya, -1.0
    for k in range(nrow):
        if bottom[k + 1] <= ya:
            continue
        if bottom[k] >= yb:
            break
        y1, y2 = max(ya, bottom[k]), min(yb, bottom[k + 1])
        x1 = xa + (xb - xa) * ((y1 - ya) / (yb - ya))
        x2 = xa + (xb - xa) * ((y2 - ya) / (yb - ya))
        height = sign * (y2 - y1)
        left, stop = min(x1, x2), max(x1, x2)
        row = k * (ncol + 1)
        if left >= edge[ncol]:
            continue
        if stop <= edge[0]:
            beyond[row] += height
            continue
        span = stop - left
        if left < edge[0]:
            beyond[row] += height * ((edge[0] - left) / span)
            left = edge[0]
        c = np.searchsorted(edge[: ncol + 1], left, side="right") - 1
        while c < ncol:
            right = min(stop, edge[c + 1])
            part = height * ((right - left) / span) if span > 0.0 else height
            beside[row + c] += part * (edge[c + 1] - 0.5 * (left + right))
            beyond[row + c + 1] += part
            left = right
            c += 1
            if right >= stop:
                break
