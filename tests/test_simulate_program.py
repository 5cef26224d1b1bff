"""The simulated programme as a lazy slit dataset with known truth."""

import pickle
from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.io import fits
from scipy.interpolate import BSpline

from mbkg_xr.errors import ParameterError
from mbkg_xr.schema import validate
from mbkg_xr.simulate import get_disperser, simulate_program, sky_mean
from mbkg_xr.simulate.instrument import spectrograph_flat

FLAT = Path(__file__).resolve().parents[2] / "shared" / "data" / "flat"

CLEAN = {
    "throughput_scatter": 0,
    "colour_scatter": 0,
    "pedestal": 0,
    "sky_drift": 0,
    "contaminated_fraction": 0,
    "barshadow_mismatch": 0,
    "outlier_fraction": 0,
}


def small(**changes):
    return simulate_program(**{"exposures": 3, "slits": 8, "background_slits": 4} | changes)


def centres(ds, half=0.2):
    yrel = ds.yrel.values
    return (np.abs(yrel - np.round(yrel)) <= half) & (np.abs(yrel) < 1.3)


def usable(ds):
    return (ds.quality.values & 1) == 0


@pytest.fixture(scope="module")
def programme():
    return small(slits=20, background_slits=10, detectors=("NRS1", "NRS2"), seed=2).compute()


def test_opening_computes_nothing():
    def refuse(*args, **kwargs):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        ds = small(calibration="POINT")
        validate(ds)
        repr(ds)
    for name in ("flux", "error", "wavelength", "yrel", "quality", "response", "true_background"):
        assert dask.is_dask_collection(ds[name]), name


def test_contract(programme):
    validate(programme)
    assert programme.flux.attrs["units"] == "MJy/sr"
    assert programme.attrs["configuration"] == "prism-clear"
    inside = np.isfinite(programme.wavelength.values)
    for name in ("flux", "error", "yrel", "true_background", "true_sky", "var_rnoise"):
        assert not np.isfinite(programme[name].values[~inside]).any(), name
    assert np.all(programme.quality.values[~inside] == 1)
    assert not programme.outlier.values[~inside].any()
    assert np.isfinite(programme.true_background.values[inside]).all()
    good = inside & usable(programme)
    assert np.isfinite(programme.flux.values[good]).all()
    total = programme.var_rnoise.values + programme.var_poisson.values
    np.testing.assert_allclose(programme.error.values[good] ** 2, total[good], rtol=1e-5)


@pytest.mark.parametrize("chunks", [1, 7, 1000])
def test_one_seed_gives_the_same_pixels_for_any_chunking(chunks):
    one, other = small(seed=5).compute(), small(seed=5, chunks=chunks)
    assert other.flux.data.chunks[0][0] == min(chunks, other.sizes["slit"])
    assert one.identical(other.compute(scheduler="synchronous"))


def test_one_slit_alone_is_the_same_slit():
    ds = small(seed=5)
    alone = ds.flux.isel(slit=[9]).compute()
    np.testing.assert_array_equal(alone[0], ds.flux.compute()[9])


def test_the_graph_stays_small():
    """Tasks carry the plan of their own slits, no tables."""
    ds = small(exposures=40, slits=40, background_slits=10, chunks=8)
    graph = dict(ds.flux.data.__dask_graph__())
    assert len(pickle.dumps(graph)) < 5000 * ds.flux.data.npartitions


def test_another_seed_gives_another_programme():
    a, b = small(seed=1), small(seed=2)
    assert not np.array_equal(a.shutter_row, b.shutter_row)


def test_slit_counts_and_identity(programme):
    for exposure in np.unique(programme.exposure):
        for detector in ("NRS1", "NRS2"):
            here = (programme.exposure == exposure) & (programme.detector == detector)
            assert int(here.sum()) == 20
            assert int((here & programme.is_background).sum()) == 10
    assert programme.exposure.values[0] == "jw09999001001_03101_00001"


def test_slitlets_stay_and_sources_nod(programme):
    frame = programme.reset_coords()[
        ["detector", "slitlet", "nod", "x_start", "y_start", "shutter_row", "source_shutter"]
    ]
    one = [frame.where(programme.nod == n, drop=True) for n in (1, 2, 3)]
    for name in ("slitlet", "x_start", "y_start", "shutter_row"):
        assert np.array_equal(one[0][name], one[1][name])
        assert np.array_equal(one[0][name], one[2][name])
    source = ~programme.is_background.values
    for n, shutter in ((1, 0), (2, -1), (3, 1)):
        at = source & (programme.nod.values == n)
        assert np.all(programme.source_shutter.values[at] == shutter)
    assert np.isnan(programme.source_shutter.values[~source]).all()


