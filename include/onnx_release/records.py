"""What one step of a release tells the next: small immutable records that travel as plain dicts.

Airflow's XCom, `report.json` and the tags of a model version are all made from these. Standard library only, so that
a DAG file or a sensor can import them without paying for torch.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

from onnx_release.errors import Refused

T = TypeVar("T", bound="Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record that turns into a JSON-safe dict and back; an unknown, missing or mistyped field is refused."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts, lists, strings, numbers and None; a NaN or infinity becomes None (JSON has neither)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Rebuild the record; raises `Refused` naming the field when `data` is not one of these."""
        return _build(cls, data, cls.__name__)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _hints(cls: type[Record]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _wrong(where: str, data: object, wanted: str) -> Refused:
    return Refused(
        where,
        f"is {data!r:.80}, not {wanted}",
        "Correct it where it was given, or rerun the step that wrote it.",
    )


def _build(cls: type[T], data: object, where: str) -> T:
    if not isinstance(data, dict):
        raise _wrong(where, data, f"a dict of {cls.__name__}'s fields")
    hints = _hints(cls)
    if unknown := sorted(map(str, set(data) - set(hints))):
        raise _wrong(f"{where}.{unknown[0]}", data[unknown[0]], f"a field of {cls.__name__}")
    values = {}
    for f in dataclasses.fields(cls):
        if f.name in data:
            values[f.name] = _convert(hints[f.name], data[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise _wrong(f"{where}.{f.name}", "missing", "optional")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise _wrong(where, value, " or ".join(map(repr, args)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, "a list")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a dict")
        return {key: _convert(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record):
        return _build(hint, value, where)
    return _convert_scalar(hint, value, where)


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    scalars = [option for option in options if option is not type(None)]
    for option in scalars[:-1]:
        try:
            return _convert(option, value, where)
        except Refused:
            continue
    return _convert(scalars[-1], value, where)


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
    # bool is an int to Python, but `passed: 1` or `opset: true` in a record is a mistake.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is hint:
        return value
    raise _wrong(where, value, f"of type {hint.__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec(Record):
    """A named tensor of a model: dtype in numpy's words, shape with a string for each dimension that may vary.

    The first varying dimension of a tensor is ``batch`` unless the model says otherwise.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel(Record):
    """A finished training run and the one PyTorch model of it that is to be released.

    `model_uri` is resolved: ``models:/m-…`` (an MLflow 3 logged model) or ``runs:/<run id>/<path>`` (MLflow 2).
    """

    training_run_id: str
    model_uri: str
    model_id: str | None = None
    run_name: str = ""
    experiment_id: str = ""
    ended_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest(Record):
    """One file of a folder: its path in it (``/``-separated), the sha256 of its bytes, and their count."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxArtifact(Record):
    """An exported model folder: ``model.onnx``, its external data, and what MLflow needs to load them.

    `sha256` names the folder's bytes (see `artifact.folder_sha256`); every later record repeats it. `uri` says where it
    is staged and is empty for a folder that only the current process knows.

    `source` is how the trained model was stored (``pt2`` or ``pickle``) and `device` where it was exported. `providers`
    are the execution providers that its package asks for, and that it is therefore tested with.
    """

    uri: str = ""
    sha256: str
    size_bytes: int
    files: tuple[FileDigest, ...]
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    exporter: str
    source: str
    device: str
    providers: tuple[str, ...]
    export_batch_size: int
    export_wall_s: float
    tool_versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Record):
    """One thing a check saw. An ``error`` refuses the model; ``warning`` and ``info`` are for the reader."""

    severity: Literal["error", "warning", "info"]
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport(Record):
    """What static checks of the ONNX file found; `passed` only when every check ran and none found an error."""

    sha256: str
    passed: bool
    findings: tuple[Finding, ...]
    opset: int | None = None
    ir_version: int | None = None
    domains: tuple[str, ...] = ()
    node_count: int | None = None
    size_bytes: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity(Record):
    """One output compared on one sample. A measure that could not be taken is None, and a limit on it then failed.

    `mae` and `max_abs` are over the finite values, `max_rel` leaves out those whose PyTorch value is 0 (None when all
    are), and `cosine` is None when one side alone is all zeros.
    """

    output: str
    sample: str
    batch_size: int
    dtype: str
    shape: tuple[int, ...]
    mae: float | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    passed: bool
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport(Record):
    """PyTorch against ONNX Runtime on the same inputs: every output, every sample, several batch sizes."""

    sha256: str
    passed: bool
    comparisons: tuple[OutputParity, ...]
    batch_sizes: tuple[int, ...]
    unseen_batch_sizes: tuple[int, ...]
    limits: dict[str, Any]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SideLatency(Record):
    """One side's time per call, in ms; `throughput_per_s` counts samples (calls times batch size) a second."""

    p50_ms: float
    p95_ms: float
    cpu_p50_ms: float
    throughput_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLatency(Record):
    """Both sides at one batch size. `speedup` is PyTorch's median over ONNX Runtime's, with its bootstrap interval.

    `rounds` counts interleaved rounds, of `calls_per_round` timed calls of each side. `cpu_wait_share` is the part of
    their time that this process's threads were ready to run and waited for a CPU that others had (None where the
    kernel does not count it): a busy host slows PyTorch more than ONNX Runtime, and flatters the speedup. So disturbed
    rounds, `rounds_disturbed` of them, are not among `rounds`, unless there were too few without; then the figures are
    not `conclusive`.
    """

    batch_size: int
    torch: SideLatency
    onnxruntime: SideLatency
    speedup: float
    speedup_low: float
    speedup_high: float
    confidence: float
    rounds: int
    calls_per_round: int
    measured_s: float
    conclusive: bool
    rounds_disturbed: int = 0
    cpu_wait_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo(Record):
    """The machine that measured. `load_1m` is the load average when the measuring began."""

    cpu_model: str
    logical_cpus: int
    usable_cpus: int
    load_1m: float
    platform: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport(Record):
    """Speed against the budget.

    `verdict`: ``goal`` (the goal is met), ``met`` (only what is required), ``missed``, or ``inconclusive`` when the
    interval still straddles the limit after the longest measuring. `passed` is False for the last two unless the
    budget's policy is to warn; then `warnings` says so.
    """

    sha256: str
    passed: bool
    verdict: Literal["goal", "met", "missed", "inconclusive"]
    batches: tuple[BatchLatency, ...]
    budget: dict[str, Any]
    threads: int
    device: str
    providers_requested: tuple[str, ...]
    providers_active: tuple[str, ...]
    host: HostInfo
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkReport(Record):
    """Parity and latency of one artifact; a model that failed parity is not timed (`latency` is None)."""

    sha256: str
    passed: bool
    parity: ParityReport
    latency: LatencyReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseReport(Record):
    """The evidence of one release, as `report.json` holds it beside the model and in the training run.

    `status` is the verdict on the artifact; what became of it afterwards (version, alias) is MLflow's to tell.
    """

    schema_version: int = 1
    status: Literal["accepted", "refused"]
    reasons: tuple[str, ...] = ()
    model_name: str
    training: TrainedModel
    artifact: OnnxArtifact | None = None
    check: CheckReport | None = None
    benchmark: BenchmarkReport | None = None
    dag_run_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Object(Record):
    """The uploaded folder: every object under `uri` was read back and had the digest that `files` says."""

    uri: str
    bucket: str
    prefix: str
    sha256: str
    size_bytes: int
    files: tuple[FileDigest, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion(Record):
    """A version in MLflow's registry whose source is the uploaded folder; `alias` is empty until it is promoted."""

    name: str
    version: int
    sha256: str
    source: str
    training_run_id: str
    alias: str = ""
    created: bool = False
