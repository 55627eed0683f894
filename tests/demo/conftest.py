"""A real headless Chromium: Debian's, driven by Playwright. Without one these tests are skipped; in CI they fail."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.demo.serving import png

FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)

# When each box was drawn, for whoever measures: window.drawn = [[reply, milliseconds since 1970], …], at the frame that
# shows it.
WATCH = """
window.drawn = [];
new MutationObserver((changes) => {
  for (const change of changes) for (const node of change.addedNodes)
    if (node.classList?.contains("box")) {
      const reply = [...document.querySelectorAll(".reply")].indexOf(node.closest(".reply"));
      requestAnimationFrame(() => window.drawn.push([reply, performance.timeOrigin + performance.now()]));
    }
}).observe(document, { childList: true, subtree: true });
"""


# Of a module and no longer: its event loop runs in this thread, where other tests want one of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    binary = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        why = "no chromium: apt-get install chromium, or say where one is with CHROMIUM=/path/to/it"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        with_browser = playwright.chromium.launch(executable_path=binary, args=[*FLAGS])
        yield with_browser
        with_browser.close()


@dataclass
class Visit:
    """A browser of one visitor. What the console and the network say is asserted at the end of a test: no error, no
    breach of the policy, nothing from another host. `expected`: words of errors that a test brings about."""

    context: BrowserContext
    said: list[str]
    asked: list[str]
    expected: tuple[str, ...] = ()

    def open(self, url: str, image: bytes | None = png(), question: str = "Where is the disc?") -> Page:
        """The page, with an image and a question put in."""
        page = self.context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.said.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(url)
        page.wait_for_selector("body[data-server=ready]")
        if image is not None:
            put(page, image)
        page.fill("#question", question)
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(message.text)

    def settle(self) -> None:
        assert not [said for said in self.said if not any(word in said for word in self.expected)]
        local = ("http://127.0.0.1:", "http://localhost:", "blob:http://127.0.0.1:", "data:")
        assert not [url for url in self.asked if not url.startswith(local)]


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Any]:
    """visitor(width=…, color_scheme=…): a Visit of its own."""
    visits: list[Visit] = []

    def visit(width: int = 1200, height: int = 800, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        context.set_default_timeout(10_000)
        context.add_init_script(WATCH)
        visits.append(Visit(context, [], []))
        return visits[-1]

    yield visit
    for each in visits:
        each.context.close()
        each.settle()


def put(page: Page, data: bytes, name: str = "discs.png", kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})


def ask(page: Page) -> None:
    """And waits for the end of all replies."""
    page.click("#go")
    page.wait_for_selector(".reply")
    ended(page)


def ended(page: Page) -> None:
    page.wait_for_selector("body:not(.busy)")


def until(page: Page, expression: str, seconds: float = 10.0) -> None:
    """Waits for it to be true. Not Playwright's own wait, which the page's policy forbids: it makes code of a text."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression} stayed false"
        time.sleep(0.02)


def drawn(page: Page, reply: int = 0) -> list[list[float]]:
    """The boxes of a reply as they stand in the page: x1, y1, x2, y2 in pixels of the image."""
    rects = page.locator(".reply").nth(reply).locator(".box .edge")
    sides = rects.evaluate_all("all => all.map(r => ['x', 'y', 'width', 'height'].map(n => +r.getAttribute(n)))")
    return [[x, y, x + width, y + height] for x, y, width, height in sides]
