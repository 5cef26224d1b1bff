"""A page in headless Chromium: what it logs, what it asks the network for, what it shows."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

CHROMIUM = os.environ.get("MBKG_XR_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
#: Set where the tests must not go without a browser.
REQUIRED = os.environ.get("MBKG_XR_BROWSER") == "required"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@dataclass
class Opened:
    """A page and what happened on it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ask(self, script: str, *args: Any) -> Any:
        return self.page.evaluate(script, *args)

    def wait(self, script: str, *, seconds: float = 60) -> None:
        """Until a script says true."""
        self.page.wait_for_function(script, timeout=1000 * seconds)

    def point_at(self, figure: str, source: str, index: int) -> None:
        """Put the pointer on a mark: the index-th of a source, drawn in a figure."""
        place = self.ask(_PLACE, [figure, source, index])
        self.page.mouse.move(place["x"] - 2, place["y"])
        self.page.mouse.move(place["x"], place["y"])


# Where a mark lies in the window, scrolled there.
_PLACE = """([figure, source, index]) => {
  const document = Bokeh.documents[0];
  const plot = document.get_model_by_name(figure), data = document.get_model_by_name(source).data;
  const view = Bokeh.index.find_one_by_id(plot.id);
  view.el.scrollIntoView();
  const box = view.el.getBoundingClientRect();
  return {x: box.x + view.frame.x_scale.compute(data.x[index]),
          y: box.y + view.frame.y_scale.compute(data.y[index])};
}"""


@contextmanager
def opened(url: str) -> Iterator[Opened]:
    """Open a page; errors of the page and of its scripts are collected, not raised."""
    reason = ""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        reason = "playwright is not installed"
    if not reason and not os.access(CHROMIUM, os.X_OK):
        reason = f"no browser at {CHROMIUM}"
    if reason:
        (pytest.fail if REQUIRED else pytest.skip)(reason)
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch_persistent_context(
            folder,
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1150, "height": 1400},
        )
        try:
            found = Opened(browser.new_page())
            found.page.on(
                "console", lambda m: found.errors.append(m.text) if m.type == "error" else None
            )
            found.page.on("pageerror", lambda e: found.errors.append(str(e)))
            found.page.on("request", lambda r: found.requests.append(r.url))
            found.page.goto(url)
            yield found
        finally:
            browser.close()
