"""The exceptions of mbkg_xr: one line each, saying what went wrong, where, and what to do.

Grouped by what a caller would do about them: mend the input file (`InputFileError`), mend the
dataset (`DatasetError`), choose other pixels (`SelectionError`), choose another model (`FitError`),
choose another place to write (`StoreError`), look after the cluster (`ClusterError`), or mend a
parameter (`ParameterError`).
"""

from __future__ import annotations

__all__ = [
    "ClusterError",
    "DatasetError",
    "FitError",
    "InputFileError",
    "InputFilesError",
    "MbkgError",
    "ParameterError",
    "SelectionError",
    "StoreError",
]


class MbkgError(Exception):
    """Any error that mbkg_xr raises on purpose.

    Parameters
    ----------
    cause
        What is wrong, without a full stop.
    where
        The file, slit or variable it concerns.
    expected, found
        What should have been there and what was.
    remedy
        What the reader can do about it.

    Examples
    --------
    >>> print(MbkgError("no SCI extension", where="a.fits", expected="SCI", found="PRIMARY"))
    no SCI extension [a.fits]; expected SCI; found PRIMARY
    """

    def __init__(
        self,
        cause: str,
        *,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ):
        self.cause, self.where, self.expected = cause, where, expected
        self.found, self.remedy = found, remedy
        super().__init__(self._line())

    def _line(self) -> str:
        line = self.cause + (f" [{self.where}]" if self.where else "")
        parts = [line]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.found is not None:
            parts.append(f"found {self.found}")
        if self.remedy:
            parts.append(f"to do: {self.remedy}")
        return " ".join("; ".join(parts).split())

    def __reduce__(self):
        # Keyword-only arguments do not survive the default pickling, and dask workers pickle.
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[MbkgError], state: dict) -> MbkgError:
    error = kind.__new__(kind)
    error.__dict__.update(state)
    error.args = (error._line(),)
    return error


class InputFileError(MbkgError):
    """An input file is not what it should be."""


class InputFilesError(MbkgError):
    """Several input files are not what they should be; `errors` holds one error for each."""

    def __init__(self, errors: list[MbkgError]):
        self.errors = list(errors)
        super().__init__(
            f"{len(errors)} input files cannot be used: " + " | ".join(str(e) for e in errors)
        )


class DatasetError(MbkgError, ValueError):
    """A dataset does not keep the data contract."""


class SelectionError(MbkgError, ValueError):
    """The selection leaves nothing to work on."""


class FitError(MbkgError, ValueError):
    """The master spectrum cannot be fitted."""


class StoreError(MbkgError, OSError):
    """A result store cannot be written or read."""


class ClusterError(MbkgError, RuntimeError):
    """The cluster that does the work was lost, or cannot do it."""


class ParameterError(MbkgError, ValueError):
    """A parameter has a value that makes no sense."""
