"""Static checks of an ONNX file.

They find a malformed model. Parity with the trained model is a separate comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx

from onnx_release import limits
from onnx_release.artifact.digests import folder_sha256, verify_folder
from onnx_release.errors import Refused
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records import CheckReport, Finding, OnnxArtifact, TensorSpec
from onnx_release.text import bounded

# Findings of one check, and domains, in a report.
_FINDINGS_MAX, _DOMAINS_MAX = 100, 20
_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """Options of the static checks.

    Attributes:
        allowed_domains: Operator domains besides ONNX's own that the serving runtime supports.
        reads_files: Compare the files with the record, and search the weights for NaN and infinity. False for a
            caller that has compared the files: the values of weights are only warnings.
    """

    allowed_domains: tuple[str, ...] = ()
    reads_files: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedModel:
    """The input of every check: the folder, its record, and the graph without the external weights."""

    folder: Path
    artifact: OnnxArtifact
    model: onnx.ModelProto
    options: CheckOptions

    @property
    def path(self) -> Path:
        """Return the path of the ONNX file."""
        return self.folder / limits.MODEL_FILE


def check_artifact(folder: Path, artifact: OnnxArtifact, options: CheckOptions) -> CheckReport:
    """Run every check and return every finding. A check that crashes is an error finding, and the next check runs.

    Args:
        folder: The artifact folder, which is only read.
        artifact: The record of the artifact.
        options: The options of the checks.

    Returns:
        The report. It passes when no finding is an error.
    """
    # The hash and the search of the weights each read every byte, so they run at the same time.
    with ThreadPoolExecutor(1) as beside:
        by_bytes = beside.submit(
            _run_check, "bytes", partial(check_bytes, folder, artifact) if options.reads_files else tuple
        )
        report = _report_on_graph(folder, artifact, options)
        findings = (*by_bytes.result(), *report.findings)
    return report.replace(passed=not any(finding.severity == "error" for finding in findings), findings=findings)


def _report_on_graph(folder: Path, artifact: OnnxArtifact, options: CheckOptions) -> CheckReport:
    """Run the checks of the graph and its weights. `passed` is decided by the caller."""
    findings: list[Finding] = []
    try:
        model = onnx.load(str(folder / limits.MODEL_FILE), load_external_data=False)
    except Exception as error:  # noqa: BLE001 - the parser raises many classes for a damaged file
        raise_machine_failure(error)
        findings.append(_error("unreadable", f"{limits.MODEL_FILE} cannot be read: {_first_line(error)}"))
        return CheckReport(sha256=artifact.sha256, passed=False, findings=tuple(findings))
    checked = CheckedModel(folder=folder, artifact=artifact, model=model, options=options)
    for name, check in CHECKS.items():
        if name != "weights" or options.reads_files:
            findings += _run_check(name, partial(check, checked))
    return CheckReport(
        sha256=artifact.sha256,
        passed=False,
        findings=tuple(findings),
        opset=_opset(model),
        ir_version=model.ir_version,
        domains=tuple(sorted({bounded(node.domain, 80) for node in _all_nodes(model)})[:_DOMAINS_MAX]),
        node_count=sum(1 for _ in _all_nodes(model)),
        size_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        inputs=_specs(model.graph.input),
        outputs=_specs(model.graph.output),
    )


def malformed(folder: Path) -> str | None:
    """Return the problems of a new ONNX file, or None. The weights are not read.

    Args:
        folder: The folder that contains ``model.onnx``.
    """
    path = folder / limits.MODEL_FILE
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # noqa: BLE001 - a model that cannot be checked is malformed
        raise_machine_failure(error)
        return f"onnx.checker: {_first_line(error)}"
    return "; ".join(finding.message for finding in _training_nodes(model.graph)) or None


def check_bytes(folder: Path, artifact: OnnxArtifact) -> Iterator[Finding]:
    """Compare the files and their digests with the record."""
    try:
        verify_folder(folder, artifact.files)
    except Refused as error:
        yield _error("bytes", error.problem)
    if folder_sha256(artifact.files) != artifact.sha256:
        yield _error("bytes", f"the digest of the listed files differs from the recorded {artifact.sha256}")


def check_external_data(checked: CheckedModel) -> Iterator[Finding]:
    """Require every location to be a plain file in the folder, because the runtime follows any path."""
    locations = {location for tensor in _tensors(checked.model) for location in _locations(tensor)}
    for location in sorted(locations):
        if not _is_inside(location):
            yield _error("external_data", f"external data {location!r:.200} lies outside the artifact")
        elif not _is_plain_file(checked.folder / location):
            yield _error("external_data", f"external data {location!r:.200} is missing or is not a plain file")


def _locations(tensor: onnx.TensorProto) -> list[str]:
    return [entry.value for entry in tensor.external_data if entry.key == "location"]


def _is_inside(location: str) -> bool:
    path = PurePosixPath(location)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in location


def _is_plain_file(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink()
    except (OSError, ValueError):  # A name that is too long, or has a null byte.
        return False


def check_structure(checked: CheckedModel) -> Iterator[Finding]:
    """Run ONNX's own checker. It takes the path, because a model in memory is limited to 2 GB."""
    try:
        onnx.checker.check_model(str(checked.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        yield _error("checker", f"onnx.checker: {_first_line(error)}")


def check_shapes(checked: CheckedModel) -> Iterator[Finding]:
    """Run ONNX's strict shape inference on the graph without its weights."""
    try:
        onnx.shape_inference.infer_shapes(checked.model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        yield _error("shape_inference", f"shape inference: {_first_line(error)}")


def check_interface(checked: CheckedModel) -> Iterator[Finding]:
    """Compare names, dtypes and shapes of inputs and outputs with the record. Their order is not compared."""
    graph, artifact = checked.model.graph, checked.artifact
    for side, values, specs in (("input", graph.input, artifact.inputs), ("output", graph.output, artifact.outputs)):
        found = {spec.name: spec for spec in _specs(values)}
        expected = {spec.name: spec for spec in specs}
        for name in sorted(expected.keys() - found.keys()):
            yield _error("interface", f"{side} '{name}' is missing")
        for name in sorted(found.keys() - expected.keys()):
            yield _error("interface", f"{side} '{name}' is not in the record")
        for name in sorted(found.keys() & expected.keys()):
            for mismatch in expected[name].mismatches(found[name]):
                yield _error("interface", f"{side} '{name}' {mismatch}")
            if not any(isinstance(size, str) for size in found[name].shape):
                message = f"{side} '{name}' has no dimension that varies"
                yield Finding(severity="warning", code="static", message=message)


def check_versions(checked: CheckedModel) -> Iterator[Finding]:
    """Compare opset and IR version with the record."""
    model, artifact = checked.model, checked.artifact
    for name, found, recorded in (
        ("opset", _opset(model), artifact.opset),
        ("IR version", model.ir_version, artifact.ir_version),
    ):
        if found != recorded:
            yield _error("versions", f"{name} is {found}, the export recorded {recorded}")
        else:
            yield Finding(severity="info", code="versions", message=f"{name} {found}")


def check_domains(checked: CheckedModel) -> Iterator[Finding]:
    """Find operators of domains that are not allowed."""
    allowed = {*limits.DEFAULT_DOMAINS, *checked.options.allowed_domains}
    foreign: dict[str, set[str]] = {}
    for node in _all_nodes(checked.model):
        if node.domain not in allowed:
            foreign.setdefault(node.domain, set()).add(node.op_type)
    for domain, operators in sorted(foreign.items()):
        names = ", ".join(sorted(operators)[:5])
        yield _error(
            "domains",
            f"operators {names:.200} of domain '{domain:.80}' are not allowed; add the domain to the parameter "
            "`allowed_domains` if the serving runtime supports it",
        )


def check_size(checked: CheckedModel) -> Iterator[Finding]:
    """Compare the size of the ONNX file with the limit of its format."""
    size, limit = checked.path.stat().st_size, limits.PROTO_MAX_BYTES
    if size > limit:
        message = f"{limits.MODEL_FILE} has {size / 1e9:.3g} GB; ONNX's readers accept {limit / 1e9:.3g} GB"
        yield _error("size", message)


def check_metadata(checked: CheckedModel) -> Iterator[Finding]:
    """Find texts beside the graph that are larger than `METADATA_MAX_BYTES`. Each runtime keeps them in memory."""
    model = checked.model
    graph = model.graph
    holders = [model, graph, *model.functions, *_all_nodes(model), *graph.input, *graph.output, *graph.value_info]
    size = sum(
        len(holder.doc_string) + sum(len(entry.key) + len(entry.value) for entry in holder.metadata_props)
        for holder in holders
    )
    if size > limits.METADATA_MAX_BYTES:
        limit = limits.METADATA_MAX_BYTES
        yield _error("metadata", f"the metadata has {size / 1e6:.3g} MB; the limit is {limit / 1e6:.3g} MB")


def check_weights(checked: CheckedModel) -> Iterator[Finding]:
    """Find NaN and infinity in the float tensors of the file, one tensor in memory at a time.

    They are warnings: a buffer or a constant may have infinite bounds or NaN for a value that is not set. The
    parameters were checked when the model was loaded, and the comparison of the outputs decides about the rest.
    """
    for tensor in _tensors(checked.model):
        # A device would have no end.
        if not all(_is_inside(one) and _is_plain_file(checked.folder / one) for one in _locations(tensor)):
            yield _error("weights", f"tensor '{tensor.name:.200}' has external data that is not read")
            continue
        array = onnx.numpy_helper.to_array(tensor, base_dir=str(checked.folder))
        if tensor.data_type not in _FLOATS:
            continue
        if count := int((~np.isfinite(array)).sum()):
            # Attention masks contain -inf.
            kind = "NaN or infinite values" if (np.isnan(array) | (array == np.inf)).any() else "values of -inf"
            message = f"tensor '{tensor.name:.200}' has {count} {kind} of {array.size}"
            yield Finding(severity="warning", code="weights", message=message)


def check_training_mode(checked: CheckedModel) -> Iterator[Finding]:
    """Find operators in training mode."""
    return _training_nodes(checked.model.graph)


CHECKS: Mapping[str, Callable[[CheckedModel], Iterable[Finding]]] = {
    "external_data": check_external_data,
    "checker": check_structure,
    "shape_inference": check_shapes,
    "interface": check_interface,
    "versions": check_versions,
    "domains": check_domains,
    "size": check_size,
    "metadata": check_metadata,
    "weights": check_weights,
    "training": check_training_mode,
}
"""The checks of a readable model by the code of their findings, in their order."""


def _run_check(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        found = list(islice(check(), _FINDINGS_MAX + 1))
    except Exception as error:  # noqa: BLE001 - a check that did not run has not passed
        raise_machine_failure(error)
        return [_error(name, f"the check '{name}' did not run: {type(error).__name__}: {_first_line(error)}")]
    if len(found) > _FINDINGS_MAX:
        found[-1] = _error(name, f"the check '{name}' has more than {_FINDINGS_MAX} findings")
    return found


def _error(code: str, message: str) -> Finding:
    return Finding(severity="error", code=code, message=message)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


def _opset(model: onnx.ModelProto) -> int | None:
    return next((entry.version for entry in model.opset_import if entry.domain in limits.DEFAULT_DOMAINS), None)


def _training_nodes(graph: onnx.GraphProto) -> Iterator[Finding]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in _nodes(graph):
        flag = next((a.i for a in node.attribute if a.name == "training_mode"), 0)
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            constant = constants.get(node.input[2])
            flag = 1 if constant is None else int(onnx.numpy_helper.to_array(constant).any())
        if flag:
            yield _error("training", f"node '{node.name}' ({node.op_type}) is in training mode")


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph or a function and of the graphs in its nodes (`If`, `Loop`, `Scan`)."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph and of the functions that it calls."""
    for part in (model.graph, *model.functions):
        yield from _nodes(part)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers and constants of the graph, of the graphs in its nodes, and of its functions."""
    yield from _initializers(model.graph)
    for node in _all_nodes(model):
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            sparse = (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),)
            for one in (*sparse, *attribute.sparse_tensors):
                yield from (one.values, one.indices)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _initializers(inner)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _specs(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        element = tensor.elem_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(element).name if element else "no tensor"
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
        specs.append(TensorSpec(name=value.name, dtype=dtype, shape=shape))
    return tuple(specs)
