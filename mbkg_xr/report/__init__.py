"""The report: one page that says what went in, what was decided and why, and what came out."""

from .figures import typical_slit
from .write import Section, write_pages, write_report

__all__ = ["Section", "typical_slit", "write_pages", "write_report"]
