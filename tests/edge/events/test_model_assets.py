"""Asset events of promotions: contract and figures."""

from __future__ import annotations

from typing import Any

from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_onnx.events import model_assets
from airflow_onnx.events.figures import Figures
from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from onnx_release.records import Contract, ModelVersion
from onnx_release.report.release_report import build_report
from tests.core.records import TRAINING, artifact, batch, benchmark, check, latency
from tests.refusals import refused

SERVED = {"batch_size": 1}
VERSION = ModelVersion(
    name="radio-onnx", version=5, sha256="ab" * 32, source="s3://models/radio-onnx/r/ab", training_run_id="r" * 32
)


def test_an_event_has_the_contract_and_the_figures_and_only_a_promotion_has_one() -> None:
    report = build_report(TRAINING, artifact(), check(), benchmark(latency=latency(budget=SERVED)))
    events = OutletEventAccessors()
    context: Any = {"outlet_events": events}
    contract = Contract.of_artifact(artifact())
    model_assets.add_event(context, [RELEASED_VERSIONS], VERSION, contract, Figures())
    assert events[RELEASED_VERSIONS].asset_alias_events == [], "the alias stayed at another version"

    promoted = VERSION.replace(alias="candidate")
    model_assets.add_event(context, [RELEASED_VERSIONS], promoted, contract, Figures.of_report(report))
    (event,) = events[RELEASED_VERSIONS].asset_alias_events
    assert event.dest_asset_key.name == model_assets.model_asset("radio-onnx", "candidate").name
    assert (event.extra["alias"], event.extra["uri"]) == ("candidate", VERSION.source)
    assert [one["name"] for one in event.extra["contract"]["outputs"]] == ["y"]
    figures = {"mae": 3e-8, "speedup": 2.0, "speedup_low": 1.9, "p50_ms": 1.0, "speed_verdict": "passed"}
    assert event.extra["figures"].items() >= figures.items()


def test_a_speed_that_is_not_settled_has_only_its_lower_bound() -> None:
    measured = latency(budget=SERVED, verdict="not settled", batches=(batch(conclusive=False),))
    report = build_report(TRAINING, artifact(), check(), benchmark(latency=measured))
    figures = Figures.of_report(report)
    assert (figures.speedup, figures.speedup_low, figures.speedup_high) == (None, 1.9, None)


def test_a_report_without_measurements_has_no_figures() -> None:
    report = build_report(TRAINING, None, None, None)
    assert set(Figures.of_report(report).to_dict().values()) == {None}


def test_the_asset_of_a_wrong_name_is_refused() -> None:
    with refused("wrong_name"):
        model_assets.model_asset("radio onnx", "candidate")
    with refused("reserved_alias"):
        model_assets.model_asset("radio-onnx", "v5")
