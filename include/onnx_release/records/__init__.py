"""What one step of a release tells the next: small immutable records that travel as plain dicts.

Airflow's XCom, `report.json` and the tags of a model version are all made from these. Standard library only, so that
a DAG file or a sensor can import them without paying for torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from onnx_release.records.base import Record


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

    `model_uri` is resolved: ``models:/m-…`` (an MLflow 3 logged model) or ``runs:/<run id>/<path>`` (a model of MLflow
    2, or a file of weights). `chosen` says why this one.
    """

    training_run_id: str
    model_uri: str
    model_id: str | None = None
    run_name: str = ""
    experiment_id: str = ""
    ended_at_ms: int | None = None
    chosen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest(Record):
    """One file of a folder: its path in it (``/``-separated), the sha256 of its bytes, and their count.

    `etag` is what S3 calls the same bytes when they are put in parts of `limits.S3_PART_BYTES`; empty where nobody
    has taken it. It says nothing new, so files are the same without it.
    """

    path: str
    sha256: str
    size_bytes: int
    etag: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Record):
    """One thing a check saw. An ``error`` refuses the model; ``warning`` and ``info`` are for the reader.

    `fix` is the line that cures it, where there is one: code for the training script, or a parameter of the release.
    """

    severity: Literal["error", "warning", "info"]
    code: str
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportAttempt(Record):
    """One strategy of the export: ``taken``, ``failed`` (it wrote nothing), or ``unfit`` (what it wrote is wrong)."""

    strategy: str
    outcome: Literal["taken", "failed", "unfit"]
    reason: str = ""
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFile(Record):
    """What an object store said of a staged file once its bytes were verified.

    `by_content`: the store makes its ETags of the bytes, so that a copy of the same ETag holds the same bytes.
    """

    etag: str
    by_content: bool


Precision = Literal["float32", "float16", "int8"]
"""What a model computes in. ``float32`` stands for exact: the model as it was trained, whatever its own dtypes are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneCandidate(Record):
    """One contestant of the tuning, and what became of it.

    `outcome`: ``reference`` (PyTorch), ``chosen``, ``passed`` (fit, and not chosen), ``slower`` (dropped in a heat),
    ``refused`` (by its gate), ``failed`` (could not be made or run), ``left out`` (never tried); `reason` says why.
    `speedup` is the plain export's median time over its own, with its bootstrap interval; `cosine` and `sqnr_db` are
    the worst over all outputs and samples, and `task_metrics` the evaluation sample's, by output. `build_s` is what it
    took to make and to judge.
    """

    name: str
    precision: Precision
    outcome: Literal["reference", "chosen", "passed", "slower", "refused", "failed", "left out"]
    reason: str = ""
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    rounds: int = 0
    cosine: float | None = None
    sqnr_db: float | None = None
    task_metrics: dict[str, float] = field(default_factory=dict)
    size_bytes: int | None = None
    build_s: float = 0.0
    session_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport(Record):
    """Every candidate of one tuning, measured at the serving `batch_size`; `sha256` is the plain export's.

    `precision_limits` are those that reduced precisions were held to, `task_metric` says what the evaluation sample's
    metric is, by output, and `notes` what limited the search.
    """

    sha256: str
    chosen: str
    candidates: tuple[TuneCandidate, ...]
    batch_size: int
    threads: int
    confidence: float
    max_s: float
    wall_s: float
    precision_limits: dict[str, Any] = field(default_factory=dict)
    task_metric: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxArtifact(Record):
    """An exported model folder: ``model.onnx``, its external data, and what MLflow needs to load them.

    `sha256` names the folder's bytes (see `artifact.folder_sha256`); every later record repeats it. `uri` says where it
    is staged and is empty for a folder that only the current process knows; in an object store, `staged` has each
    file's ETag, by path. `stamps` tell, by path, that a file was not written to since its digest was taken, on the
    machine that took it (see `artifact.Digests`). `trained_sha256` is the content of the trained model.

    `source` is how the trained model was stored (``pt2``, ``pickle``, ``torchscript`` or ``state_dict``), `exporter`
    the strategy that made the file and `attempts` every one that was tried, in order; `findings` are the export
    doctor's. `device` is where it was exported. `providers` are the execution providers that its package asks for, and
    that it is therefore tested with.

    `variant` names the tuning's candidate that these bytes are, and is empty for the plain export; `session_options`
    are those that its package asks for, under the names of MLflow's ``onnx_session_options``. `tuning` is what the
    tuning found, where there was one, whichever candidate it chose.
    """

    uri: str = ""
    staged: dict[str, StagedFile] = field(default_factory=dict)
    trained_sha256: str = ""
    sha256: str
    size_bytes: int
    files: tuple[FileDigest, ...]
    stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)
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
    attempts: tuple[ExportAttempt, ...] = ()
    findings: tuple[Finding, ...] = ()
    precision: Precision = "float32"
    variant: str = ""
    session_options: dict[str, Any] = field(default_factory=dict)
    tuning: TuneReport | None = None


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
    are), and `cosine` is None when one side alone is all zeros. `scale` is the output's largest root mean square over
    all samples, `sqnr_db` that scale over the root mean square of the difference, in dB (None when nothing differs),
    and `agreement` the share of equal values of an integer or boolean output.
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
    scale: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    passed: bool
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence(Record):
    """Where ONNX Runtime's values first leave PyTorch's, in the order of the ONNX graph.

    `value` is what the node gives, `module` the path of the PyTorch module that it belongs to (empty when unknown),
    `scale` the root mean square of PyTorch's values, `compared` how many intermediate values were compared, and `note`
    what limits the finding.
    """

    sample: str
    batch_size: int
    node: str
    op_type: str
    value: str
    module: str = ""
    module_type: str = ""
    mae: float | None = None
    max_abs: float | None = None
    scale: float | None = None
    compared: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport(Record):
    """PyTorch against ONNX Runtime on the same inputs: every output, every sample, several sizes of what may vary.

    `notes` say what was left out, and why. `divergence` is looked for when the outputs differ.
    """

    sha256: str
    passed: bool
    comparisons: tuple[OutputParity, ...]
    batch_sizes: tuple[int, ...]
    unseen_batch_sizes: tuple[int, ...]
    limits: dict[str, Any]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None


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

    `status` is the verdict on the artifact; what became of it afterwards (version, alias) is MLflow's to tell. `moved`
    counts the bytes that the release moved, by partner and direction, and its caches' hits; known at the end alone.
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
    moved: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Object(Record):
    """The uploaded folder: of every object under `uri` the store was found to hold the bytes that `files` says."""

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
