"""From moments to coefficients: the models of the sky."""

from .basis import ERROR_NODES, Fitted, Problem, chi2_by_group, hankel, pixel_mean
from .bspline import BSpline
from .drifting import Drifted, DriftSystem, fit_drift, products, relative_change
from .logpoly import LogPolynomial
from .template import Template

__all__ = [
    "ERROR_NODES",
    "BSpline",
    "DriftSystem",
    "Drifted",
    "Fitted",
    "LogPolynomial",
    "Problem",
    "Template",
    "chi2_by_group",
    "fit_drift",
    "hankel",
    "pixel_mean",
    "products",
    "relative_change",
]
