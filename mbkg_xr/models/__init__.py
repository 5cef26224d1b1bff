"""From moments to coefficients: the models of the sky."""

from .basis import ERROR_NODES, Fitted, Problem, chi2_by_group, hankel, pixel_mean
from .bspline import BSpline
from .logpoly import LogPolynomial
from .template import Template

__all__ = [
    "ERROR_NODES",
    "BSpline",
    "Fitted",
    "LogPolynomial",
    "Problem",
    "Template",
    "chi2_by_group",
    "hankel",
    "pixel_mean",
]
