"""The report as HTML: one file that is safe with hostile names, complete, and readable by a screen reader."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from onnx_release.errors import Refused
from onnx_release.limits import REPORT_PAGE
from onnx_release.records import (
    AppliedLimit,
    ChampionComparison,
    ChampionLatency,
    ChampionMetric,
    Divergence,
    ExportAttempt,
    Finding,
    Measures,
    Precision,
    ReleaseReport,
    StepTime,
    TensorSpec,
    TuneReport,
    TuneVariant,
)
from onnx_release.report.html import report_html, write_page
from onnx_release.report.release_report import build_report
from tests.core import records

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def complete_report(name: str = "y") -> ReleaseReport:
    """Return a report with every part, in which all foreign text is `name`."""
    limit = AppliedLimit(name="mae", measured=1e-8, limit=1e-5, passed=True)
    comparisons = tuple(records.comparison(output=name, sample=name, batch_size=b, applied=(limit,)) for b in (1, 3))
    at = Divergence(sample=name, batch_size=1, node=name, op_type=name, module=name, module_type=name, note=name)
    parity = records.parity(comparisons=comparisons, warnings=(name,), notes=(name,), divergence=at)
    host = records.HOST.replace(cpu_model=name, platform=name)
    latency = records.latency(warnings=(name,), host=host, budget={"batch_size": 1})
    variant = TuneVariant(
        name=name,
        precision=Precision.INT8,
        outcome="refused",
        reason=name,
        measures=Measures(),
        task_metrics={name: 1.0},
    )
    tuning = TuneReport(
        sha256=records.SHA,
        chosen=name,
        variants=(variant,),
        batch_size=1,
        threads=2,
        confidence=0.95,
        max_s=60.0,
        wall_s=30.0,
        task_metric={name: name},
        notes=(name,),
    )
    finding = Finding(severity="warning", code=name, message=name, fix=name)
    artifact = records.artifact(
        inputs=(TensorSpec(name=name, dtype="float32", shape=(name, 4)),),
        attempts=(ExportAttempt(strategy=name, outcome="failed", reason=name),),
        findings=(finding,),
        tuning=tuning,
        variant=name,
        session_options={name: name},
        tool_versions={name: name},
    )
    trained = records.TRAINING.replace(run_name=name, model_name=name, model_uri=name, chosen=name, skipped=(name,))
    report = build_report(
        trained, artifact, records.check(findings=(finding,)), records.benchmark(parity=parity, latency=latency)
    )
    return report.replace(steps=(StepTime(task=name, wall_s=90.0, waited_s=3.0),), dag_run_url=f"javascript:{name}")


def refusal(**parts: Any) -> ReleaseReport:
    stopped = Refused("The model", f"has {HOSTILE}", HOSTILE, code="nan_weights")
    return build_report(records.TRAINING, parts.get("artifact"), None, None, stopped)


@pytest.mark.parametrize("report", [complete_report(HOSTILE), refusal(), refusal(artifact=records.artifact())])
def test_hostile_text_is_text(report: ReleaseReport) -> None:
    html = report_html(report)
    page = Page(html)
    assert page.count("script") == 0
    assert "<script" not in html
    assert "alert(1)" in page.text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    assert not [attributes for _, attributes in page.tags if "javascript" in (attributes.get("href") or "")]


def test_the_page_needs_no_request_and_allows_no_script() -> None:
    page = Page(report_html(complete_report()))
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    (policy,) = [found["content"] or "" for tag, found in page.tags if found.get("http-equiv")]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_tables_and_drawings_have_words_for_a_screen_reader() -> None:
    html = report_html(complete_report())
    page = Page(html)
    assert page.count("table") == page.count("caption") > 4
    assert all(found.get("scope") in ("col", "row") for tag, found in page.tags if tag == "th")
    drawings = [found for tag, found in page.tags if tag == "svg"]
    assert all(
        found.get("aria-hidden") or (found["role"], bool(found["aria-label"])) == ("img", True) for found in drawings
    )
    assert any(
        (found.get("aria-label") or "").startswith("Median time per call. Batch 1: PyTorch 2 ms") for found in drawings
    )
    start = html.index('<svg class="plot"')
    plot = ElementTree.fromstring(html[start : html.index("</svg>", start) + 6])
    assert len(plot.findall(".//g")) == 2, "one mark for each side"


def test_the_state_is_a_word_a_sign_and_the_headline() -> None:
    warned, stopped = Page(report_html(complete_report())), Page(report_html(refusal()))
    assert "▲ released with a warning" in " ".join(warned.text.split())
    assert "✖ refused" in " ".join(stopped.text.split())
    assert "nan_weights" in stopped.text
    assert "Times as a table" in warned.text


def test_the_champion_is_a_third_side_and_has_a_table_of_its_own() -> None:
    beside = ChampionLatency(times=records.batch().candidate, speed=1.3, speed_low=1.1, speed_high=1.5)
    compared = ChampionComparison(
        sha256=records.SHA, size_bytes=1200, alias=HOSTILE, version=4, champion_size_bytes=1000, margin=0.1,
        metric_loss_max=0.01, on_worse="warn", on_unsettled="warn", agreement={HOSTILE: Measures(mae=2e-3)},
        metrics=(ChampionMetric(output="y", name=HOSTILE, champion=0.9, candidate=0.8, loss=0.1),),
        warnings=(HOSTILE,),
    )  # fmt: skip
    batch = records.batch(champion=beside)
    benchmark = records.benchmark(latency=records.latency(batches=(batch,)), champion=compared)
    html = report_html(build_report(records.TRAINING, records.artifact(), records.check(), benchmark))
    text = " ".join(Page(html).text.split())
    assert Page(html).count("script") == 0
    assert "Against the champion, version 4" in text
    assert "faster: 1.3 times as fast [1.1, 1.5]" in text
    assert "1 kB1.2 kB +20 %" in text
    assert "worse by 10 %, allowed 1 %" in text
    assert "MAE 0.002 between the outputs of both" in text
    start = html.index('<svg class="plot"')
    plot = ElementTree.fromstring(html[start : html.index("</svg>", start) + 6])
    assert [mark.get("class") for mark in plot.findall(".//g")] == ["reference", "candidate", "champion"]
    impossible = benchmark.replace(champion=compared.replace(problem=HOSTILE))
    text = Page(report_html(build_report(records.TRAINING, records.artifact(), records.check(), impossible))).text
    assert f"It was not measured: {HOSTILE}" in text


def test_many_outputs_give_a_short_table_with_the_rest_below() -> None:
    limits = [AppliedLimit(name="mae", measured=1e-8 * row, limit=1e-5, passed=True) for row in range(1, 41)]
    comparisons = tuple(
        records.comparison(output=f"head_{row}", batch_size=3, applied=(limit,)) for row, limit in enumerate(limits, 1)
    )
    benchmark = records.benchmark(parity=records.parity(comparisons=comparisons))
    html = report_html(build_report(records.TRAINING, records.artifact(), records.check(), benchmark))
    short, _, every = html.partition("All gates</caption>")
    assert short.count("mean absolute error") == 1
    assert "head_40" in short, "the closest to its limit"
    assert every.count("mean absolute error") == 40


def test_the_page_is_a_file_of_equal_bytes(tmp_path: Path) -> None:
    report = complete_report()
    path = write_page(tmp_path, report)
    assert path.name == REPORT_PAGE
    first = path.read_bytes()
    assert write_page(tmp_path, ReleaseReport.from_dict(report.to_dict())).read_bytes() == first
