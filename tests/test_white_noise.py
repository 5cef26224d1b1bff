"""The white-noise test on residuals whose floor is known, and against plain numpy."""

import numpy as np
import pytest

import mbkg_xr as mx
from mbkg_xr.spans import span_grid


@pytest.fixture(scope="module")
def frame():
    """Sky slits, in memory: their geometry is all that is used."""
    ds = mx.simulate_program(exposures=3, slits=20, background_slits=20, seed=2)
    return ds[["flux", "error"]].compute()


def noise(frame, *, seed, relative=0.0, of_all=0.0, scatter=1.0, sky=0.2, error=0.02):
    """Noise about a sky that is wrong by some fraction, another in each slit, or one for all."""
    rng = np.random.default_rng(seed)
    inside = np.isfinite(frame.wavelength.values)
    n = inside.shape[0]
    wrong = relative * rng.normal(size=(n, 1, 1)) + of_all
    flux = sky * wrong + scatter * error * rng.normal(size=inside.shape)

    def pixels(values):
        return frame.flux.copy(data=np.where(inside, values, np.nan).astype("f4"))

    ds = frame.assign(
        flux=pixels(flux),
        error=pixels(error),
        background=pixels(sky * (1 + 0.3 * rng.normal(size=inside.shape))),
        background_error=pixels(0),
    ).assign_coords(quality=frame.quality.copy(data=np.where(inside, 0, 1).astype("u4")))
    return mx.residuals(ds)


def test_white_noise_has_no_floor(frame):
    found = mx.white_noise(noise(frame, seed=1, scatter=1.2)).squeeze("subtraction")
    np.testing.assert_allclose(found.rms / found.expected, 1.2, rtol=0.12)
    assert float(found.scatter) == pytest.approx(1.2, rel=0.01)
    assert float(found.floor) < 3 * float(found.floor_error) < 0.5
    slope = np.polyfit(np.log(found.pixels[:6]), np.log(found.rms[:6]), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.03)


@pytest.mark.parametrize("truth", [0.3, 1.0, 3.0])
def test_the_floor_is_found(frame, truth):
    floors, errors = [], []
    for seed in range(4):
        ds = noise(frame, seed=seed, relative=truth / 100, scatter=1.1)
        found = mx.white_noise(ds).squeeze("subtraction")
        floors.append(float(found.floor))
        errors.append(float(found.floor_error))
        assert float(found.scatter) == pytest.approx(1.1, rel=0.02)
    assert np.mean(floors) == pytest.approx(truth, rel=0.12)
    assert 0.4 < np.std(floors, ddof=1) / np.mean(errors) < 2.5 or np.std(floors) < 0.1 * truth


def test_what_slits_have_in_common(frame):
    """Slits' own errors average down over slits; what they share does not."""
    found = mx.white_noise(noise(frame, seed=3, of_all=0.01, relative=0.002), by=None)
    assert float(found.floor[0]) == pytest.approx(1.0, rel=0.1)
    assert np.isnan(found.floor_error[0])


def test_against_numpy(frame):
    ds = noise(frame, seed=5, relative=0.01)
    found = mx.white_noise(ds, sizes=[1, 10], by="nod", wavelength=(1.0, 3.0)).squeeze(
        "subtraction"
    )
    mask = mx.sky_centres(ds).values & (np.abs(ds.residual.values) <= 5)
    mask &= (ds.wavelength.values >= 1) & (ds.wavelength.values <= 3)
    u = span_grid(ds).pixel_coordinate(ds.wavelength.values[mask])
    nod = np.broadcast_to(ds.nod.values[:, None, None], mask.shape)[mask]
    f, b, e = (ds[n].values[mask].astype(float) for n in ("flux", "background", "error"))
    for span in np.unique(u.astype(int)):
        here = u.astype(int) == span
        b[here] = np.average(b[here], weights=1 / e[here] ** 2)
    for k, size in enumerate((1, 10)):
        square, weight, n = 0.0, 0.0, 0
        for i in np.unique(nod):
            for j in np.unique(u.astype(int) // size):
                one = (nod == i) & (u.astype(int) // size == j)
                if one.any():
                    p, q = (f * b / e**2)[one].sum(), (b**2 / e**2)[one].sum()
                    square, weight, n = square + p**2 / q, weight + q, n + 1
        assert int(found.bins[k]) == n
        assert float(found.rms[k]) == pytest.approx(100 * np.sqrt(square / weight), rel=1e-9)
        assert float(found.expected[k]) == pytest.approx(100 * np.sqrt(n / weight), rel=1e-9)
        assert float(found.pixels[k]) == pytest.approx(mask.sum() / n)


def test_side_by_side_on_common_pixels(program, selected, master):
    sets = {
        "master": mx.residuals(mx.subtract(selected, master)),
        "nods": mx.residuals(mx.subtract_nods(selected)),
    }
    found = mx.white_noise(sets, sizes=[1, 4, 16])
    assert found.subtraction.values.tolist() == ["master", "nods"]
    assert found.pixels.sel(subtraction="master").values == pytest.approx(
        found.pixels.sel(subtraction="nods").values, rel=0.02
    )
    assert (found.expected.sel(subtraction="nods") > found.expected.sel(subtraction="master")).all()
    with pytest.raises(mx.MbkgError, match="different slits"):
        mx.white_noise({"a": sets["master"], "b": sets["nods"].isel(slit=[0, 1])})


def test_what_makes_no_sense(frame):
    ds = noise(frame, seed=1)
    for options, said in (
        ({"sizes": [0]}, "1 or more"),
        ({"sizes": []}, "1 or more"),
        ({"by": "quadrnt"}, "unknown coordinate"),
    ):
        with pytest.raises(mx.MbkgError, match=said):
            mx.white_noise(ds, **options)
    with pytest.raises(mx.MbkgError, match="no residuals of a background"):
        mx.white_noise(frame)
    nothing = mx.white_noise(ds, wavelength=(0.0, 0.1))
    assert nothing.floor.isnull().all() and (nothing.bins == 0).all()
