"""Static checks of an exported artifact; a model that passes them is well-formed, which is not yet the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx

from onnx_release import limits
from onnx_release.artifact.digests import folder_sha256, verify_folder
from onnx_release.errors import Refused
from onnx_release.records import CheckReport, Finding, OnnxArtifact, TensorSpec

_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """`allowed_domains` are custom domains that the serving runtime knows; `size_max_bytes` of None is no limit."""

    allowed_domains: tuple[str, ...] = ()
    size_max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is checked: the folder, what the export says of it, and the graph with its weights left on disk."""

    folder: Path
    artifact: OnnxArtifact
    model: onnx.ModelProto

    @property
    def path(self) -> Path:
        return self.folder / limits.MODEL_FILE


def check_artifact(folder: Path, artifact: OnnxArtifact, options: CheckOptions) -> CheckReport:
    """Run every check and list every finding; one that crashes is an error of its own, and the next goes on.

    The model is checked by its path: by value, the checker copies it and fails above 2 GB.
    """
    findings = list(_guarded("bytes", lambda: _bytes(folder, artifact)))
    try:
        model = onnx.load(str(folder / limits.MODEL_FILE), load_external_data=False)
    except Exception as error:  # noqa: BLE001 - a damaged file fails in the parser, in many ways
        findings.append(_error("unreadable", f"{limits.MODEL_FILE} cannot be read: {_first_line(error)}"))
        return CheckReport(sha256=artifact.sha256, passed=False, findings=tuple(findings))
    subject = _Subject(folder, artifact, model)
    for name, check in _checks(subject, options):
        findings += _guarded(name, check)
    return _report(subject, tuple(findings))


def malformed(folder: Path) -> str:
    """Return what makes the written file no sound ONNX model, or an empty string; its weights are not read."""
    path = folder / limits.MODEL_FILE
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # noqa: BLE001 - what cannot be checked is not sound either
        return f"onnx.checker: {_first_line(error)}"
    return "; ".join(finding.message for finding in _training(model.graph))


def _checks(subject: _Subject, options: CheckOptions) -> list[tuple[str, Callable[[], Iterable[Finding]]]]:
    return [
        ("external_data", lambda: _external_data(subject)),
        ("checker", lambda: _checker(subject)),
        ("shape_inference", lambda: _shape_inference(subject)),
        ("interface", lambda: _interface(subject)),
        ("versions", lambda: _versions(subject)),
        ("domains", lambda: _domains(subject, options)),
        ("size", lambda: _size(subject, options)),
        ("weights", lambda: _weights(subject)),
        ("training", lambda: _training(subject.model.graph)),
    ]


def _guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001 - a check that did not run has not passed
        return [_error(name, f"the check '{name}' did not run: {type(error).__name__}: {_first_line(error)}")]


def _error(code: str, message: str) -> Finding:
    return Finding(severity="error", code=code, message=message)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


def _report(subject: _Subject, findings: tuple[Finding, ...]) -> CheckReport:
    model = subject.model
    return CheckReport(
        sha256=subject.artifact.sha256,
        passed=not any(finding.severity == "error" for finding in findings),
        findings=findings,
        opset=_opset(model),
        ir_version=model.ir_version,
        domains=tuple(sorted({node.domain for node in _nodes(model.graph)})),
        node_count=sum(1 for _ in _nodes(model.graph)),
        size_bytes=sum(file.stat().st_size for file in subject.folder.rglob("*") if file.is_file()),
        inputs=_specs(model.graph.input),
        outputs=_specs(model.graph.output),
    )


def _bytes(folder: Path, artifact: OnnxArtifact) -> Iterator[Finding]:
    try:
        verify_folder(folder, artifact.files)
    except Refused as error:
        yield _error("bytes", error.problem)
    if folder_sha256(artifact.files) != artifact.sha256:
        yield _error("bytes", f"the listed files make another digest than {artifact.sha256}")


