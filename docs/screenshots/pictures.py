"""Pictures of Airflow's pages in two themes and two widths, taken with Chromium and written as small PNG files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests
from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, sync_playwright

from stack.context import Context
from stack.errors import StackError
from stack.http import session
from stack.layout import REPO

FOLDER = REPO / "docs" / "pictures"
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
THEMES = ("light", "dark")
# Airflow's navigation is in the wide pictures only: it would take a sixth of a narrow one.
SIZES = {"": (1440, 900), "-narrow": (420, 900)}
IN_AIRFLOW = "/plugin/onnx-releases"
TIMEOUT_MS = 60_000
COLOURS = 256
# A page with little content gives a lower picture.
HEIGHT_MIN = 420


def require_chromium() -> None:
    """Raise `StackError` without Chromium, before anything starts."""
    if not CHROMIUM.exists():
        raise StackError(f"{CHROMIUM} is missing. Install it (apt-get install chromium), or set CHROMIUM to its path.")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs a user other than root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield browser
        browser.close()


def take(browser: Browser, context: Context, paths: Mapping[str, str]) -> None:
    """Write the pictures of pages in each theme and width.

    :param paths: the path of each page below the package's web app, by the name of the picture.
    """
    FOLDER.mkdir(exist_ok=True)
    token = _token(context)
    for theme in THEMES:
        for suffix, (width, height) in SIZES.items():
            window = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if theme == "dark" else "light",
                reduced_motion="reduce",
            )
            window.set_default_timeout(TIMEOUT_MS)
            window.add_cookies([{"name": "_token", "value": token, "url": context.airflow_url}])
            window.add_init_script(f"localStorage.setItem('theme', '{theme}')")
            page = window.new_page()
            for name, path in paths.items():
                page.goto(f"{context.airflow_url}{'' if suffix else IN_AIRFLOW}/onnx-release{path}")
                bottom = _await_content(page)
                clip = FloatRect(x=0, y=0, width=width, height=min(height, max(bottom, HEIGHT_MIN)))
                picture = page.screenshot(animations="disabled", clip=clip)
                _write(picture, FOLDER / f"{name}-{theme}{suffix}.png")
            window.close()


def _token(context: Context) -> str:
    secrets = context.credentials
    body = {"username": secrets.airflow_username, "password": secrets.airflow_password}
    try:
        answer = session().post(f"{context.airflow_url}/auth/token", json=body, timeout=60)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise StackError(f"Airflow at {context.airflow_url} does not answer: {error}") from error
    return str(answer.json()["access_token"])


def _await_content(page: Page) -> float:
    """Wait until the page of this package is shown, alone or in Airflow's frame, and return its lower end in pixels."""
    in_frame = IN_AIRFLOW in page.url
    shown = page.frame_locator("iframe") if in_frame else page
    shown.locator("main h1").first.wait_for()
    # The form of the trigger page comes after its frame.
    shown.locator("#submit:disabled").wait_for(state="detached")
    # On a busy host MLflow may answer too late. The page reads it again after some seconds.
    shown.locator(".notice[role=alert]:visible").first.wait_for(state="detached")
    # Airflow's own parts, such as icons, come some time later.
    page.wait_for_timeout(500)
    box = shown.locator("main").bounding_box()
    return box["y"] + box["height"] if box else 0.0


def _write(picture: bytes, path: Path) -> None:
    """Write a picture with few colours: pages have flat areas, and the repository keeps every version of a file."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
