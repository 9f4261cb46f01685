"""The pages of releases inside Airflow, in Chromium on the real stack."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.browsing import NARROW, Visit, chromium
from tests.browser.seeding import HOSTILE, Seeder

from .embedded import RunningStack

pytestmark = pytest.mark.system
EXPERIMENT, MODEL = "pages", "pages-radio"
LIST = f"/plugin/onnx-releases/onnx-release/releases?experiment={EXPERIMENT}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def runs(stack: RunningStack) -> dict[str, str]:
    """Releases of several ends, by the name of the training run."""
    seeder = Seeder(stack.context.mlflow_url)
    seeder.experiment(EXPERIMENT)
    return {
        "run-15": seeder.released("run-15", MODEL, ago=timedelta(days=6), speedup=2.1, size_bytes=95_000_000),
        "run-16": seeder.released("run-16", MODEL, ago=timedelta(hours=5), settled=False),
        "run-17": seeder.released("run-17", MODEL, ago=timedelta(hours=3), aliases=("candidate",)),
        "run-9": seeder.refused("run-9", "gru-onnx", ago=timedelta(days=1)),
        HOSTILE: seeder.refused(
            HOSTILE, "odd-onnx", ago=timedelta(minutes=9), reason=f'{HOSTILE}"><img src=x onerror=1>'
        ),
    }


@pytest.fixture
def visit(stack: RunningStack, browser: Browser, runs: dict[str, str]) -> Iterator[Visit]:
    begun = Visit.begin(stack.context, browser)
    yield begun
    begun.browser.close()
    assert begun.complaints() == []


def test_from_sign_in_over_a_refusal_to_a_release_with_another_limit(
    stack: RunningStack, browser: Browser, runs: dict[str, str]
) -> None:
    visit = Visit.begin(stack.context, browser, role="stranger")
    visit.open(f"/onnx-release/releases?experiment={EXPERIMENT}&state=refused")
    visit.page.get_by_label("Username").fill(stack.context.credentials.airflow_username)
    visit.page.get_by_label("Password").fill(stack.context.credentials.airflow_password)
    visit.page.get_by_role("button", name="Sign in").click()
    visit.page.wait_for_url(f"**/onnx-release/releases?experiment={EXPERIMENT}&state=refused")
    visit.open(LIST)
    shown = visit.frame()
    shown.get_by_role("link", name="Size", exact=True).click()
    expect(shown.get_by_role("columnheader", name="Size")).to_have_attribute("aria-sort", "descending")
    expect(shown.get_by_role("row").nth(1)).to_contain_text("113 MB")
    shown.get_by_role("link", name="Age", exact=True).click()
    # Until the list is sorted by age, the links of the old document are there: they keep its order in their address.
    expect(shown.get_by_role("columnheader", name="Age")).to_have_attribute("aria-sort", "ascending")
    shown.get_by_role("link", name=re.compile("^Refused")).click()
    expect(shown.get_by_role("table")).to_contain_text("hold NaN or infinity")
    expect(shown.get_by_role("table")).not_to_contain_text("run-17")
    # Airflow's address has the filter: the link can be sent to somebody.
    visit.page.wait_for_url(f"**/plugin/onnx-releases/onnx-release/releases?state=refused&experiment={EXPERIMENT}")
    shown.get_by_role("link", name="run-9", exact=True).click()
    expect(shown.get_by_role("heading", name="run-9")).to_be_visible()
    shown.get_by_role("link", name="Release again…").click()
    shown.get_by_role("link", name="Mean absolute error below").click()
    shown.get_by_role("textbox", name="Mean absolute error below").fill("0.25")
    shown.get_by_role("button", name="Start the release").click()
    # Airflow's own document opens the DAG run, not the frame.
    visit.page.wait_for_url(re.compile("/dags/release_onnx/runs/[^/]+$"))
    run_id = visit.page.url.rpartition("/")[2]
    conf = stack.api.get(f"/dags/release_onnx/dagRuns/{run_id}")["conf"]
    assert (conf["training_run_id"], conf["mae_max"]) == (runs["run-9"], 0.25)
    visit.browser.close()


def test_an_alias_moves_only_after_a_confirmation_that_names_both_versions(stack: RunningStack, visit: Visit) -> None:
    visit.open(f"/plugin/onnx-releases/onnx-release/models/{MODEL}")
    shown = visit.frame()
    shown.get_by_role("button", name="Move @candidate…").click()
    dialog = shown.get_by_role("dialog")
    expect(dialog).to_contain_text(f"Move @candidate of {MODEL} from v3 to v2.")
    dialog.get_by_label("To version").select_option("1")
    expect(dialog).to_contain_text("from v3 to v1.")
    dialog.get_by_label("Reason").fill("v3 is slow in the field")
    dialog.get_by_role("button", name="Move the alias").click()
    expect(shown.get_by_text("The move of @candidate to v1")).to_be_visible()
    found = stack.api.get("/dags/move_alias/dagRuns", order_by="-run_after")["dag_runs"]
    run = next(run for run in found if run["conf"]["model_name"] == MODEL)
    expected = {"model_name": MODEL, "alias": "candidate", "version": 1, "expected_version": 3}
    assert run["conf"] == expected | {"reason": "v3 is slow in the field"}


def test_a_viewer_may_look_but_not_move_and_a_user_without_rights_gets_nothing(
    stack: RunningStack, browser: Browser, runs: dict[str, str]
) -> None:
    viewer = Visit.begin(stack.context, browser, role="viewer")
    viewer.open(f"/onnx-release/releases/{runs['run-17']}")
    viewer.page.get_by_role("button", name="Roll @candidate back to v2…").click()
    viewer.page.get_by_label("Reason").fill("x")
    viewer.page.get_by_role("button", name="Move the alias").click()
    expect(viewer.page.get_by_role("alert")).to_contain_text("Your account may not do this in Airflow.")
    viewer.browser.close()
    nobody = Visit.begin(stack.context, browser, role=None)
    for path in (
        "/onnx-release/releases",
        f"/onnx-release/releases/{runs['run-17']}",
        f"/onnx-release/models/{MODEL}",
    ):
        nobody.open(path)
        expect(nobody.page.get_by_role("heading")).to_have_text("You may not see the releases")
        assert "run-17" not in nobody.page.content()
    nobody.browser.close()


def test_a_hostile_name_is_text_in_every_view(visit: Visit, runs: dict[str, str]) -> None:
    paths = [f"/releases?experiment={EXPERIMENT}&q={HOSTILE}", f"/releases/{runs[HOSTILE]}", "/models/odd-onnx"]
    for path in paths:
        visit.open(f"/plugin/onnx-releases/onnx-release{path}")
        shown = visit.frame()
        expect(shown.get_by_text(HOSTILE).first).to_be_attached()
        assert shown.query_selector("main img, main script") is None


def test_a_refresh_keeps_opened_details_and_the_focus(visit: Visit, runs: dict[str, str]) -> None:
    visit.open(f"/onnx-release/releases/{runs['run-17']}")
    page = visit.page
    page.get_by_role("heading", name="Parity with PyTorch").click()
    button = page.get_by_role("button", name="Roll @candidate back to v2…")
    button.focus()
    page.evaluate("document.getElementById('live').dataset.old = ''")
    page.evaluate("refresh()")
    assert page.locator("#live").get_attribute("data-old") is None
    expect(page.locator("details", has_text="Parity with PyTorch").first).to_have_attribute("open", "")
    expect(button).to_be_focused()


def test_airflows_switch_of_the_theme_reaches_the_page(visit: Visit) -> None:
    for theme in ("dark", "light"):
        visit.page.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        visit.open(LIST)
        assert visit.frame().evaluate("document.documentElement.dataset.theme") == theme


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_barrier_or_scrolls_sideways_on_a_narrow_screen(
    stack: RunningStack, browser: Browser, runs: dict[str, str], scheme: str
) -> None:
    visit = Visit.begin(stack.context, browser, viewport=NARROW, color_scheme=scheme)
    paths = [
        f"/releases?experiment={EXPERIMENT}",
        f"/releases/{runs['run-16']}",
        f"/releases/{runs['run-9']}",
        f"/models/{MODEL}",
        f"/models/{MODEL}/compare?v=1&v=3",
        "/releases?q=nothing",
    ]
    for path in paths:
        visit.open(f"/onnx-release{path}")
        expect(visit.page.get_by_role("heading").first).to_be_visible()
        assert visit.barriers() == ""
        assert not visit.scrolls_sideways(), path
    visit.browser.close()
    assert visit.complaints() == []