def _external_data(subject: _Subject) -> Iterator[Finding]:
    """Each location must name a plain file inside the folder: the runtime would follow it wherever it leads."""
    locations = {
        entry.value
        for tensor in _tensors(subject.model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in sorted(locations):
        path = PurePosixPath(location)
        if path.is_absolute() or ".." in path.parts or "\\" in location:
            yield _error("external_data", f"external data {location!r} lies outside the artifact")
        elif not (subject.folder / location).is_file() or (subject.folder / location).is_symlink():
            yield _error("external_data", f"external data {location!r} is missing or no plain file")


def _checker(subject: _Subject) -> Iterator[Finding]:
    try:
        onnx.checker.check_model(str(subject.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        yield _error("checker", f"onnx.checker: {_first_line(error)}")


def _shape_inference(subject: _Subject) -> Iterator[Finding]:
    # By path it writes its result to a file; the graph without its weights is enough for the shapes.
    try:
        onnx.shape_inference.infer_shapes(subject.model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        yield _error("shape_inference", f"shape inference: {_first_line(error)}")


def _interface(subject: _Subject) -> Iterator[Finding]:
    graph, artifact = subject.model.graph, subject.artifact
    for side, found, wanted in (("input", graph.input, artifact.inputs), ("output", graph.output, artifact.outputs)):
        specs = {spec.name: spec for spec in _specs(found)}
        expected = {spec.name: spec for spec in wanted}
        for name in sorted(set(expected) - set(specs)):
            yield _error("interface", f"{side} '{name}' is missing")
        for name in sorted(set(specs) - set(expected)):
            yield _error("interface", f"{side} '{name}' is not part of the contract")
        for name in sorted(set(specs) & set(expected)):
            yield from _tensor(side, specs[name], expected[name])


def _tensor(side: str, found: TensorSpec, wanted: TensorSpec) -> Iterator[Finding]:
    label = f"{side} '{found.name}'"
    if found.dtype != wanted.dtype:
        yield _error("interface", f"{label} is {found.dtype}, not {wanted.dtype}")
    if len(found.shape) != len(wanted.shape):
        yield _error("interface", f"{label} has shape {list(found.shape)}, not {list(wanted.shape)}")
        return
    for axis, (size, expected) in enumerate(zip(found.shape, wanted.shape, strict=True)):
        if isinstance(expected, str) != isinstance(size, str) or (isinstance(expected, int) and size != expected):
            yield _error("interface", f"{label} has dimension {axis} of {size!r}, not {expected!r}")
    if not any(isinstance(size, str) for size in found.shape):
        yield Finding(severity="warning", code="static", message=f"{label} has no dynamic dimension")


def _opset(model: onnx.ModelProto) -> int | None:
    return next((entry.version for entry in model.opset_import if entry.domain in limits.DEFAULT_DOMAINS), None)


def _versions(subject: _Subject) -> Iterator[Finding]:
    model, artifact = subject.model, subject.artifact
    for name, found, wanted in (
        ("opset", _opset(model), artifact.opset),
        ("IR version", model.ir_version, artifact.ir_version),
    ):
        if found != wanted:
            yield _error("versions", f"{name} is {found}, the export recorded {wanted}")
        else:
            yield Finding(severity="info", code="versions", message=f"{name} {found}")


def _domains(subject: _Subject, options: CheckOptions) -> Iterator[Finding]:
    allowed = {*limits.DEFAULT_DOMAINS, *options.allowed_domains}
    foreign: dict[str, set[str]] = {}
    for node in _nodes(subject.model.graph):
        if node.domain not in allowed:
            foreign.setdefault(node.domain, set()).add(node.op_type)
    for domain, operators in sorted(foreign.items()):
        names = ", ".join(sorted(operators)[:5])
        yield _error("domains", f"operators {names} of domain '{domain}' are not allowed; allow it by allowed_domains")


def _size(subject: _Subject, options: CheckOptions) -> Iterator[Finding]:
    total = subject.artifact.size_bytes
    if options.size_max_bytes is not None and total > options.size_max_bytes:
        yield _error("size", f"the artifact has {total} bytes, more than {options.size_max_bytes}")
    if subject.path.stat().st_size > limits.PROTO_MAX_BYTES:
        yield _error(
            "size", f"{limits.MODEL_FILE} is larger than {limits.PROTO_MAX_BYTES} bytes, which no reader takes"
        )


def _weights(subject: _Subject) -> Iterator[Finding]:
    """Look at every float tensor, one at a time: the file's bytes, not what the exporter meant to write."""
    for tensor in _tensors(subject.model.graph):
        array = onnx.numpy_helper.to_array(tensor, base_dir=str(subject.folder))
        if tensor.data_type not in _FLOATS:
            continue
        if count := int((np.isnan(array) | (array == np.inf)).sum()):
            yield _error("weights", f"tensor '{tensor.name}' holds {count} NaN or infinite of {array.size} values")
        elif count := int((array == -np.inf).sum()):
            # An attention mask is made so; that no weight is, was seen when the model was loaded.
            message = f"tensor '{tensor.name}' holds {count} values of -inf of {array.size}"
            yield Finding(severity="warning", code="weights", message=message)


def _training(graph: onnx.GraphProto) -> Iterator[Finding]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in _nodes(graph):
        flag = next((a.i for a in node.attribute if a.name == "training_mode"), 0)
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            constant = constants.get(node.input[2])
            flag = 1 if constant is None else int(onnx.numpy_helper.to_array(constant).any())
        if flag:
            yield _error("training", f"node '{node.name}' ({node.op_type}) is in training mode")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the graphs inside its nodes (`If`, `Loop`, `Scan`)."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a graph carries: initializers and constants, those of inner graphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def _specs(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in values)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=_dtype(tensor.elem_type), shape=shape)


def _dtype(element: int) -> str:
    return onnx.helper.tensor_dtype_to_np_dtype(element).name if element else "no tensor"
