"""Memory that was let go of, back to the system.

The C library keeps what threads free for what they may ask for next. Between a pass and the algebra
after it, which ask for other sizes, that comes to a third of all that a fit takes.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

__all__ = ["trim"]


def trim() -> None:
    """Give back what is free, where the C library can (glibc); some milliseconds."""
    release = _malloc_trim()
    if release is not None:
        release(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