def test_source_light_sits_in_its_shutter():
    ds = small(slits=30, background_slits=0, leak=0.0, contaminated_fraction=0).compute()
    excess = (ds.flux - ds.true_background).values
    excess[~usable(ds)] = np.nan
    here = np.abs(ds.yrel.values - ds.source_shutter.values[:, None, None]) < 0.5
    far = np.abs(ds.yrel.values - ds.source_shutter.values[:, None, None]) > 0.8
    assert np.nanmean(np.where(here, excess, np.nan)) > 0.02
    assert abs(np.nanmedian(np.where(far, excess, np.nan))) < 0.002


def test_leak_reaches_the_neighbours():
    with_leak, without = (
        small(slits=30, background_slits=0, leak=leak, contaminated_fraction=0, seed=3).compute()
        for leak in (0.1, 0.0)
    )
    far = np.abs(with_leak.yrel.values - with_leak.source_shutter.values[:, None, None]) > 0.8
    far &= usable(with_leak)
    more = with_leak.flux.values[far] - without.flux.values[far]
    assert np.mean(more) > 1e-3 and np.mean(more > 0) > 0.9


def test_without_instrument_the_background_is_the_sky():
    ds = small(**CLEAN, seed=4).compute()
    at = centres(ds) & np.isfinite(ds.wavelength.values)
    np.testing.assert_allclose(ds.true_background.values[at], ds.true_sky.values[at], rtol=1e-3)
    assert np.all(ds.true_scale == 1)


def test_sky_is_the_mean_over_the_pixel():
    ds = small(**CLEAN, seed=4).isel(slit=slice(0, 6)).compute()
    prism = get_disperser("PRISM")
    wavelength = ds.wavelength.values.astype(float)
    inner = np.isfinite(wavelength[..., 2:]) & np.isfinite(wavelength[..., :-2])
    inner &= np.isfinite(wavelength[..., 1:-1])
    u = prism.u(wavelength)
    edge = (u[..., 1:] + u[..., :-1]) / 2
    lower, upper = prism.wavelength(edge[..., :-1][inner]), prism.wavelength(edge[..., 1:][inner])
    np.testing.assert_allclose(
        ds.true_sky.values[..., 1:-1][inner], sky_mean(lower, upper), rtol=3e-4
    )


def test_background_is_what_a_perfect_subtraction_removes():
    ds = small(slits=16, background_slits=16, contaminated_fraction=0, seed=6).compute()
    good = usable(ds) & ~ds.outlier.values
    sigma = 1.2 * np.sqrt(
        ds.var_rnoise.values
        + ds.var_poisson.values
        * np.clip(ds.true_background.values, 0, None)
        / np.maximum(ds.flux.values, 1e-6)
    )
    bright = good & (ds.true_sky.values > 0.12) & (ds.flux.values > 0.01)
    z = (ds.flux - ds.true_background).values[bright] / sigma[bright]
    assert abs(np.median(z)) < 0.02
    assert 1.4826 * np.median(np.abs(z)) == pytest.approx(1, abs=0.03)


def test_drift_averages_out_over_the_programme():
    ds = small(exposures=6, sky_drift=0.05, slits=2, background_slits=2).compute()
    flat = [
        ds.true_sky.where(ds.exposure == e).mean().item() for e in np.unique(ds.exposure.values)
    ]
    assert np.std(flat) / np.mean(flat) > 0.01
    still = small(exposures=6, sky_drift=0, slits=2, background_slits=2).compute()
    assert np.mean(flat) == pytest.approx(still.true_sky.mean().item(), rel=1e-5)


def test_throughput_and_colour_scatter_as_asked():
    asked = CLEAN | {"throughput_scatter": 0.03}
    ds = small(exposures=1, slits=150, background_slits=150, **asked)
    assert float(np.log(ds.true_scale).std()) == pytest.approx(0.03, rel=0.25)
    asked = CLEAN | {"colour_scatter": 0.02}
    ds = small(exposures=1, slits=60, background_slits=60, **asked)
    ratio = (ds.true_background / ds.true_sky).compute()
    ratio = ratio.where(centres(ds) & (ds.wavelength > 0.7) & (ds.wavelength < 5))
    assert float(ratio.std()) == pytest.approx(0.02, rel=0.4)


