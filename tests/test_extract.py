"""Spectra: sky slits come out as zero within their errors, and sources as they were put in."""

import dask
import numpy as np
import pytest

import mbkg_xr as mx

BANDS = [0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0]
CENTRE = (-0.2, 0.2)


@pytest.fixture(scope="module")
def sky():
    """True errors, nothing but slits that differ; the whole chain, each slit held out too."""
    ds = mx.simulate_program(
        exposures=3, slits=10, background_slits=6, seed=1, error_scale=1.0,
        outlier_fraction=0.0, contaminated_fraction=0.0,
    ).load()  # fmt: skip
    ds = mx.select_background(ds)
    master = mx.fit_master(ds)
    return {
        "master": (mx.subtract(ds, master), master),
        "heldout": (mx.subtract(ds, master, heldout=True), master),
        "nods": (mx.subtract_nods(ds), None),
    }


def pulls(spectra):
    z = (spectra.flux / spectra.error).values[spectra.is_background.values]
    return z[np.isfinite(z)]


def test_sky_slits_are_zero_within_errors(sky):
    for name, (sub, master) in sky.items():
        z = pulls(mx.extract(sub, master=master, yrel=CENTRE))
        assert z.size > 3000
        assert 0.9 < z.std() < 1.1, name
        assert abs(z.mean()) < 0.15, name
    # In wide bands the slits' own throughput shows: the master's errors know of it, nods do not.
    wide = {
        name: pulls(mx.extract(sub, master=master, yrel=CENTRE, bins=BANDS)).std()
        for name, (sub, master) in sky.items()
    }
    assert 0.8 < wide["master"] < 1.25 and 0.8 < wide["heldout"] < 1.25
    assert wide["nods"] > 1.3


def test_covariance_makes_bands_less_certain_than_their_columns(sky):
    sub, master = sky["heldout"]
    columns = mx.extract(sub, master=master, yrel=CENTRE)
    bands = mx.extract(sub, master=master, yrel=CENTRE, bins=[2.0, 3.0]).isel(wavelength=0)
    inside = (columns.wavelength >= 2.0) & (columns.wavelength < 3.0) & columns.flux.notnull()
    quadrature = np.sqrt((columns.error**2).where(inside).sum("x")) / inside.sum("x")
    lit = np.isfinite(bands.error.values) & (inside.sum("x") > 50)
    ratio = (bands.error / quadrature).values[lit]
    assert ratio.size > 20 and (ratio > 1.02).all() and np.median(ratio) > 1.06
    assert (np.sqrt(bands.variance_noise) < bands.error).values[lit].all()
    # Without the master's covariance, the larger of what may be.
    bound = mx.extract(sub, yrel=CENTRE, bins=[2.0, 3.0]).isel(wavelength=0)
    assert (bound.error > 0.8 * bands.error).values[lit].all()
    assert "taken to be one" in bound.attrs["errors"]
    np.testing.assert_allclose(bound.flux, bands.flux, rtol=1e-6)


def test_real_slitlets(real_selected, real_master):
    """No sky slits there: the empty shutter at -1 of two nods, held out."""
    sub = mx.subtract(real_selected, real_master, heldout=True)
    empty = sub.source_shutter.values != -1
    spectra = mx.extract(sub, master=real_master, yrel=(-1.2, -0.8))
    z = (spectra.flux / spectra.error).values[empty]
    z = z[np.isfinite(z)]
    assert z.size > 500 and abs(np.median(z)) < 0.2
    # Their true scatter is 1.2 of the stated errors.
    assert 1.0 < 1.4826 * np.median(np.abs(z - np.median(z))) < 1.35


# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame():
    ds = mx.simulate_program(exposures=3, slits=8, background_slits=2, seed=2)
    return ds[["flux", "error"]].compute()


def put_in(frame, *, level, noise, seed=0, bad=0.0, width=0.15):
    """Sources of a known spectrum and a Gaussian profile, and noise of known error."""
    rng = np.random.default_rng(seed)
    wavelength, yrel = frame.wavelength.values, frame.yrel.values
    inside = np.isfinite(wavelength)
    at = np.nan_to_num(frame.source_shutter.values)[:, None, None] + 0.05
    shape = np.where(inside, np.exp(-0.5 * ((yrel - at) / width) ** 2), 0)
    low, high = (np.round(at) - 0.5, np.round(at) + 0.5)
    window = inside & (yrel >= low) & (yrel < high)
    shape = np.where(window, shape, 0)
    with np.errstate(invalid="ignore"):
        shape = np.nan_to_num(shape / shape.sum(axis=1, keepdims=True))
        spectrum = level * (1 + 0.5 * np.sin(4 * np.nan_to_num(wavelength)))
    # By column, as the truth is: of the pixels' wavelengths, weighted by the light.
    truth = (shape * spectrum).sum(axis=1)
    flux = shape * truth[:, None] + noise * rng.normal(size=inside.shape)
    quality = np.where(inside, 0, 1).astype("u4")
    wild = inside & (rng.random(inside.shape) < bad)
    quality[wild], flux[wild] = 1, 1e6

    def pixels(values):
        return frame.flux.copy(data=np.where(inside, values, np.nan).astype("f4"))

    ds = frame.assign(
        flux=pixels(flux), error=pixels(noise), background=pixels(0.1), background_error=pixels(0)
    ).assign_coords(quality=frame.quality.copy(data=quality))
    ds.attrs["background_method"] = "nods"
    return ds, truth, window.any(axis=1), shape


