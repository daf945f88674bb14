"""Debian's Chromium, driven by Playwright; shared by the tests of the page."""

import shutil
import time

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
DESKTOP = {"width": 1400, "height": 900}


class Visit:
    """A page that was opened, with every complaint and every address that it asked for."""

    def __init__(self, browser, path, viewport=WIDE, color_scheme="light"):
        self.context = browser.new_context(viewport=viewport, color_scheme=color_scheme)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.goto(f"file://{path}")
        self.wait("document.getElementById('count').textContent")

    def wait(self, expression):
        """Waits for a JavaScript expression to become true; Playwright's own way needs eval, which the page forbids."""
        end = time.monotonic() + 60
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def models(self):
        """The names in the first column, from top to bottom."""
        return self.page.locator(".opener").all_inner_texts()

    def chart(self, place="#overview-chart"):
        """The chart, once it is drawn."""
        self.page.wait_for_selector(f"{place}[data-drawn]", timeout=60_000)
        return self.page.locator(place)
