"""The explorer: a local page to pick a slit of a stored result and look at it."""

from .server import explore

__all__ = ["explore"]