def test_spectrograph_flat_is_smooth_over_the_quadrant_and_as_measured():
    """All the colour from the flat: two visits with other shutters obey one smooth field."""
    asked = CLEAN | {"colour_scatter": 0.0153, "flat_share": 1.0}  # all that was measured
    ds = small(exposures=1, visits=2, slits=60, background_slits=60, **asked)
    ratio = ds.true_background / ds.true_sky
    ratio = ratio.where(centres(ds, 0.15)).compute()
    low = ratio.where((ds.wavelength > 0.65) & (ds.wavelength < 1.2)).median(("y", "x"))
    high = ratio.where((ds.wavelength > 3.5) & (ds.wavelength < 5)).median(("y", "x"))
    tint = (high / low - 1).values
    r, c = (ds.shutter_row.values - 183) / 182, (ds.shutter_column.values - 86) / 85
    for quadrant in (1, 2, 3, 4):
        here = (ds.quadrant.values == quadrant) & np.isfinite(tint)
        if here.sum() < 12:
            continue
        a, b = r[here], c[here]
        basis = np.stack([a**0, a, b, a * a, a * b, b * b], axis=1)
        rest = tint[here] - basis @ np.linalg.lstsq(basis, tint[here], rcond=None)[0]
        assert np.std(rest) < 0.004
    assert 0.01 < np.nanstd(tint) < 0.06
    assert 0.005 < float(np.log(ds.true_scale).std()) < 0.03


def test_spectrograph_flat_follows_the_coefficients():
    """The numbers in the code against the files they were read from, in every quadrant."""
    files = sorted(FLAT.glob("sflat_coeffs_prism_q?.fits"))
    if not files:
        pytest.skip(f"no flat coefficients at {FLAT}")
    knots = np.r_[[0] * 4, 0.25, 0.5, 0.75, [1] * 4]
    r, c = (a.ravel() for a in np.meshgrid(np.linspace(-0.8, 0.8, 9), np.linspace(-0.75, 0.75, 9)))
    row, column = 183 + 182 * r, 86 + 85 * c
    low, high = np.log(get_disperser("PRISM").band)
    measured, ours = [], []
    for quadrant, path in enumerate(files, 1):
        table = fits.getdata(path)
        used = (table["nsrc"] > 0) & (table["wave"] > 0.62) & (table["wave"] < 5.3)
        across, along = (
            BSpline.design_matrix(x, knots, 3).toarray() for x in (column / 180, row / 370)
        )
        shape = np.einsum("ny,nx->nyx", across, along).reshape(r.size, 49)
        flat = np.log(np.clip(table["coeffs"][used] @ shape.T, 0.5, 2))
        phase = (2 * np.log(table["wave"][used]) - low - high) / (high - low)
        terms = np.stack([spectrograph_flat(quadrant, *p) for p in zip(row, column, strict=True)])
        measured.append(flat)
        ours.append(0.0153 * np.polynomial.legendre.legval(phase, terms.T).T)
    n_waves = min(map(len, measured))  # their wavelengths differ by less than 0.01 um
    # What is common to all slits is no difference between slits.
    measured, ours = (np.stack([b[:n_waves] for b in a]) for a in (measured, ours))
    measured = measured - np.median(measured, axis=(0, 2), keepdims=True)
    ours = ours - np.median(ours, axis=(0, 2), keepdims=True)
    usual = np.abs(measured) < 0.1
    slope = np.mean(measured[usual] * ours[usual]) / np.mean(ours[usual] ** 2)
    assert slope == pytest.approx(1, abs=0.15)
    assert np.corrcoef(measured[usual], ours[usual])[0, 1] > 0.6


