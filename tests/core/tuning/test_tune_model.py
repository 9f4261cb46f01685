"""A whole tuning: tried and skipped variants, the chosen package, and an unchanged export."""

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
from onnx_release.records import OnnxArtifact, Precision, TuneVariant
from onnx_release.report.markdown import summary_markdown
from onnx_release.report.metrics import release_metrics
from onnx_release.report.release_report import build_report
from onnx_release.run_step import tune
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.tuning.graph_rewrites import GraphFacts
from onnx_release.tuning.memory import available_bytes
from onnx_release.tuning.options import TuneOptions
from onnx_release.tuning.variants import SkippedVariant, Variant, plan_variants
from tests.core import records
from tests.core.models import save, signature
from tests.core.tuning.tuned_models import BENCHMARK, Scaled, export, rows, time_by_size
from tests.refusals import refused

# Nearly all bytes of the file are weights, so int8 makes it a quarter.
WIDE = 4096

Case = tuple[Path, Path, OnnxArtifact]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return export(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return export(tmp_path_factory.mktemp("wide"), Scaled(hidden=WIDE))


def variants_of(artifact: OnnxArtifact) -> dict[str, TuneVariant]:
    assert artifact.tuning is not None
    return {variant.name: variant for variant in artifact.tuning.variants}


def test_an_int8_variant_is_chosen_and_passes_all_later_steps(
    wide: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_by_size(monkeypatch)
    trained, folder, artifact = wide
    before = describe_folder(folder)
    options = TuneOptions(benchmark=BENCHMARK, precisions=(Precision.INT8,), max_s=60.0)
    tuned = tune(trained, folder, artifact, tmp_path / "tuned", options)
    assert describe_folder(folder) == before, "the exported folder is not changed"
    assert (tuned.precision, tuned.sha256 != artifact.sha256) == (Precision.INT8, True)
    assert tuned.tuning is not None
    assert tuned.variant == tuned.tuning.chosen
    assert tuned.variant.startswith("int8-")
    assert tuned.size_bytes < artifact.size_bytes / 3

    table = variants_of(tuned)
    assert list(table)[:5] == ["PyTorch", "exact", "int8-dynamic", "int8-blockwise", "int8-static"]
    assert table["int8-blockwise"].outcome == "skipped"
    assert "add it to allowed_domains" in table["int8-blockwise"].reason
    won = table[tuned.variant]
    assert won.outcome == "chosen"
    assert won.speedup_low is not None
    assert won.speedup_low > 1.0
    assert won.measures.cosine is not None
    assert 0.999 <= won.measures.cosine < 1.0
    assert "convolutions have 0%" in table["int8-static-conv"].reason

    check = check_artifact(tmp_path / "tuned", tuned, CheckOptions())
    assert check.passed, check.findings
    smoke_test(tmp_path / "tuned", tuned)
    tested = benchmark_artifact(trained, tmp_path / "tuned", tuned, BENCHMARK)
    assert tested.parity.passed, tested.parity.failures
    assert tested.parity.limits["cosine_min"] == 0.999
    as_exact = benchmark_artifact(trained, tmp_path / "tuned", tuned.replace(precision=Precision.EXACT), BENCHMARK)
    assert not as_exact.parity.passed, "it fails the limits of an exact model"

    report = build_report(records.TRAINING, tuned, check, tested)
    text = summary_markdown(report)
    assert f"chose **{tuned.variant}**" in text
    assert "| int8-static-conv | skipped |" in text
    assert "**int8**, variant int8-" in text
    assert release_metrics(report)[f"onnx_release/tune/{tuned.variant}/speedup"] == won.speedup
    assert OnnxArtifact.from_dict(tuned.to_dict()) == tuned


def test_a_blockwise_variant_is_chosen_when_only_it_meets_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_by_size(monkeypatch)
    trained, folder, artifact = export(tmp_path, Scaled(hidden=32768))
    benchmark = BENCHMARK.replace(precision_limits={"int8": {"sqnr_min_db": 32.0}})
    options = TuneOptions(
        benchmark=benchmark, precisions=(Precision.INT8,), max_s=60.0, allowed_domains=(RUNTIME_DOMAIN,)
    )
    tuned = tune(trained, folder, artifact, tmp_path / "tuned", options)
    passed = {
        one.name for one in variants_of(tuned).values() if one.precision is Precision.INT8 and one.outcome != "refused"
    }
    others = {name for name in passed if not name.startswith("int8-blockwise")}
    assert others == {"int8-static-conv"}, "which is skipped"
    assert tuned.variant in passed
    check = check_artifact(tmp_path / "tuned", tuned, CheckOptions(allowed_domains=options.allowed_domains))
    assert check.passed, check.findings
    smoke_test(tmp_path / "tuned", tuned)
    tested = benchmark_artifact(trained, tmp_path / "tuned", tuned, benchmark)
    assert tested.parity.passed, tested.parity.failures
    assert mlflow.pyfunc.load_model(str(tmp_path / "tuned")).predict({"x": rows(3)})["y"].shape == (3, 3)


def test_without_an_accepted_variant_the_exported_model_stays(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    benchmark = BENCHMARK.replace(precision_limits={"int8": {"sqnr_min_db": 100.0}})
    options = TuneOptions(
        benchmark=benchmark, precisions=(Precision.INT8,), max_s=30.0, allowed_domains=(RUNTIME_DOMAIN,)
    )
    tuned = tune(trained, folder, artifact, tmp_path / "tuned", options)
    assert tuned.replace(tuning=None) == artifact
    assert not (tmp_path / "tuned").exists()
    table = variants_of(tuned)
    kinds = ("int8-dynamic", "int8-blockwise", "int8-static")
    tried = [name for kind in kinds for name in (kind, f"{kind}-careful")]
    assert [name for name in table if table[name].outcome == "refused"] == tried
    assert "signal to noise ratio" in table["int8-dynamic"].reason
    assert table["exact"].outcome == "chosen"


def test_variants_without_time_are_skipped_by_name(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    options = TuneOptions(benchmark=BENCHMARK, precisions=(Precision.INT8, Precision.EXACT), max_s=1e-6)
    tuned = tune(trained, folder, artifact, tmp_path / "tuned", options)
    assert tuned.replace(tuning=None) == artifact
    skipped = {name: one.reason for name, one in variants_of(tuned).items() if one.outcome == "skipped"}
    assert {"int8-dynamic", "int8-static", "exact-fused", "exact-opset23"} <= set(skipped)
    assert "raise tune_max_s" in skipped["exact-opset23"]


def test_exact_variants_are_tested_with_the_release_limits(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    options = TuneOptions(benchmark=BENCHMARK, max_s=15.0)
    tuned = tune(trained, folder, artifact, tmp_path / "tuned", options)
    table = variants_of(tuned)
    assert {"exact-fused", "exact-opset23"} <= set(table)
    assert not [name for name in table if name.startswith("int8")], "reduced precisions are only tried on request"
    assert tuned.precision is Precision.EXACT
    assert all(one.outcome in ("reference", "chosen", "passed", "slower") for one in table.values()), table
    if tuned.variant:
        assert check_artifact(tmp_path / "tuned", tuned, CheckOptions()).passed
        loaded = mlflow.pyfunc.load_model(str(tmp_path / "tuned"))
        threads = loaded.get_raw_model().get_session_options().intra_op_num_threads
        assert threads == tuned.session_options.get("intra_op_num_threads", 0)
        assert set(loaded.predict({"x": rows(3)})) == {"y"}


def test_a_pickle_is_tuned_in_a_child_process(small: Case, tmp_path: Path) -> None:
    _, folder, artifact = small
    trained = tmp_path / "pickle"
    save_as_pickle(trained)
    benchmark = BENCHMARK.replace(allow_pickle=True)
    options = TuneOptions(benchmark=benchmark, precisions=(Precision.FLOAT16,), max_s=20.0)
    tuned = tune(trained, folder, artifact, tmp_path / "tuned", options)
    assert tuned.sha256 == artifact.sha256
    assert "computes float16 in float32" in variants_of(tuned)["float16"].reason


def save_as_pickle(folder: Path) -> None:
    sides = signature({"x": (-1, 4, 64)}, {"y": (-1, 3)})
    save(Scaled(), folder, serialization_format="pickle", signature=sides, input_example=rows(4))


def test_other_bytes_are_refused(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    other = artifact.replace(sha256="0" * 64)
    with pytest.raises(Refused, match=other.sha256):
        tune(trained, folder, other, tmp_path / "tuned", TuneOptions(benchmark=BENCHMARK))


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"precisions": ()}, "invalid_tune_options", "tune_precisions is empty"),
        ({"max_s": float("nan")}, "invalid_tune_options", "tune_max_s is nan"),
        ({"metric_loss_max": -1.0}, "invalid_tune_options", "metric_loss_max is -1.0"),
        (
            {"precisions": (Precision.INT8,), "benchmark": BENCHMARK.replace(precision_limits={"int8": {"x": 1.0}})},
            "wrong_field",
            "x",
        ),
        ({"evaluation": "/nowhere.npz"}, "unreadable_npz", "nowhere.npz"),
    ],
)
def test_invalid_options_are_refused(
    small: Case, tmp_path: Path, changes: dict[str, Any], code: str, part: str
) -> None:
    trained, folder, artifact = small
    options = TuneOptions(benchmark=BENCHMARK).replace(**changes)
    with refused(code, part):
        tune(trained, folder, artifact, tmp_path / "tuned", options)


def test_limits_of_an_unknown_precision_are_refused(small: Case, tmp_path: Path) -> None:
    trained, folder, artifact = small
    options = TuneOptions(benchmark=BENCHMARK.replace(precision_limits={"int4": {}}))
    with refused("unknown_precision", "'int4'"):
        tune(trained, folder, artifact, tmp_path / "tuned", options)


FACTS = GraphFacts(products=4, convolution_share=0.5, scales=1, heads=())
ALL: tuple[Precision, ...] = (Precision.EXACT, Precision.FLOAT16, Precision.INT8)


def planned(
    threads: int = 8, facts: GraphFacts = FACTS, opset: int | None = None, **changes: Any
) -> dict[str, str | None]:
    """Return each planned name with the reason for skipping it, or None."""
    options = TuneOptions(precisions=ALL, opset=opset, allowed_domains=(RUNTIME_DOMAIN,))
    items: list[Variant | SkippedVariant] = list(plan_variants(records.artifact(**changes), facts, options, threads))
    return {item.name: item.reason if isinstance(item, SkippedVariant) else None for item in items}


def test_the_plan_depends_on_model_provider_and_options() -> None:
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
    assert "computes float16 in float32" in (on_cpu["float16"] or "")
    on_gpu = planned(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert on_gpu["float16"] is None
    assert "CUDAExecutionProvider" in (on_gpu["int8-dynamic"] or "")
    assert "exact-threads1" not in on_gpu
    assert "at most" in (planned(size_bytes=PROTO_MAX_BYTES + 1)["int8-static"] or "")
    assert planned(opset=20)["exact-opset23"] == "the release requires opset 20"
    bare = planned(facts=GraphFacts(products=0, convolution_share=0.0, scales=0, heads=()), strategy="torchscript")
    without = ("int8-dynamic", "int8-blockwise", "int8-static", "exact-fused", "exact-opset23")
    assert all(bare[name] for name in without)


def test_session_options_travel_in_the_package(small: Case, tmp_path: Path) -> None:
    _, folder, artifact = small
    for file in folder.glob(f"{MODEL_FILE}*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    chosen = {"intra_op_num_threads": 1, "extra_session_config": {"session.intra_op.allow_spinning": "0"}}
    spec = PackageSpec(
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        example={"x": rows(2)},
        tool_versions=artifact.tool_versions,
        session_options=chosen,
    )
    write_package(tmp_path, spec)
    flavor = yaml.safe_load((tmp_path / "MLmodel").read_text())["flavors"]["onnx"]
    assert flavor["onnx_session_options"] == chosen
    options = mlflow.pyfunc.load_model(str(tmp_path)).get_raw_model().get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with OnnxRuntimeRunner(tmp_path / MODEL_FILE, OnnxRuntimeOptions(threads=2, session_options=chosen)) as runner:
        np.testing.assert_array_equal(runner.run({"x": rows(2)})["y"].shape, (2, 3))
    for bad in ({"execution_mode": "parallel"}, {"intra_op_num_threads": 0}, {"intra_op_num_threads": True}):
        with refused("session_option"):
            OnnxRuntimeRunner(tmp_path / MODEL_FILE, OnnxRuntimeOptions(session_options=bad))


def test_available_memory_is_the_smaller_of_host_and_group(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    assert available_bytes(tmp_path) == 50 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in (("memory.max", "40960"), ("memory.current", "30960"), ("memory.stat", "inactive_file 500\n")):
        (group / name).write_text(text)
    assert available_bytes(tmp_path) == 10500
