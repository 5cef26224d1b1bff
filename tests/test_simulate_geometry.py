"""Where the simulator puts slits and pixels."""

import numpy as np
import pytest

from mbkg_xr.barshadow import shutter_positions
from mbkg_xr.errors import ParameterError
from mbkg_xr.simulate import DISPERSERS, get_disperser
from mbkg_xr.simulate.geometry import cutout, trace

PRISM = get_disperser("PRISM")


def test_prism_dispersion_is_that_of_the_jdox_table():
    # u(1 um) .. u(5 um), integrated from the full table of 1,001 rows.
    u = PRISM.u(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    np.testing.assert_allclose(np.diff(u), [52.99, 63.28, 86.41, 112.20], atol=0.02)


@pytest.mark.parametrize("grating", DISPERSERS)
def test_table_and_its_inverse_agree(grating):
    d = get_disperser(grating)
    wavelength = np.linspace(*d.band, 1000)
    np.testing.assert_allclose(d.wavelength(d.u(wavelength)), wavelength, atol=1e-6)
    step = 1e-4
    slope = (d.u(wavelength + step) - d.u(wavelength - step)) / (2 * step)
    np.testing.assert_allclose(slope * d.dispersion(wavelength), 1, atol=2e-3)


def test_tilt_and_step_vary_over_the_msa_as_the_traces_do():
    tilts, steps = [], []
    for quadrant in (1, 2, 3, 4):
        for column in (10, 86, 160):
            t = trace(quadrant, 183, column, "NRS1", PRISM)
            tilts.append(t.tilt)
            steps.append(-1 / t.pitch)
    assert min(tilts) > -0.17 and max(tilts) < -0.10
    assert min(steps) > -0.202 and max(steps) < -0.197


def test_both_detectors_see_one_focal_plane():
    one, two = (trace(1, 300, 80, d, PRISM) for d in ("NRS1", "NRS2"))
    assert one.x - two.x == pytest.approx(2194.224)
    left, right = (cutout(t, PRISM, 3)[1] for t in (one, two))
    assert left.stop == 2048 and right.start == 0  # the gap cuts the spectrum
    lost = 2194.224 - 2048
    length = float(np.ptp(PRISM.u(np.array(PRISM.band)))) * one.stretch
    assert (left.stop - left.start) + (right.stop - right.start) == pytest.approx(
        length - lost, abs=3
    )


def test_nothing_off_the_detector():
    far = trace(3, 183, 86, "NRS2", PRISM)
    rows, columns = cutout(far, PRISM, 3)
    assert rows.stop == rows.start and columns.stop == columns.start


@pytest.mark.parametrize(
    ("n", "expected"), [(1, [0]), (2, [0, 1]), (3, [-1, 0, 1]), (5, [-2, -1, 0, 1, 2])]
)
def test_shutter_centres_are_integers(n, expected):
    assert shutter_positions(n).tolist() == expected


@pytest.mark.parametrize(("grating", "filter"), [("G500M", None), ("PRISM", "F100LP")])
def test_unknown_disperser(grating, filter):
    with pytest.raises(ParameterError, match="expected one of"):
        get_disperser(grating, filter)
