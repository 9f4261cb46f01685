"""Chromium on Airflow's pages, signed in as a user of any role, with the console and accessibility checks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Frame, Page, expect, sync_playwright

from stack.context import Context

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
TIMEOUT_MS = 120_000
NARROW = {"width": 420, "height": 900}
WIDE = {"width": 1400, "height": 900}
# Airflow's own document has this line for each of its frames with scripts.
_HARMLESS = ("allow-scripts and allow-same-origin", "React DevTools")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium, or skip the test."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing. Install it (apt-get install chromium), or set CHROMIUM to its path.")
    # Playwright's own limit of 5 s is short for a busy host.
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """One user in front of a browser. `messages` are the errors and warnings of the console."""

    context: Context
    browser: BrowserContext
    page: Page
    messages: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, context: Context, browser: Browser, *, role: str | None = "admin", **options: Any) -> Visit:
        """Open a browser window for a user of a role; None for a user without any right, `stranger` for nobody."""
        window = browser.new_context(viewport=options.pop("viewport", WIDE), **options)
        window.set_default_timeout(TIMEOUT_MS)
        if role != "stranger":
            window.add_cookies([{"name": "_token", "value": token(context, role), "url": context.airflow_url}])
        visit = cls(context, window, window.new_page())
        visit.page.on("console", lambda one: visit.messages.append(one.text) if one.type != "log" else None)
        visit.page.on("pageerror", lambda error: visit.messages.append(f"error: {error}"))
        visit.page.on("dialog", lambda dialog: visit.messages.append(f"dialog: {dialog.message}"))
        return visit

    def open(self, path: str) -> None:
        """Open a page of Airflow."""
        self.page.goto(f"{self.context.airflow_url}{path}")

    def frame(self) -> Frame:
        """Return the frame of Airflow's page that has a page of this package."""
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        while time.monotonic() < deadline:
            for one in self.page.frames:
                if one.parent_frame and "/onnx-release/" in one.url and one.query_selector("main h1"):
                    return one
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{self.page.url} shows no page of releases")

    def complaints(self) -> list[str]:
        """Return the messages of the console that name a fault, such as a report of the content security policy."""
        return [text for text in self.messages if not any(known in text for known in _HARMLESS)]

    def barriers(self) -> str:
        """Return the findings of axe-core by WCAG 2.2 AA on the present page, an empty text for none."""
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        results = Axe().run(self.page, options={"runOnly": {"type": "tag", "values": tags}})
        return "" if not results.violations_count else f"{self.page.url}\n{results.generate_report()}"

    def scrolls_sideways(self) -> bool:
        """Return True if the page is wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


def token(context: Context, role: str | None) -> str:
    """Return a token of Airflow for a user of a role, signed with the stack's own secret."""
    import requests

    secrets = context.credentials
    body = {"username": secrets.airflow_username, "password": secrets.airflow_password}
    answer = requests.post(f"{context.airflow_url}/auth/token", json=body, timeout=120)
    given = answer.json()["access_token"]
    if role == "admin":
        return str(given)
    claims = jwt.decode(given, options={"verify_signature": False})
    header = jwt.get_unverified_header(given)
    claims |= {"sub": f"{role}-user", "role": role}
    return jwt.encode(claims, secrets.jwt_secret, algorithm=header["alg"])
