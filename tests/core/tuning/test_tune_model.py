"""A whole tuning: what is tried, what is left out, what is shipped, and that off means untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
import yaml

from onnx_release.artifact.digests import describe_folder
from onnx_release.artifact.mlflow_package import PackageSpec, write_package
from onnx_release.benchmark.benchmark_model import benchmark_artifact
from onnx_release.check.smoke_test import smoke_test
from onnx_release.check.static_checks import CheckOptions, check_artifact
from onnx_release.errors import Refused
from onnx_release.limits import MODEL_FILE, PROTO_MAX_BYTES, RUNTIME_DOMAIN
from onnx_release.records import OnnxArtifact, Precision, TuneCandidate
from onnx_release.report.markdown import summary_markdown
from onnx_release.report.metrics import release_metrics
from onnx_release.report.release_report import build_report
from onnx_release.run_step import tune_artifact
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.tuning.candidates import Candidate, LeftOut, plan
from onnx_release.tuning.graph_rewrites import GraphFacts
from onnx_release.tuning.memory import available_bytes
from onnx_release.tuning.options import TuneOptions
from tests.core import records
from tests.core.models import save, signature
from tests.core.tuning.tuned_models import JUDGE, Scaled, export, rows

# Large enough to be read from memory at each call: a quarter of the bytes is then faster on any host.
WIDE = 32768

Case = tuple[Path, Path, OnnxArtifact]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return export(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return export(tmp_path_factory.mktemp("wide"), Scaled(hidden=WIDE))


def candidates(artifact: OnnxArtifact) -> dict[str, TuneCandidate]:
    assert artifact.tuning is not None
    return {candidate.name: candidate for candidate in artifact.tuning.candidates}


@pytest.mark.alone
def test_int8_wins_where_it_is_asked_for_and_everything_after_takes_it_as_it_is(wide: Case, tmp_path: Path) -> None:
    trained, folder, artifact = wide
    before = describe_folder(folder)
    options = TuneOptions(judge=JUDGE, precisions=(Precision.INT8,), max_s=20.0)
    tuned = tune_artifact(trained, folder, artifact, tmp_path / "tuned", options)
    assert describe_folder(folder) == before, "the exported folder is only read"
    assert (tuned.precision, tuned.sha256 != artifact.sha256) == ("int8", True)
    assert tuned.tuning is not None
    assert tuned.variant == tuned.tuning.chosen
    assert tuned.variant.startswith("int8-")
    assert tuned.size_bytes < artifact.size_bytes / 3

    table = candidates(tuned)
    assert list(table)[:5] == ["PyTorch", "exact", "int8-dynamic", "int8-blockwise", "int8-static"]
    assert table["int8-blockwise"].outcome == "left out"
    assert "allow that by allowed_domains" in table["int8-blockwise"].reason
    won = table[tuned.variant]
    assert won.outcome == "chosen"
    assert won.speedup_low is not None
    assert won.speedup_low > 1.0
    assert won.measures.cosine is not None
    assert 0.999 <= won.measures.cosine < 1.0
    assert "convolutions hold 0%" in table["int8-static-conv"].reason

    check = check_artifact(tmp_path / "tuned", tuned, CheckOptions())
    assert check.passed, check.findings
    smoke_test(tmp_path / "tuned", tuned)
    judged = benchmark_artifact(trained, tmp_path / "tuned", tuned, JUDGE)
    assert judged.parity.passed, judged.parity.failures
    assert judged.parity.limits["cosine_min"] == 0.999
    as_exact = benchmark_artifact(trained, tmp_path / "tuned", tuned.replace(precision=Precision.EXACT), JUDGE)
    assert not as_exact.parity.passed, "the limits of an exact model do not let it pass"

    report = build_report("m", records.TRAINING, tuned, check, judged)
    text = summary_markdown(report)
    assert f"chose **{tuned.variant}**" in text
    assert "| int8-static-conv | left out |" in text
    assert "**int8**, variant int8-" in text
    assert release_metrics(report)[f"onnx_release/tune/{tuned.variant}/speedup"] == won.speedup
    assert OnnxArtifact.from_dict(tuned.to_dict()) == tuned


@pytest.mark.alone
def test_the_blockwise_form_goes_the_whole_way_where_only_it_is_close_enough(wide: Case, tmp_path: Path) -> None:
    trained, folder, artifact = wide
    judge = JUDGE.replace(precision_limits={"int8": {"sqnr_min_db": 54.0}})
    options = TuneOptions(judge=judge, precisions=(Precision.INT8,), max_s=20.0, allowed_domains=(RUNTIME_DOMAIN,))
    tuned = tune_artifact(trained, folder, artifact, tmp_path / "tuned", options)
    passed = {one.name for one in candidates(tuned).values() if one.precision == "int8" and one.outcome != "refused"}
    assert passed - {"int8-blockwise", "int8-blockwise-threads1"} == {"int8-static-conv"}, "which is left out"
    assert tuned.variant in passed
    check = check_artifact(tmp_path / "tuned", tuned, CheckOptions(allowed_domains=options.allowed_domains))
    assert check.passed, check.findings
    smoke_test(tmp_path / "tuned", tuned)
    judged = benchmark_artifact(trained, tmp_path / "tuned", tuned, judge)
    assert judged.parity.passed, judged.parity.failures
    assert mlflow.pyfunc.load_model(str(tmp_path / "tuned")).predict({"x": rows(3)})["y"].shape == (3, 3)


def test_limits_that_nothing_meets_leave_the_exported_model(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    judge = JUDGE.replace(precision_limits={"int8": {"sqnr_min_db": 100.0}})
    options = TuneOptions(judge=judge, precisions=(Precision.INT8,), max_s=30.0, allowed_domains=(RUNTIME_DOMAIN,))
    tuned = tune_artifact(trained, folder, artifact, tmp_path / "tuned", options)
    assert tuned.replace(tuning=None) == artifact
    assert not (tmp_path / "tuned").exists()
    table = candidates(tuned)
    kinds = ("int8-dynamic", "int8-blockwise", "int8-static")
    tried = [name for kind in kinds for name in (kind, f"{kind}-careful")]
    assert [name for name in table if table[name].outcome == "refused"] == tried
    assert "signal to noise ratio" in table["int8-dynamic"].reason
    assert table["exact"].outcome == "chosen"


def test_what_there_is_no_time_for_is_left_out_by_name(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    options = TuneOptions(judge=JUDGE, precisions=(Precision.INT8, Precision.EXACT), max_s=1e-6)
    tuned = tune_artifact(trained, folder, artifact, tmp_path / "tuned", options)
    assert tuned.replace(tuning=None) == artifact
    left = {name: one.reason for name, one in candidates(tuned).items() if one.outcome == "left out"}
    assert {"int8-dynamic", "int8-static", "exact-fused", "exact-opset23"} <= set(left)
    assert "raise tune_max_s" in left["exact-opset23"]


def test_exact_candidates_are_tried_by_the_releases_own_limits(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    options = TuneOptions(judge=JUDGE, max_s=15.0)
    tuned = tune_artifact(trained, folder, artifact, tmp_path / "tuned", options)
    table = candidates(tuned)
    assert {"exact-fused", "exact-opset23"} <= set(table)
    assert not [name for name in table if name.startswith("int8")], "nothing reduced unless it is asked for"
    assert tuned.precision == "exact"
    assert all(one.outcome in ("reference", "chosen", "passed", "slower") for one in table.values()), table
    if tuned.variant:
        assert check_artifact(tmp_path / "tuned", tuned, CheckOptions()).passed
        loaded = mlflow.pyfunc.load_model(str(tmp_path / "tuned"))
        threads = loaded.get_raw_model().get_session_options().intra_op_num_threads
        assert threads == tuned.session_options.get("intra_op_num_threads", 0)
        assert set(loaded.predict({"x": rows(3)})) == {"y"}


def test_a_pickle_is_tuned_in_a_process_of_its_own(small: Case, tmp_path: Path) -> None:
    _, folder, artifact = small
    trained = tmp_path / "pickle"
    save_as_pickle(trained)
    judge = JUDGE.replace(allow_pickle=True)
    options = TuneOptions(judge=judge, precisions=(Precision.FLOAT16,), max_s=20.0)
    tuned = tune_artifact(trained, folder, artifact, tmp_path / "tuned", options)
    assert tuned.sha256 == artifact.sha256
    assert "computes float16 in float32" in candidates(tuned)["float16"].reason


def save_as_pickle(folder: Path) -> None:
    sides = signature({"x": (-1, 4, 64)}, {"y": (-1, 3)})
    save(Scaled(), folder, serialization_format="pickle", signature=sides, input_example=rows(4))


def test_other_bytes_are_refused(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    other = artifact.replace(sha256="0" * 64)
    with pytest.raises(Refused, match="amount to"):
        tune_artifact(trained, folder, other, tmp_path / "tuned", TuneOptions(judge=JUDGE))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precisions": ()}, "tune_precisions is empty"),
        ({"max_s": float("nan")}, "tune_max_s is nan"),
        ({"metric_loss_max": -1.0}, "metric_loss_max is -1.0"),
        ({"judge": JUDGE.replace(precision_limits={"int4": {}})}, "'int4'"),
        ({"precisions": (Precision.INT8,), "judge": JUDGE.replace(precision_limits={"int8": {"x": 1.0}})}, "x"),
        ({"evaluation": "/nowhere.npz"}, "cannot be read"),
    ],
)
def test_senseless_options_are_refused(small: Case, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    trained, folder, artifact = small
    options = TuneOptions(judge=JUDGE).replace(**changes)
    with pytest.raises(Refused, match=words):
        tune_artifact(trained, folder, artifact, tmp_path / "tuned", options)


FACTS = GraphFacts(products=4, convolution_share=0.5, scales=1, heads=())
ALL: tuple[Precision, ...] = (Precision.EXACT, Precision.FLOAT16, Precision.INT8)


def planned(threads: int = 8, facts: GraphFacts = FACTS, asked: int | None = None, **changes: Any) -> dict[str, str]:
    """Return each planned name with the reason why it is left out, or an empty string."""
    options = TuneOptions(precisions=ALL, opset=asked, allowed_domains=(RUNTIME_DOMAIN,))
    items: list[Candidate | LeftOut] = list(plan(records.artifact(**changes), facts, options, threads))
    return {item.name: item.reason if isinstance(item, LeftOut) else "" for item in items}


def test_the_plan_fits_model_provider_and_request() -> None:
    on_cpu = planned()
    assert [name for name, reason in on_cpu.items() if not reason] == [
        "int8-dynamic",
        "int8-blockwise",
        "int8-static",
        "int8-static-conv",
        "exact-threads4",
        "exact-threads1",
        "exact-fused",
        "exact-opset23",
    ]
    assert "float32" in on_cpu["float16"]
    on_gpu = planned(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert on_gpu["float16"] == ""
    assert "CUDAExecutionProvider" in on_gpu["int8-dynamic"]
    assert "exact-threads1" not in on_gpu
    assert "at most" in planned(size_bytes=PROTO_MAX_BYTES + 1)["int8-static"]
    assert planned(asked=20)["exact-opset23"] == "the release asks for opset 20"
    bare = planned(facts=GraphFacts(products=0, convolution_share=0.0, scales=0, heads=()), strategy="torchscript")
    without = ("int8-dynamic", "int8-blockwise", "int8-static", "exact-fused", "exact-opset23")
    assert all(bare[name] for name in without)


def test_session_options_travel_in_the_package(small: Case, tmp_path: Path) -> None:
    _, folder, artifact = small
    for file in folder.glob(f"{MODEL_FILE}*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    wanted = {"intra_op_num_threads": 1, "extra_session_config": {"session.intra_op.allow_spinning": "0"}}
    spec = PackageSpec(
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        example={"x": rows(2)},
        tool_versions=artifact.tool_versions,
        session_options=wanted,
    )
    write_package(tmp_path, spec)
    flavor = yaml.safe_load((tmp_path / "MLmodel").read_text())["flavors"]["onnx"]
    assert flavor["onnx_session_options"] == wanted
    options = mlflow.pyfunc.load_model(str(tmp_path)).get_raw_model().get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with OnnxRuntimeRunner(tmp_path / MODEL_FILE, OnnxRuntimeOptions(threads=2, session_options=wanted)) as runner:
        np.testing.assert_array_equal(runner.run({"x": rows(2)})["y"].shape, (2, 3))
    for bad in ({"execution_mode": "parallel"}, {"intra_op_num_threads": 0}, {"intra_op_num_threads": True}):
        with pytest.raises(Refused, match="session option"):
            OnnxRuntimeRunner(tmp_path / MODEL_FILE, OnnxRuntimeOptions(session_options=bad))


def test_memory_is_what_host_and_group_leave(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    assert available_bytes(tmp_path) == 50 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in (("memory.max", "40960"), ("memory.current", "30960"), ("memory.stat", "inactive_file 500\n")):
        (group / name).write_text(text)
    assert available_bytes(tmp_path) == 10500