def test_pixel_flat_is_the_detectors():
    quiet = CLEAN | {"flagged_fraction": 0}
    ds = small(**quiet, pixel_flat=0.004, seed=4).compute()
    without = small(**quiet, seed=4).compute()
    flat = (ds.true_background / without.true_background).values - 1
    inside = np.isfinite(flat)
    assert np.std(flat[inside]) == pytest.approx(0.004, rel=0.02)
    assert abs(np.mean(flat[inside])) < 1e-4
    nods = [flat[ds.nod.values == n] for n in (1, 2, 3)]
    for other in nods[1:]:
        np.testing.assert_allclose(other, nods[0], atol=2e-7)
    good = inside & usable(ds)
    np.testing.assert_allclose(
        ds.var_flat.values[good], (0.004 * ds.flux.values[good]) ** 2, rtol=1e-5
    )
    total = ds.var_rnoise + ds.var_poisson + ds.var_flat
    np.testing.assert_allclose(ds.error.values[good] ** 2, total.values[good], rtol=1e-5)
    assert "var_flat" not in without


def test_flats_of_no_size_change_nothing():
    a, b = (small(colour_scatter=0, flat_share=s, seed=4).compute() for s in (0.0, 1.0))
    assert a.identical(b)


def test_pedestal_is_one_offset_for_each_exposure_and_detector():
    ds = small(**CLEAN | {"pedestal": 0.3}, background_slits=8, detectors=("NRS1", "NRS2"))
    ds = ds.isel(slit=slice(None, None, 2)).compute()
    at = centres(ds) & usable(ds)
    read = np.sqrt(np.where(at, ds.var_rnoise.values, np.nan))
    offset = (ds.true_background - ds.true_sky).values / read
    name = [f"{e} {d}" for e, d in zip(ds.exposure.values, ds.detector.values, strict=True)]
    found = {n: np.median(offset[np.array(name) == n][at[np.array(name) == n]]) for n in set(name)}
    assert len({round(float(v), 2) for v in found.values()}) == 6
    assert 0.1 < np.std(list(found.values())) < 0.6


def test_signal_to_noise_as_asked():
    for wanted in (3.0, 20.0):
        ds = small(**CLEAN, signal_to_noise=wanted, background_slits=8, slits=8).compute()
        ratio = (ds.true_sky / ds.error).values[centres(ds) & usable(ds)]
        assert np.median(ratio) / 1.2 == pytest.approx(wanted, rel=0.1)


def test_read_noise_and_exposure_time_scale_the_noise():
    base, quiet, long = (
        small(**c).compute() for c in ({}, {"read_noise": 0.5}, {"exposure_time": 4 * 1021.222})
    )
    good = usable(base)
    ratio = quiet.var_rnoise.values[good] / base.var_rnoise.values[good]
    assert np.median(ratio) == pytest.approx(0.25, rel=1e-4)
    ratio = long.var_rnoise.values[good] / base.var_rnoise.values[good]
    assert np.median(ratio) == pytest.approx(0.25, rel=1e-4)


def test_point_calibration_says_how_in_response():
    extended = small(seed=7).compute()
    point = small(seed=7, calibration="POINT").compute()
    assert "response" not in extended
    source = ~point.is_background.values
    assert np.nanmin(point.response.values[~source]) == np.nanmax(point.response.values[~source])
    inside = np.isfinite(point.wavelength.values)
    np.testing.assert_allclose(
        (point.true_background / point.response).values[inside],
        extended.true_background.values[inside],
        rtol=1e-5,
    )
    good = inside & usable(point) & (point.error.values < 5)  # a few pixels see no light
    np.testing.assert_allclose(
        (point.flux / point.response).values[good], extended.flux.values[good], rtol=1e-3, atol=1e-5
    )
    bars = np.abs(np.abs(point.yrel.values) - 0.5) < 0.05
    middle = centres(point, 0.1)
    fall = np.nanmedian(point.response.values[source][bars[source]]) / np.nanmedian(
        point.response.values[source][middle[source]]
    )
    assert fall < 0.6


def test_outliers_and_flags(programme):
    inside = np.isfinite(programme.wavelength.values)
    good = inside & usable(programme)
    assert 1 - good.sum() / inside.sum() == pytest.approx(0.05, abs=0.005)
    assert programme.outlier.values[good].mean() == pytest.approx(0.006, abs=0.001)
    assert not programme.outlier.values[~usable(programme)].any()
    away = np.abs(programme.flux - programme.true_background).values / programme.error.values
    background = programme.is_background.values & ~programme.contaminated.values
    of_outliers = away[programme.outlier.values & background[:, None, None]]
    # A bright one raises its own error, being counted with the photons.
    assert np.median(of_outliers) > 4.5