def test_sources_come_out_as_they_were(frame):
    science = ~frame.is_background.values
    sums = {}
    ds, truth, lit, shape = put_in(frame, level=1.0, noise=0.1)
    lit &= (shape > 0).any(axis=1) & science[:, None]
    for method in ("box", "optimal"):
        found = mx.extract(ds, method=method)
        good = lit & np.isfinite(found.flux.values)
        assert good.sum() > 0.95 * lit.sum()
        off = (found.flux.values - truth)[good]
        z = off / found.error.values[good]
        assert abs(z.std() - 1) < 0.06, method
        assert abs(off.mean() / truth[good].mean()) < 0.01, method
        sums[method] = off.std()
    assert sums["optimal"] < 0.85 * sums["box"]


def test_a_known_profile_makes_up_for_bad_pixels(frame):
    ds, truth, lit, _ = put_in(frame, level=1.0, noise=1e-4, bad=0.1)
    science = ~frame.is_background.values
    at = 0.05  # of shutters at 0: those of one nod
    slits = science & (frame.source_shutter.values == 0)
    found = mx.extract(
        ds, method="optimal", profile=lambda r: np.exp(-0.5 * ((r - at) / 0.15) ** 2), coverage=0.3
    )
    good = np.isfinite(found.flux.values) & lit & slits[:, None]
    assert good.sum() > 300 and (found.coverage.values[good] < 0.99).sum() > 50
    np.testing.assert_allclose(found.flux.values[good], truth[good], atol=3e-3)


def test_the_box_is_a_sum(frame):
    ds, *_ = put_in(frame, level=0.3, noise=0.1, bad=0.05)
    found = mx.extract(ds, yrel=(-1.1, 0.3), coverage=0.4)
    rng = np.random.default_rng(0)
    for s in range(ds.sizes["slit"]):
        for x in rng.integers(0, ds.sizes["x"], 20):
            r, w = ds.yrel.values[s, :, x], ds.wavelength.values[s, :, x]
            inside = (r >= -1.1) & (r < 0.3) & np.isfinite(w)
            use = inside & (ds.quality.values[s, :, x] & 1 == 0)
            one = found.isel(slit=s, x=x)
            if not inside.any() or use.sum() < 0.4 * inside.sum():
                assert np.isnan(one.flux)
                continue
            f = ds.flux.values[s, :, x][use].astype(float)
            share = use.sum() / inside.sum()
            assert float(one.flux) == pytest.approx(f.sum() / share, rel=1e-5, abs=1e-6)
            e = ds.error.values[s, :, x][use].astype(float)
            assert float(one.error) == pytest.approx(np.sqrt((e**2).sum()) / share, rel=1e-5)
            assert float(one.wavelength) == pytest.approx(w[use].mean(), rel=1e-6)
            assert int(one.n_pixels) == use.sum() and float(one.coverage) == pytest.approx(share)


def test_lazy_and_alike_in_any_chunks(sky):
    sub, master = sky["master"]
    sub = sub.isel(slit=slice(0, 7))
    lazy = sub.chunk({"slit": 3})
    lazy = lazy.assign_coords({k: v.compute() for k, v in lazy.coords.items() if v.ndim == 1})

    def refuse(*args, **kwargs):
        raise AssertionError("this should have stayed lazy")

    for options in ({}, {"bins": BANDS}, {"method": "optimal"}):
        with dask.config.set(scheduler=refuse):
            found = mx.extract(lazy, master=master, **options)
        expected = mx.extract(sub, master=master, **options)
        for name in ("flux", "error", "coverage", "variance_master"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "boxes"}, "box or optimal"),
        ({"yrel": (0.5, -0.5)}, "low < high"),
        ({"yrel": [1, 2, 3]}, "one a slit"),
        ({"bins": [2, 1]}, "increase"),
        ({"coverage": 0}, "above 0"),
        ({"profile": np.abs}, "a box has no profile"),
        ({"exclude": ["NOTHING"]}, "unknown quality flag"),
    ],
)
def test_what_makes_no_sense(sky, options, said):
    with pytest.raises(mx.MbkgError, match=said):
        mx.extract(sky["nods"][0], **options)


def test_nothing_subtracted(program):
    with pytest.raises(mx.MbkgError, match="nothing was subtracted"):
        mx.extract(program)
