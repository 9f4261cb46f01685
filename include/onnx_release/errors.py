"""Errors of a release step.

`Refused` means that a retry gives the same result; `Transient` means that a later try may succeed. The code that finds
the cause decides which one it is. Each refusal carries a code, and each stage has a subclass that lists its codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from onnx_release.text import bounded


class ReleaseError(Exception):
    """A release step that did not succeed.

    The three parts make two sentences: "{subject} {problem}. {action}"

    :param subject: the object, for example ``The output 'positions' at batch size 8`` or ``Run 3f2a``.
    :param problem: the rest of that sentence, with the value and the limit, without a full stop.
    :param action: the next step for a person, as a sentence.
    """

    def __init__(self, subject: str, problem: str, action: str) -> None:
        # Each part may contain names of a training run.
        self.subject, self.problem, self.action = (bounded(part) for part in (subject, problem, action))
        super().__init__(self.subject, self.problem, self.action)

    def __str__(self) -> str:
        # The problem may end with a library's sentence.
        return f"{self.subject} {self.problem.rstrip('.')}. {self.action}"

    def to_dict(self) -> dict[str, Any]:
        """Return the class and the parts as a JSON-safe dict, for another process."""
        return {"class": type(self).__name__, "subject": self.subject, "problem": self.problem, "action": self.action}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ReleaseError:
        """Return the error that `to_dict` described.

        :param data: the dict. A class that is not in `STAGES` becomes `Refused`.
        """
        parts = data["subject"], data["problem"], data["action"]
        if data["class"] == Transient.__name__:
            return Transient(*parts)
        cls = next((stage for stage in STAGES if stage.__name__ == data["class"]), Refused)
        faults = map(ReleaseError.from_dict, data.get("faults", ()))
        return cls(*parts, code=data["code"], faults=[fault for fault in faults if isinstance(fault, Refused)])


class Transient(ReleaseError):
    """A failure outside the model (server, network, disk) that may be gone at the next try."""


class Refused(ReleaseError):
    """A failure that a retry repeats. A person has to change something.

    A subclass for each stage lists its codes in `codes`: code -> one sentence for the documentation.

    :param code: the stable name of the reason, for programs and tests.
    :param faults: the single refusals of a message that has several, else empty.
    """

    codes: ClassVar[Mapping[str, str]] = {}
    # The codes for which the worker or the deployment is at fault. The training run is not refused for them.
    deployment_codes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, subject: str, problem: str, action: str, *, code: str, faults: Sequence[Refused] = ()) -> None:
        super().__init__(subject, problem, action)
        self.code = code
        self.faults = tuple(faults)

    @property
    def is_of_deployment(self) -> bool:
        """True if neither the model nor a parameter is at fault."""
        return self.code in self.deployment_codes

    def to_dict(self) -> dict[str, Any]:
        """Return the class and the parts, with the code, as a JSON-safe dict."""
        faults = {"faults": [fault.to_dict() for fault in self.faults]} if self.faults else {}
        return super().to_dict() | {"code": self.code} | faults


class RecordRefused(Refused):
    """A record or a parameter with a wrong field."""

    codes: ClassVar[Mapping[str, str]] = {
        "wrong_field": "A field of a record is missing, unknown or of another type.",
        "not_json": "A value cannot be written as JSON.",
        "missing_record": "The task that returns a record has not run.",
    }


class ParameterRefused(Refused):
    """A release parameter with a value that cannot be used."""

    codes: ClassVar[Mapping[str, str]] = {
        "input_spec": "The parameter `input_spec` is malformed.",
        "unknown_precision": "The parameter `precision_limits` names a precision without own limits.",
        "not_a_list": "A parameter is not a list of whole numbers, or is empty.",
        "missing_value": "A required parameter is empty.",
        "serving_layouts": "A layout of a model server is unknown.",
        "target_runtimes": "A version of ONNX Runtime is not exact, or there are too many.",
        "runtimes": "A runtime of a rehearsal has no known form, or there are none or too many.",
        "not_in_range": "A parameter is not a whole number, or is outside its limits.",
        "unknown_parameter": "A release has no parameter of this name.",
        "wrong_parameter": "A parameter has a value of another kind, or names an unknown limit.",
        "wrong_name": "A model name, bucket, alias or run id does not match its pattern.",
        "same_alias": "The champion's alias is also the alias of every release.",
        "reserved_alias": "MLflow reserves the alias.",
        "stage_of_reduced_precision": "A legacy stage was requested for a model of reduced precision.",
    }


class TrainedModelRefused(Refused):
    """A trained model that cannot be read, loaded or called."""

    codes: ClassVar[Mapping[str, str]] = {
        "no_mlmodel": "The model folder has no file MLmodel.",
        "no_pytorch_flavor": "The MLflow model is not a PyTorch model.",
        "no_model_file": "The model folder has neither model.pt2 nor model.pth.",
        "unreadable_file": "A file of the MLflow model cannot be read.",
        "path_outside_folder": "The MLflow model names a path outside its folder.",
        "no_signature": "Neither a signature, an input example nor `input_spec` describes the inputs.",
        "column_signature": "The signature describes columns instead of tensors.",
        "tensor_name": "The name of an input or output is too long or has control characters.",
        "ambiguous_names": "Tensors of the model have no names, or two of them share one.",
        "no_example": "The artifact folder has no input example.",
        "no_input_spec": "The model is a bare file, and `input_spec` does not describe its inputs.",
        "pickle": "The model is a pickle, and the deployment does not allow pickles.",
        "code_in_pt2": "A pt2 archive contains more than tensors and a graph.",
        "damaged_pt2": "A pt2 archive cannot be opened.",
        "foreign_operators": "A TorchScript archive calls operators outside torch.",
        "damaged_torchscript": "A TorchScript archive cannot be opened.",
        "missing_code": "The model's class is neither installed nor logged with the model.",
        "load_failed": "The file of the model cannot be loaded by torch.",
        "not_a_module": "The model file contains an object that is not a module.",
        "nan_weights": "The weights contain NaN or infinity.",
        "damaged_checkpoint": "A file of weights cannot be loaded.",
        "no_weights": "A file of weights contains no named tensors.",
        "several_networks": "A file has several networks that fit the model, and `weights_key` names none of them.",
        "weights_key": "The parameter `weights_key` names no weights of the file.",
        "sharded_weights": "A file has flattened or sharded parts of the weights.",
        "missing_shards": "Files of weights that an index names are missing.",
        "weights_differ": "The weights do not fit the model that the factory makes.",
        "no_factory": "The training run logged weights, and no factory makes the model.",
        "factory_path": "The factory's path is not of the form package.module:name.",
        "factory_not_allowed": "The factory is not in a package that the deployment allows.",
        "factory_import": "The factory cannot be imported.",
        "factory_failed": "The factory raises an error.",
        "opaque_argument": "The factory needs a hyperparameter of the checkpoint that is not a plain value.",
        "random_factory": "The factory gives random values to tensors that no file of weights has.",
        "factory_result": "The factory returns an object that is not a module.",
        "inputs_differ": "The signature does not name the inputs that the model takes.",
        "mixed_inputs": "The signature mixes the model's own names of inputs with other names.",
        "outputs_differ": "The model returns other outputs than the signature names.",
        "mixed_outputs": "The signature mixes the model's own names of outputs with other names.",
    }


class SampleRefused(Refused):
    """Input samples that do not fit the model."""

    codes: ClassVar[Mapping[str, str]] = {
        "no_batch_dimension": "No input of the model has a batch dimension that varies.",
        "batch_sizes": "The parameter `batch_sizes` is empty or has a size out of range.",
        "input_dtype": "An input is neither a float, an integer nor a boolean tensor.",
        "example_mismatch": "An example or a user's input differs from the model's inputs.",
        "batch_too_large": "A user's input has a larger batch than the limit.",
        "npz_too_large": "The arrays of an .npz file are too large.",
        "unreadable_npz": "An .npz file cannot be read.",
    }


class ArtifactRefused(Refused):
    """An artifact folder whose bytes or files differ from its record."""

    codes: ClassVar[Mapping[str, str]] = {
        "not_a_folder": "A path that must be an artifact folder is a file, a link or missing.",
        "special_file": "An artifact folder contains a symbolic link or a special file.",
        "single_file_too_large": "A model as one file exceeds the 2 GB of the ONNX format.",
        "changed_files": "Files of an artifact folder are missing, extra or changed.",
        "wrong_sha256": "The sha256 in an artifact's record is not the digest of the files that it lists.",
        "other_outputs": "Two models to compare have outputs of other names.",
        "changed_content": "A fetched folder has another digest than an earlier task of the release recorded.",
    }


class RunnerRefused(Refused):
    """A model that PyTorch or ONNX Runtime does not run, or a step process that crashed."""

    codes: ClassVar[Mapping[str, str]] = {
        "model_failed": "The PyTorch model raises an error on its inputs.",
        "dtype_mismatch": "The dtypes of the inputs do not fit the weights of the PyTorch model.",
        "rejected_values": "The PyTorch model rejects the values of its input.",
        "onnxruntime_rejected": "ONNX Runtime does not load the model.",
        "onnxruntime_failed": "ONNX Runtime raises an error while it runs the model.",
        "onnxruntime_crashed": "The process that runs ONNX Runtime crashed.",
        "session_option": "A session option is unknown or has a value that cannot be used.",
        "no_cuda": "The artifact is packaged for a GPU, and the worker has none.",
        "runtime_unavailable": "A version of ONNX Runtime cannot be installed, or its environment is damaged.",
        "provider_missing": "The installed ONNX Runtime lacks an execution provider.",
        "step_forbidden": "The code of a pickle uses a file or a socket outside of its process.",
        "step_memory": "The process of a step used more memory than a pickle may.",
        "step_too_long": "The process of a step ran longer than a pickle may.",
        "step_crashed": "The process of a step crashed or ended without an answer.",
        "step_account": "The worker, which runs as root, cannot run a pickle with the account of the option.",
    }
    deployment_codes: ClassVar[frozenset[str]] = frozenset(
        {"no_cuda", "provider_missing", "runtime_unavailable", "step_account"}
    )


class ExportRefused(Refused):
    """A model that cannot be exported with its names, dtypes and varying dimensions."""

    codes: ClassVar[Mapping[str, str]] = {
        "unsupported_opset": "The opset is outside the range that the exporter writes.",
        "other_opset": "The exporter wrote another opset than the one of the options.",
        "no_device": "The device of the export is not available on the worker.",
        "train_mode": "The model was traced in training mode: dropout or batch norm is active.",
        "frozen_batch": "The batch has one fixed size in the exported program or in the ONNX graph.",
        "frozen_dimension": "A dimension that varies in the signature has one fixed size in the model.",
        "contract_mismatch": "A name, dtype or size in the ONNX graph differs from the signature.",
        "output_count": "The ONNX graph and the model have different numbers of outputs.",
        "repeated_output": "The model returns one tensor under two names.",
        "data_dependent": "A branch, loop or value of the model depends on the values of its input.",
        "unsupported_operator": "ONNX has no translation of an operator of the model.",
        "unsupported_structure": "The model takes or returns a dict or another object that cannot be exported.",
        "not_exportable": "No export strategy can convert the model.",
        "random_outputs": "The model returns different outputs for the same input.",
        "stateful_model": "The outputs of the model depend on earlier calls, because `forward` writes attributes.",
        "size_limit": "The ONNX graph is wrong beyond a size that the model's code fixed, such as a table's length.",
    }


class CheckRefused(Refused):
    """An artifact that fails its smoke test."""

    codes: ClassVar[Mapping[str, str]] = {
        "smoke_test": "The artifact's outputs on its own example differ from the record.",
    }


class ParityRefused(Refused):
    """A parity comparison that cannot be made."""

    codes: ClassVar[Mapping[str, str]] = {
        "part_failed": "ONNX Runtime does not run a part of the graph in the search for the first difference.",
        "part_rejected": "ONNX Runtime does not load a part of the graph in the search for the first difference.",
        "wrong_limits": "A parity limit is unknown or out of its bounds, or an output has no limit.",
    }


class LatencyRefused(Refused):
    """A latency measurement that cannot be made."""

    codes: ClassVar[Mapping[str, str]] = {
        "invalid_latency_options": "A number of the latency budget or of the measurement plan is out of range.",
        "no_output_values": "A side returns outputs without values, so there is nothing to time.",
        "unusable_lock": "The file of the measuring lock cannot be locked, or is not safe to lock.",
    }
    deployment_codes: ClassVar[frozenset[str]] = frozenset({"unusable_lock"})


class TuningRefused(Refused):
    """A tuning that cannot be made."""

    codes: ClassVar[Mapping[str, str]] = {
        "no_reduced_variant": "Only reduced precisions may ship, and no variant of them passed.",
        "invalid_tune_options": "An option of the tuning is out of range.",
        "unsupported_by_tool": "ONNX Runtime's tool cannot convert the graph to this precision.",
        "target_mismatch": "The targets of the evaluation sample do not fit the outputs of the model.",
    }


class ServingRefused(Refused):
    """An artifact that a model server cannot serve."""

    codes: ClassVar[Mapping[str, str]] = {
        "unsupported_dtype": "A model server of `serving_layouts` lacks the dtype of a tensor.",
    }


class ReportRefused(Refused):
    """A release report that is missing, or that does not accept the artifact."""

    codes: ClassVar[Mapping[str, str]] = {
        "not_accepted": "A report of the artifact is missing, failed or belongs to other bytes.",
        "other_schema_version": "A report was written by a program with another schema version.",
        "unreadable_report": "A report file is missing or is not JSON.",
        "check_failed": "A static check of the artifact found an error.",
        "benchmark_failed": "Parity or latency of the artifact did not pass.",
        "target_runtime_failed": "A version of ONNX Runtime of `target_runtimes` does not load or run the model.",
        "incomplete_report": "The uploaded report has no check or no benchmark.",
        "other_bytes": "The uploaded objects or the version have another sha256 than the judged artifact.",
        "invalid_bill": "The bill of materials breaks the schema of CycloneDX.",
    }


class SignatureRefused(Refused):
    """A signature that is missing or wrong, or a key that cannot sign."""

    codes: ClassVar[Mapping[str, str]] = {
        "unsigned": "The folder of the model has no signature, and one is required.",
        "foreign_signature": "The signature is damaged, or another key made it.",
        "signature_mismatch": "The signature does not fit the files: one was changed, added or removed.",
        "unusable_key": "The signing key or certificate cannot be read, or is of another kind.",
        "no_signing_package": "The package model-signing is not installed.",
    }
    deployment_codes: ClassVar[frozenset[str]] = frozenset({"unusable_key", "no_signing_package"})


class TrainingRunRefused(Refused):
    """A training run without one model to release, or a search for training runs that cannot be made."""

    codes: ClassVar[Mapping[str, str]] = {
        "no_pytorch_model": "The training run has no PyTorch model and no file of weights.",
        "model_files_gone": "The training run logged a model whose files are gone.",
        "no_such_logged_model": "The training run has no logged model of the given name.",
        "several_logged_models": "The training run logged models of different names at its newest step.",
        "several_model_files": "The training run logged no model, but several files that match equally well.",
        "weights_in_shards": "The weights are split into several files.",
        "no_model_name": "Nothing names the registered model, and the experiment's name cannot.",
        "empty_range": "The begin of a range of time is not before its end.",
        "filter_too_long": "The filter for training runs has too many characters.",
        "not_a_time": "A parameter is not a time in ISO 8601.",
    }


class CommandRefused(Refused):
    """A call of the command `onnx-release` that cannot be carried out."""

    codes: ClassVar[Mapping[str, str]] = {
        "model_not_found": "The model is neither an existing path nor a readable MLflow URI.",
        "no_access": "MLflow or a store refuses the account of the environment.",
        "foreign_source": "A version or a run has its files at a place that the command line does not name.",
        "no_release": "A folder or a version has no report of a release, so there is nothing to verify it against.",
        "no_tracking_uri": "The command has an MLflow URI, and the environment names no MLflow server.",
        "wrong_argument": "An argument of the command has a value that cannot be used.",
        "output_exists": "The output exists, and is not a folder of this command that may be overwritten.",
    }


STAGES: tuple[type[Refused], ...] = (
    RecordRefused,
    ParameterRefused,
    TrainedModelRefused,
    SampleRefused,
    ArtifactRefused,
    RunnerRefused,
    ExportRefused,
    CheckRefused,
    ParityRefused,
    LatencyRefused,
    TuningRefused,
    ServingRefused,
    SignatureRefused,
    ReportRefused,
    TrainingRunRefused,
    CommandRefused,
)
