"""Checks of a trained model before the export. All faults are refused in one message, not one for each training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from onnx_release.errors import Refused, RunnerRefused
from onnx_release.export import diagnostics
from onnx_release.export.contract import ModelContract, contract_for, require_distinct_names, require_varying
from onnx_release.export.input_faults import explain_failure
from onnx_release.export.train_mode import require_eval
from onnx_release.export.verify import ExportVerifier
from onnx_release.records import Finding
from onnx_release.runners.pytorch import PyTorchOptions
from onnx_release.trained.example import bind_package
from onnx_release.trained.input_binding import InputBinding
from onnx_release.trained.load import LoadedModel, value_findings
from onnx_release.trained.mlflow_model import TrainedPackage
from onnx_release.trained.signature_code import log_code

# Refusals by a run in PyTorch that another fault may cause: a frozen batch, NaN, or training mode.
_CONSEQUENCES = ("model_failed", "rejected_values", "random_outputs", "stateful_model")
# Faults that another call of log_model removes.
_LOGGING = ("train_mode", "frozen_batch", "frozen_dimension", "no_batch_dimension", "outputs_differ")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModel:
    """Model that can be exported.

    Attributes:
        package: The description of its files, with the example by name.
        binding: The places of its inputs.
        contract: The inputs and outputs that the graph must have.
        verifier: The comparison with PyTorch, which has run the samples of every release.
        findings: Findings about its weights.
    """

    package: TrainedPackage
    binding: InputBinding
    contract: ModelContract
    verifier: ExportVerifier
    findings: tuple[Finding, ...]


def prepare(package: TrainedPackage, model: LoadedModel) -> PreparedModel:
    """Check a loaded model in every way that needs no export.

    Raises:
        Refused: With every fault. Class and code are those of the first one.
    """
    faults: list[Refused] = []
    findings: tuple[Finding, ...] = ()
    prepared: tuple[InputBinding, ModelContract] | None = None
    with _collected(faults):
        findings = tuple(value_findings(model))
    if isinstance(model, torch.export.ExportedProgram):
        with _collected(faults):
            require_eval(model)
    with _collected(faults):
        package, binding = bind_package(package, model)
        prepared = binding, contract_for(package)
    if prepared is None:
        raise combined(faults, package, model)
    binding, contract = prepared
    with _collected(faults):
        require_distinct_names(contract)
    if isinstance(model, torch.export.ExportedProgram):
        with _collected(faults):
            require_varying(model, contract.inputs, contract.outputs)
    try:
        verifier = ExportVerifier(model, pytorch_options(package), contract)
        contract = dataclasses.replace(contract, output_names=verifier.output_names, output_axes=verifier.output_axes())
        if not package.outputs and not faults:
            require_distinct_names(contract)
    except Refused as refusal:
        explained = refusal
        if isinstance(refusal, RunnerRefused) and not faults:
            explained = explain_failure(refusal, model, pytorch_options(package), package, contract)
        if not faults or refusal.code not in _CONSEQUENCES:
            faults.append(explained)
        raise combined(faults, package, model) from refusal
    if faults:
        raise combined(faults, package, model)
    return PreparedModel(package=package, binding=binding, contract=contract, verifier=verifier, findings=findings)


def pytorch_options(package: TrainedPackage) -> PyTorchOptions:
    """Return the options to run the trained model in PyTorch on the CPU."""
    return PyTorchOptions(
        input_names=tuple(spec.name for spec in package.inputs),
        output_names=tuple(spec.name for spec in package.outputs) or None,
    )


def combined(faults: Sequence[Refused], package: TrainedPackage, model: LoadedModel) -> Refused:
    """Return one refusal with all faults, and with the shortcomings that the same correction removes."""
    first = faults[0]
    notes = [finding.message for finding in diagnostics.training_findings(package, model)]
    problem = first.problem
    if len(faults) > 1:
        listed = "; ".join(f"({index}) {fault.subject} {fault.problem}" for index, fault in enumerate(faults, 1))
        problem = f"has {len(faults)} faults: {listed}"
    code = log_code(package.inputs, package.outputs)
    # The sentence with the code comes last.
    actions = sorted(dict.fromkeys(fault.action for fault in faults), key=lambda action: code in action)
    if any(fault.code in _LOGGING for fault in faults):
        if code not in actions[-1]:
            actions.append(f"Log the model again: {code}.")
        if notes:
            actions.append(f"Then note also: {'; '.join(notes)}.")
    if len(faults) == 1:
        return type(first)(first.subject, problem, " ".join(actions), code=first.code)
    last, own = faults[-1], {fault.action for fault in faults}
    # A list of the faults has the further advice once, at its end.
    advice = " ".join((last.action, *(action for action in actions if action not in own)))
    listing = (*faults[:-1], type(last)(last.subject, last.problem, advice, code=last.code))
    return type(first)("The model", problem, " ".join(actions), code=first.code, faults=listing)


@contextmanager
def _collected(faults: list[Refused]) -> Iterator[None]:
    try:
        yield
    except Refused as refusal:
        faults.append(refusal)
