"""Figures: what was selected, fitted and subtracted, and what is left.

Each function takes a dataset, draws on `ax` (on a new figure where none is given) and returns the
artist; ``artist.figure`` is the figure. Only the pixels a figure needs are read. Figures of all
slits take slits from all over the programme where there are too many pixels, and say so.
"""

from .chosen import plot_model_choice, plot_profile
from .noise import plot_white_noise
from .programme import plot_msa, plot_slit_ranking
from .residual_map import plot_residual_map
from .residuals import plot_residual_spectrum, plot_residuals
from .slits import plot_selection, plot_subtraction
from .spectra import plot_cloud, plot_master_image

__all__ = [
    "plot_cloud",
    "plot_master_image",
    "plot_model_choice",
    "plot_msa",
    "plot_profile",
    "plot_residual_map",
    "plot_residual_spectrum",
    "plot_residuals",
    "plot_selection",
    "plot_slit_ranking",
    "plot_subtraction",
    "plot_white_noise",
]
