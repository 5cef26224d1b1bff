"""Simulated NIRSpec MOS programmes with known truth: for tests, the demo and benchmarks."""

from .dispersers import DISPERSERS, get_disperser
from .jwst import write_jwst
from .nips import write_nips
from .program import CLEAN, simulate_program
from .skies import SKIES
from .sky import Sky, SkyTable, fit_sky, sky_mean, sky_spectrum

__all__ = [
    "CLEAN",
    "DISPERSERS",
    "SKIES",
    "Sky",
    "SkyTable",
    "fit_sky",
    "get_disperser",
    "simulate_program",
    "sky_mean",
    "sky_spectrum",
    "write_jwst",
    "write_nips",
]