def test_contaminated_slits_hold_more_light():
    ds = small(slits=30, background_slits=30, contaminated_fraction=0.5, seed=8).compute()
    share = ds.contaminated.mean().item()
    assert 0.3 < share < 0.6  # half the slitlets, less those it leaves by nodding
    excess = (ds.flux - ds.true_background).where(usable(ds)).clip(-0.2, 0.2)
    mean = excess.mean(("y", "x"))
    assert mean[ds.contaminated].mean() > 1.5e-3
    assert abs(mean[~ds.contaminated].mean()) < 5e-4


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_slitlets_of_any_length(n):
    ds = small(n_shutters=n, nods=5 if n == 5 else 3, slits=4, background_slits=1).compute()
    low, high = -((n - 1) // 2), n // 2
    assert np.nanmin(ds.yrel) == pytest.approx(low - 0.52, abs=0.12)
    assert np.nanmax(ds.yrel) == pytest.approx(high + 0.52, abs=0.12)
    inside = np.isfinite(ds.true_background.values)
    for shutter in range(low, high + 1):
        at = inside & (np.abs(ds.yrel.values - shutter) < 0.1)
        ratio = np.median(ds.true_background.values[at] / ds.true_sky.values[at])
        assert ratio == pytest.approx(1, abs=0.1)
    assert ds.source_shutter.min() >= low and ds.source_shutter.max() <= high


def test_mixed_slitlet_lengths():
    ds = small(n_shutters={1: 0.2, 3: 0.5, 5: 0.3}, slits=40)
    assert set(np.unique(ds.n_shutters)) == {1, 3, 5}


@pytest.mark.parametrize("grating", ["PRISM", "G140M", "G235M", "G395M", "G395H"])
def test_dispersers_stay_on_the_detector(grating):
    ds = simulate_program(
        exposures=1, slits=5, background_slits=2, detectors=("NRS1", "NRS2"), grating=grating
    )
    wavelength = ds.wavelength.compute()
    low, high = get_disperser(grating).band
    step = get_disperser(grating).dispersion(high)
    assert np.nanmin(wavelength) > low - 4 * step and np.nanmax(wavelength) < high + 4 * step
    columns = np.isfinite(wavelength.values).any(axis=1)
    last = ds.x_start.values + columns.shape[1] - 1 - np.argmax(columns[:, ::-1], axis=1)
    assert ds.x_start.min() >= 0 and last.max() <= 2047
    longest = columns.sum(axis=1).max()
    expected = {"PRISM": 430, "G140M": 1400, "G235M": 1350, "G395M": 1280, "G395H": 2048}[grating]
    assert longest == pytest.approx(expected, rel=0.1)


def test_prism_cut_outs_are_of_the_usual_size():
    ds = simulate_program(exposures=1, slits=100, background_slits=20, detectors=("NRS1", "NRS2"))
    wavelength = ds.wavelength.compute().values
    assert np.median(np.isfinite(wavelength).any(axis=1).sum(axis=1)) == pytest.approx(424, abs=12)
    assert abs(ds.sizes["y"] - 22) <= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"background_slits": 9}, "more background slits than slits"),
        ({"read_noise": -1.0}, "read_noise"),
        ({"grating": "G999M"}, "unknown disperser"),
        ({"filter": "F290LP"}, "not used with filter"),
        ({"exposures": 0}, "exposures"),
        ({"slits": 2.5}, "slits"),
        ({"chunks": 0}, "chunks"),
        ({"nods": 4}, "nods"),
        ({"n_shutters": 4}, "n_shutters"),
        ({"n_shutters": {}}, "n_shutters"),
        ({"n_shutters": {3: -1.0}}, "n_shutters"),
        ({"detectors": ("NRS3",)}, "detectors"),
        ({"detectors": ()}, "detectors"),
        ({"calibration": "BOTH"}, "calibration"),
        ({"outlier_fraction": 1.5}, "outlier_fraction"),
        ({"error_scale": 0}, "error_scale"),
        ({"signal_to_noise": -3}, "signal_to_noise"),
        ({"throughput_scatter": np.nan}, "throughput_scatter"),
        ({"sky": "sunny"}, "unknown sky"),
        ({"flat_share": 1.1}, "flat_share"),
        ({"pixel_flat": -0.1}, "pixel_flat"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(ParameterError, match=message):
        small(**changes)
