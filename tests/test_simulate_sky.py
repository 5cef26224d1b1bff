"""The noise-free sky."""

from pathlib import Path

import numpy as np
import pytest

from mbkg_xr.errors import ParameterError
from mbkg_xr.simulate import SKIES, Sky, fit_sky, get_disperser, sky_mean, sky_spectrum
from mbkg_xr.simulate.instrument import path_loss
from mbkg_xr.simulate.sky import as_sky, sky_components

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "sky_spectra"
PIXEL_AREA = 4.8496e-13  # sr, of the PRISM spectra


def read_spectrum(path):
    """uJy a pixel without path loss correction -> MJy/sr."""
    table = np.genfromtxt(path, delimiter=",", names=True)
    wavelength = table["wave"]
    return wavelength, table["flux"] / (PIXEL_AREA * 1e12 * path_loss(wavelength))


def test_any_real_spectrum_is_reproduced():
    paths = sorted(DATA.glob("*.csv"))
    if not paths:
        pytest.skip(f"no real sky spectra at {DATA}")
    for path in paths:
        wavelength, flux = read_spectrum(path)
        again = sky_spectrum(wavelength, fit_sky(wavelength, flux))
        assert np.std(again / flux) < 0.01, path.name


def test_named_skies_are_the_measured_ones():
    visits = {
        "ceers": "01345062001",
        "uncover": "02561002003",
        "bright": "01215010001",
        "faint": "04557025001",
    }
    assert set(visits) == set(SKIES)
    for name, visit in visits.items():
        path = DATA / f"jw{visit}_sky.csv"
        if not path.exists():
            pytest.skip(f"no real sky spectra at {DATA}")
        wavelength, flux = read_spectrum(path)
        assert np.std(sky_spectrum(wavelength, name) / flux) < 0.01


@pytest.mark.parametrize("grating", ["PRISM", "G140M", "G395H"])
def test_pixel_means_from_the_integral_table(grating):
    """The table the pixels are made from, against quadrature."""
    disperser = get_disperser(grating)
    u, _wavelength = disperser.table
    rng = np.random.default_rng(0)
    left = np.sort(rng.uniform(u[0] + 2, u[-1] - 3, 2000))
    lower, upper = disperser.wavelength(left), disperser.wavelength(left + 1)
    integral = sky_components(as_sky(None), disperser).sum(axis=0)
    table = (np.interp(left + 1, u, integral) - np.interp(left, u, integral)) / (upper - lower)
    exact = sky_mean(lower, upper, grating=grating)
    np.testing.assert_allclose(table, exact, rtol=1e-4)


def test_lines_are_as_sharp_as_the_disperser():
    sky = Sky(0.1, 0.3, 0.15, 290, helium=1e-3, pah=1e-3)
    bare = Sky(0.1, 0.3, 0.15, 290)
    for grating, centre, strength in (
        ("PRISM", 1.0833, 1e-3),
        ("G140M", 1.0833, 1e-3),
        ("G395M", 3.29, 1e-3),
    ):
        w = np.linspace(centre - 0.15, centre + 0.15, 60001)
        line = sky_spectrum(w, sky, grating=grating) - sky_spectrum(w, bare, grating=grating)
        assert np.trapezoid(line, w) == pytest.approx(strength, rel=2e-3)
        above = w[line > line.max() / 2]
        width = 0.042 if centre > 3 else 0.0
        expected = np.hypot(centre / get_disperser(grating).resolution(centre), width)
        assert np.ptp(above) == pytest.approx(expected, rel=0.01)


def test_a_table_is_followed():
    wavelength = np.linspace(0.6, 5.3, 500)
    flux = 0.1 + 0.02 * np.sin(wavelength)
    again = sky_spectrum(np.array([0.3, 1.0, 4.321, 6.0]), (wavelength, flux))
    np.testing.assert_allclose(again, 0.1 + 0.02 * np.sin([0.6, 1.0, 4.321, 5.3]), rtol=1e-5)


@pytest.mark.parametrize(
    "sky",
    [
        "nowhere",
        3.0,
        ([1, 2, 3, 4], [1, 1, 1]),
        ([1, 2, 2, 4], [1, 1, 1, 1]),
        ([1, 2, 3, 4], [1, np.nan, 1, 1]),
    ],
)
def test_bad_skies(sky):
    with pytest.raises(ParameterError, match="sky"):
        sky_spectrum(1.0, sky)


def test_fit_refuses_what_it_cannot_fit():
    wavelength = np.linspace(0.7, 5.2, 200)
    flux = sky_spectrum(wavelength)
    flux[3] = -1.0
    with pytest.raises(ParameterError, match="not positive"):
        fit_sky(wavelength, flux)
    with pytest.raises(ParameterError, match="rising"):
        fit_sky(wavelength[::-1], flux)
