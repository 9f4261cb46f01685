"""Layouts of model servers: the fields and names that Triton and KServe accept, from any names and dtypes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format

from onnx_release.records import OnnxArtifact, TensorSpec
from onnx_release.serving.kserve import service_name
from onnx_release.serving.layout_names import require_layouts
from onnx_release.serving.layouts import model_files, plan_layouts
from onnx_release.serving.triton import config_pbtxt, quoted
from tests.core import records
from tests.refusals import refused

URI = "s3://models/net/run/abc-serving"


def _artifact(inputs: dict[str, tuple[str, tuple[int | str, ...]]], output: tuple[int | str, ...]) -> OnnxArtifact:
    specs = tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in inputs.items())
    return records.artifact(inputs=specs, outputs=(TensorSpec(name="y", dtype="float32", shape=output),))


def _dims(config: str) -> list[str]:
    return re.findall(r"dims: \[ (.*?) \]", config)


def test_a_batch_that_varies_is_not_among_the_dimensions() -> None:
    config = config_pbtxt(_artifact({"x": ("float32", ("batch", 3, "length"))}, ("batch", 2)), "net", 32)
    assert "max_batch_size: 32" in config
    assert _dims(config) == ["3, -1", "2"]


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        ({"x": ("float32", (4, 3))}, (4, 2)),
        ({"x": ("float32", ("batch", 3)), "state": ("float32", (2, "batch", 8))}, ("batch", 2)),
        ({"x": ("float32", ("batch", 3))}, (2,)),
        ({"x": ("float32", ("rows", 3)), "z": ("float32", ("columns", 3))}, ("rows", 3)),
    ],
    ids=["fixed", "second", "output", "two names"],
)
def test_without_one_leading_batch_requests_have_all_dimensions(
    inputs: dict[str, tuple[str, tuple[int | str, ...]]], output: tuple[int | str, ...]
) -> None:
    config = config_pbtxt(_artifact(inputs, output), "net", 32)
    assert "max_batch_size: 0" in config
    sizes = [[size if isinstance(size, int) else -1 for size in shape] for _, shape in inputs.values()]
    assert _dims(config)[:-1] == [", ".join(map(str, size)) for size in sizes]


def test_a_tensor_without_dimensions_is_reshaped() -> None:
    config = config_pbtxt(_artifact({"x": ("int64", ("batch",))}, ("batch", 1)), "net", 8)
    assert _dims(config) == ["1", "1"]
    assert config.count("reshape { shape: [ ] }") == 1


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bool", "BOOL"), ("int64", "INT64"), ("uint8", "UINT8"), ("float16", "FP16"), ("bfloat16", "BF16"),
     ("float64", "FP64"), ("object", "STRING")],
)  # fmt: skip
def test_each_dtype_has_its_name(dtype: str, expected: str) -> None:
    assert f"data_type: TYPE_{expected}\n" in config_pbtxt(_artifact({"x": (dtype, (1,))}, (1,)), "net", 8)


def test_a_dtype_that_triton_lacks_is_refused() -> None:
    with refused("unsupported_dtype", "'x'", "complex64", "serving_layouts"):
        config_pbtxt(_artifact({"x": ("complex64", (1,))}, (1,)), "net", 8)


def test_a_hostile_name_stays_one_string() -> None:
    name = 'x"\n} instance_group { kind: KIND_GPU } \\ \u00e9'
    text = quoted(name)
    assert re.fullmatch(r'"(?:[^"\\\n]|\\[0-7]{3})*"', text)
    decoded = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text[1:-1]).encode("latin-1").decode()
    assert decoded == name
    config = config_pbtxt(_artifact({name: ("float32", (1,))}, (1,)), "net", 8)
    assert config.count("kind: KIND_CPU") == 1
    assert len(config.splitlines()) == len(config_pbtxt(_artifact({"x": ("float32", (1,))}, (1,)), "n", 8).splitlines())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("churn", r"churn"),
        ("Churn_v2.onnx", r"churn-v2-onnx-[0-9a-f]{8}"),
        ("9lives", r"model-9lives-[0-9a-f]{8}"),
        ("-_.", r"model-[0-9a-f]{8}"),
        ("a" * 128, r"a{31}-[0-9a-f]{8}"),
    ],
)
def test_a_service_has_a_legal_name(name: str, expected: str) -> None:
    found = service_name(name)
    assert re.fullmatch(expected, found)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert len(found) <= 40
    assert service_name(f"{name}X") != found


def test_kserve_gets_the_model_repository_and_the_digest() -> None:
    triton, kserve = plan_layouts(["kserve"], records.artifact(), "Churn", URI, 8)
    assert list(triton.texts) == ["triton/Churn/config.pbtxt"]
    assert triton.copies == "triton/Churn/1"
    manifest = yaml.safe_load(kserve.texts["kserve/inference_service.yaml"])
    assert manifest["metadata"]["name"] == kserve.name
    assert manifest["metadata"]["annotations"]["onnx-release/sha256"] == records.SHA
    assert manifest["spec"]["predictor"]["model"] == {
        "modelFormat": {"name": "onnx"}, "protocolVersion": "v2", "storageUri": f"{URI}/triton",
    }  # fmt: skip


def test_layouts_are_named_or_refused() -> None:
    assert require_layouts(["kserve", "triton"]) == ("triton", "kserve")
    assert require_layouts([]) == ()
    with refused("serving_layouts", "'seldon'", "triton or kserve"):
        require_layouts(["triton", "seldon"])
    assert set(model_files(records.artifact())) <= {"model.onnx", "model.onnx.data"}


def test_the_configuration_fits_tritons_own_message() -> None:
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package tritonclient, which has Triton's message, is not installed")
    # The module of the message alone: its package needs a client of gRPC.
    path = Path(package.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    message = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(message)
    name = 'x"\n}'
    artifact = _artifact({name: ("float16", ("batch", 3)), "n": ("int64", ("batch",))}, ("batch", 2))
    parsed = text_format.Parse(config_pbtxt(artifact, "net", 8), message.ModelConfig())
    assert [tensor.name for tensor in parsed.input] == [name, "n"]
    assert (parsed.max_batch_size, list(parsed.output[0].dims)) == (8, [2])
