"""The trigger page in Chromium, with the real parameters of the DAG. The API of Airflow is the test's own."""

from __future__ import annotations

import json
import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, sync_playwright

from airflow_onnx.dag import release_dag
from airflow_onnx.dag_roles import DagRole
from airflow_onnx.ui.app import HEADERS, STATIC

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ORIGIN = "http://airflow.test/flows"
RUN = "ab" * 16


class Form:
    """The page in a browser window, with the requests that it posts and the messages of the console."""

    def __init__(self, browser: Browser, params: Any, **options: Any) -> None:
        self.params = params
        self.posted: list[dict[str, Any]] = []
        self.tags, self.dags = [str(DagRole.RELEASE)], ["release_onnx"]
        self.messages: list[str] = []
        # axe-core is a script of the test, which the page's own policy does not allow.
        self.page: Page = browser.new_context(bypass_csp=options.pop("bypass_csp", False), **options).new_page()
        self.page.on("console", lambda one: self.messages.append(one.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.route("**", self._answer)

    def open(self, conf: dict[str, Any] | None = None, name: str = "") -> None:
        self.page.goto(f"{ORIGIN}/onnx-release/trigger?name={quote(name)}&conf={quote(json.dumps(conf or {}))}")
        self.page.wait_for_selector("#submit:enabled")

    def _answer(self, route: Route) -> None:
        path = urlsplit(route.request.url).path.removeprefix("/flows")
        if path.endswith("/details"):
            params = {name: param.dump() for name, param in self.params.items()}
            route.fulfill(json={"params": params, "tags": [{"name": tag} for tag in self.tags]})
        elif path == "/api/v2/dags":
            assert "tags=onnx-release%3Arelease" in route.request.url
            route.fulfill(json={"dags": [{"dag_id": dag_id, "dag_display_name": dag_id} for dag_id in self.dags]})
        elif path.endswith("/dagRuns"):
            self.posted.append(json.loads(route.request.post_data or ""))
            try:
                self.params.deep_merge(self.posted[-1]["conf"]).validate()
                route.fulfill(json={"dag_run_id": "manual__1"})
            except ParamValidationError as error:
                route.fulfill(status=400, json={"detail": str(error)})
        elif path.startswith("/onnx-release/"):
            file = STATIC / {"trigger": "trigger.html"}.get(Path(path).name, Path(path).name)
            kind = mimetypes.guess_type(file.name)[0]
            route.fulfill(path=file, headers=HEADERS | {"Content-Type": str(kind)})
        else:
            route.fulfill(body="the page of the DAG run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing. Install it (apt-get install chromium), or set CHROMIUM to its path.")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])


@pytest.fixture(scope="module")
def params() -> Any:
    """The parameters as the API server has them."""
    return DagSerialization.from_dict(DagSerialization.to_dict(release_dag("release_onnx"))).params


def test_a_link_fills_in_the_form_and_only_the_changes_are_posted(browser: Browser, params: Any) -> None:
    form = Form(browser, params)
    form.open({"training_run_id": RUN, "mae_max": 1e-4, "alias": "candidate", "tune": True}, name="r [x](http://e.v)")
    changes = form.page.locator("#changes li").all_inner_texts()
    assert [text.splitlines()[0] for text in changes] == [
        f"Training run id: {RUN}",
        "Tune: on (default off)",
        "Mean absolute error below: 1e-4 (default 1e-5)",
    ]
    form.page.get_by_role("button", name="Undo the change of Tune").click()
    form.page.get_by_label("Registered model").fill("radio-onnx")
    form.page.click("#submit")
    form.page.wait_for_url("**/flows/dags/release_onnx/runs/manual__1")
    (posted,) = form.posted
    assert posted["conf"] == {"training_run_id": RUN, "mae_max": 1e-4, "model_name": "radio-onnx"}
    # A note is Markdown: a name from the address must not become a link.
    assert posted["note"].startswith("r ")
    assert posted["note"].endswith("→ radio-onnx")
    assert not set("[]()") & set(posted["note"])


def test_the_user_chooses_among_several_release_dags_and_no_other_dag_is_started(browser: Browser, params: Any) -> None:
    form = Form(browser, params)
    form.dags = ["release_churn", "release <b>"]
    conf = quote(json.dumps({"training_run_id": RUN}))
    form.page.goto(f"{ORIGIN}/onnx-release/trigger?conf={conf}")
    form.page.get_by_role("link", name="release <b>").click()
    form.page.wait_for_selector("#submit:enabled")
    assert form.page.inner_text("#dag") == "release <b>"
    form.page.click("#submit")
    form.page.wait_for_url("**/flows/dags/release%20%3Cb%3E/runs/manual__1")
    assert form.posted[0]["conf"] == {"training_run_id": RUN}
    form.tags = ["reporting"]
    form.page.goto(f"{ORIGIN}/onnx-release/trigger?dag=delete_all&conf={conf}")
    form.page.wait_for_selector("#problem:visible")
    assert "delete_all is not a DAG of releases" in form.page.inner_text("#problem")
    assert form.page.is_disabled("#submit")


def test_wrong_values_get_words_at_their_fields_and_start_nothing(browser: Browser, params: Any) -> None:
    form = Form(browser, params)
    form.open()
    form.page.click("#submit")
    assert form.page.inner_text("#training_run_id-error") == "Give a training run id or a model URI."
    form.page.get_by_label("Training run id").fill("notanid")
    form.page.get_by_label("Alias", exact=True).fill("Not An Alias")
    form.page.click("#submit")
    assert form.page.inner_text("#training_run_id-error") == "Use the 32 hex digits from the run's page in MLflow."
    assert "a lower-case letter" in form.page.inner_text("#alias-error")
    assert form.page.inner_text("#status") == "To correct: Training run id, Alias"
    assert form.page.evaluate("document.activeElement.id") == "training_run_id"
    form.open({"training_run_id": RUN, "batch_sizes": [0], "input_spec": "x", "<b>": 1, "tune": "yes"})
    assert form.page.inner_text("#batch_sizes-error") == "0: Use 1 or more."
    assert "list of objects" in form.page.inner_text("#input_spec-error")
    assert form.page.inner_text("#problem").endswith("left out: <b>, Tune (yes)")
    assert form.posted == []


def test_airflows_refusal_is_shown_in_words_at_its_field(browser: Browser, params: Any) -> None:
    form = Form(browser, params)
    form.open({"training_run_id": RUN})
    # The page must not refuse the value first.
    form.page.evaluate("RegExp.prototype.test = () => true")
    form.page.get_by_label("Registered model").fill("bad name!")
    form.page.click("#submit")
    form.page.wait_for_selector("#problem:not([hidden])")
    assert "Registered model: Use 1 to 128 letters" in form.page.inner_text("#problem")
    assert form.page.evaluate("document.activeElement.id") == "model_name"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_form_has_no_barrier_at_420_pixels(browser: Browser, params: Any, theme: Any) -> None:
    viewport: Any = {"width": 420, "height": 900}
    form = Form(browser, params, bypass_csp=True, viewport=viewport, color_scheme=theme)
    form.open({"training_run_id": "notanid", "speedup_min": -1, "per_output": {"x" * 300: {"mae_max": 1}}})
    form.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = Axe().run(form.page, options={"runOnly": {"type": "tag", "values": tags}})
    assert found.violations_count == 0, found.generate_report()
    assert form.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert form.messages == []
