"""From moments to coefficients: the models of the sky."""

from .basis import ERROR_NODES, Fitted, Model, Problem, pixel_mean
from .bspline import BSpline
from .logpoly import LogPolynomial

__all__ = [
    "ERROR_NODES",
    "BSpline",
    "Fitted",
    "LogPolynomial",
    "Model",
    "Problem",
    "pixel_mean",
]
