"""Export by the first strategy whose ONNX model passes verification."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir
import torch

from onnx_release import limits
from onnx_release.errors import ExportRefused, Refused
from onnx_release.export import graph_cleanup
from onnx_release.export.contract import (
    ModelContract,
    require_contract,
    require_distinct_names,
    require_varying,
    traced_batch_size,
)
from onnx_release.export.failures import Failure, failure_of, refusal_of, unfit_graph
from onnx_release.export.strategies import TORCHSCRIPT, strategies_for
from onnx_release.export.train_mode import require_eval
from onnx_release.machine_faults import causes, raise_machine_failure
from onnx_release.records import ExportAttempt, TensorSpec
from onnx_release.text import shorten
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.module_state import ModuleState

_log = logging.getLogger(__name__)
# Longest reason in a log line. The record has all of it.
_REASON_MAX_CHARACTERS = 100
# Faults of the model or of an option, which no strategy removes.
_FINAL = ("train_mode", "random_outputs", "stateful_model", "single_file_too_large")

Verify = Callable[[Path, "ExportResult"], str | None]
"""Verification of a written model: returns the reason why it is unfit, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of the export.

    Attributes:
        opset: The ONNX opset. None: the exporter's default.
        device: ``cpu``, ``cuda`` or ``auto`` (CUDA if it is available).
        single_file_max_bytes: The largest size of all weights for one file. 0: weights are always external.
    """

    opset: int | None = None
    device: str = "auto"
    single_file_max_bytes: int = limits.SINGLE_FILE_MAX_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """A written ONNX model and its export.

    Attributes:
        opset: The opset of the graph.
        ir_version: The ONNX IR version of the graph.
        strategy: The strategy that wrote the model.
        device: The device of the trace.
        export_batch_size: The batch size of the trace.
        wall_s: The duration of all attempts.
        bounds: The smallest and the largest size of a varying dimension in the trace, by its name; 0 for no largest.
        inputs: The inputs of the graph, read back after the export.
        outputs: The outputs of the graph, read back after the export.
        attempts: Every strategy that was tried, in order.
    """

    opset: int
    ir_version: int
    strategy: str
    device: str
    export_batch_size: int
    wall_s: float
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bounds: dict[str, tuple[int, int]] = field(default_factory=dict)
    attempts: tuple[ExportAttempt, ...] = ()


def export_onnx(
    model: LoadedModel, folder: Path, contract: ModelContract, options: ExportOptions, verify: Verify | None = None
) -> ExportResult:
    """Write ``model.onnx``, and external data of a large model, by the first strategy whose result passes verification.

    If no result passes, the first strategy that wrote a model is taken again. The later steps refuse that model, and
    their reports have the details.

    Args:
        model: The loaded model.
        folder: An empty folder to write to.
        contract: The inputs and outputs that the graph must have.
        options: Opset and device.
        verify: Verification of each written model; None accepts the first one.

    Raises:
        ExportRefused: If no strategy writes a model that fulfils the contract, the model is in training mode
            (``train_mode``), or an option cannot be used. The message has the reason of every strategy.
    """
    if options.opset is not None and not limits.OPSET_MIN <= options.opset <= limits.OPSET_MAX:
        raise ExportRefused(
            f"Opset {options.opset}",
            f"is outside the range of the exporter, {limits.OPSET_MIN} to {limits.OPSET_MAX}",
            "Choose an opset of this range.",
            code="unsupported_opset",
        )
    device = _available_device(options.device)
    require_exportable(model, contract)
    if not isinstance(model, torch.export.ExportedProgram):
        model = model.eval().to(device)
    elif any(tensor.device.type != device for tensor in model.state_dict.values()):
        from torch.export.passes import move_to_device_pass

        model = move_to_device_pass(model, device)
    return _Fallback(model, folder, contract, replace(options, device=device), verify).run()


def require_exportable(model: LoadedModel, contract: ModelContract) -> None:
    """Refuse names that an input and an output share, and faults that the trace of an exported program fixed.

    No export changes these.

    Raises:
        Refused: With the codes of `require_distinct_names`, `require_eval` and `require_varying`.
    """
    require_distinct_names(contract)
    if isinstance(model, torch.export.ExportedProgram):
        require_eval(model)
        require_varying(model, contract.inputs)


def tool_versions() -> dict[str, str]:
    """Return the versions of torch and onnx_ir, which the exported bytes depend on."""
    # torch.__version__ is a subclass of str.
    return {"torch": str(torch.__version__), "onnx_ir": ir.__version__}


def _available_device(device: str) -> str:
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if has_cuda else "cpu"
    if device != "cpu" and not (device == "cuda" and has_cuda):
        raise ExportRefused(
            f"The device {device!r}",
            "is not available on this worker",
            "Choose 'auto' or 'cpu', or run the export on a worker with a GPU.",
            code="no_device",
        )
    return device


@dataclass
class _Fallback:
    """One run through the strategies."""

    model: LoadedModel
    folder: Path
    contract: ModelContract
    options: ExportOptions
    verify: Verify | None

    def run(self) -> ExportResult:
        attempts: list[ExportAttempt] = []
        failures: list[tuple[str, Failure]] = []
        for strategy in strategies_for(self.model):
            if strategy != TORCHSCRIPT and any(failure.exporter_only for _, failure in failures):
                continue
            began = time.perf_counter()
            result, reason = None, None
            _log.info("Exporting by %s.", strategy)
            try:
                result = self._write(strategy)
                reason = self.verify(self.folder, result) if self.verify else None
            except Exception as error:
                if isinstance(error, Refused) and error.code in _FINAL:
                    raise
                raise_machine_failure(error)
                _raise_missing_package(error)
                _log.debug("The strategy %s failed.", strategy, exc_info=True)
                failures.append((strategy, failure := failure_of(error)))
                result, reason = None, failure.reason
            outcome: Literal["failed", "taken", "unfit"]
            outcome = "failed" if result is None else "taken" if reason is None else "unfit"
            wall_s = round(time.perf_counter() - began, 3)
            attempts.append(ExportAttempt(strategy=strategy, outcome=outcome, reason=reason, wall_s=wall_s))
            cause = f": {shorten(reason, _REASON_MAX_CHARACTERS)}" if reason else ""
            _log.info("The strategy %s: %s after %.1f s%s", strategy, outcome, wall_s, cause)
            if result is not None and reason is None:
                return _with_attempts(result, attempts)
            if failures and failures[-1][1].final:
                break
        unfit = next((attempt for attempt in attempts if attempt.outcome == "unfit"), None)
        # A trace by TorchScript says little about a model that the other strategies refuse for a reason.
        if unfit is not None and not (unfit.strategy == TORCHSCRIPT and failures):
            return _with_attempts(self._write(unfit.strategy), attempts)
        raise refusal_of([*failures, *([(TORCHSCRIPT, unfit_graph(str(unfit.reason)))] if unfit else [])])

    def _write(self, strategy: str) -> ExportResult:
        began = time.perf_counter()
        for leftover in self.folder.iterdir():
            leftover.unlink()
        convert = strategies_for(self.model)[strategy]
        # A trace leaves tensors without values in the attributes that `forward` writes.
        with ModuleState(self.model).restored(tensors=False):
            conversion = convert(self.model, self.contract, self.options.opset, self.options.device)
        if conversion.program is not None:
            require_eval(conversion.program, forced=not isinstance(self.model, torch.export.ExportedProgram))
        model, graph = conversion.graph, conversion.graph.graph
        graph_cleanup.rename_inner_values(graph)
        graph_cleanup.clean(model, self.contract.inputs)
        graph_cleanup.restore_varying_outputs(graph, self.contract.varying_axes)
        inputs, outputs = graph_cleanup.specs_of(graph.inputs), graph_cleanup.specs_of(graph.outputs)
        require_contract(inputs, outputs, self.contract)
        graph_cleanup.save_model(model, self.folder, self.model, self.options.single_file_max_bytes)
        opset = int(model.opset_imports[""])
        if self.options.opset not in (None, opset):
            raise ExportRefused(
                f"Opset {self.options.opset}",
                f"was not written: the exporter wrote {opset}",
                "Choose another opset.",
                code="other_opset",
            )
        return ExportResult(
            opset=opset,
            ir_version=model.ir_version,
            strategy=strategy,
            device=self.options.device,
            export_batch_size=traced_batch_size(self.model, self.contract),
            wall_s=time.perf_counter() - began,
            inputs=inputs,
            outputs=outputs,
            bounds=conversion.bounds,
        )


def _raise_missing_package(error: Exception) -> None:
    """Raise the `ImportError` behind an error of the exporter. The model has run, so its own imports have succeeded."""
    for cause in causes(error):
        if isinstance(cause, ImportError):
            raise cause


def _with_attempts(result: ExportResult, attempts: Sequence[ExportAttempt]) -> ExportResult:
    return replace(result, attempts=tuple(attempts), wall_s=sum(attempt.wall_s for attempt in attempts))
