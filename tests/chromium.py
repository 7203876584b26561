"""The system's Chromium, driven by playwright, and a record of everything that a page said and asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WHERE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def running() -> Iterator[Any]:
    """Run a headless browser that can reach this machine alone; skip, saying why, where there is none."""
    if WHERE is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="not installed: playwright")
    arguments = ["--no-sandbox", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=WHERE, args=arguments)
        yield browser
        browser.close()


class Watched:
    """A page; what it said on the console, what it requested (as the network saw it), and a check of both."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.replies: list[bytes] = []
        network = self.context.new_cdp_session(self.page)
        network.send("Network.enable")
        network.on("Network.requestWillBeSent", lambda event: self.requests.append(event["request"]["url"]))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))

    def outside(self, *inside: str) -> list[str]:
        """The requests that went elsewhere than to addresses that begin so."""
        assert self.requests, "the network recorder saw nothing"
        return [url for url in self.requests if not url.startswith((*inside, "data:"))]
