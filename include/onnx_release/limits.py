"""Numbers of the core: limits, sizes and times, with the records of parity, latency and measurement.

The trigger form takes its defaults from here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onnx_release.records.base import Record

# 18 is the oldest opset that torch's dynamo exporter writes.
OPSET_MIN = 18
OPSET_MAX = 23

# The newest opset that the TorchScript exporter writes.
TORCHSCRIPT_OPSET = 20

# The traced example needs a batch of at least 2: torch.export makes the sizes 0 and 1 constants.
EXPORT_BATCH_SIZE = 2
BATCH_SIZES = (1, 8, 32)
SERVING_BATCH_SIZE = 1
# Added to the comparison when every other batch size is that of the export.
UNSEEN_BATCH_SIZE = 3
BATCH_SIZE_MAX = 4096
SAMPLE_SEEDS = (11, 23)
# The size of a varying dimension, except the batch, without an example.
VARYING_DIMENSION_SIZE = 16

# The largest invented input beyond a bound of the graph, in elements.
BOUND_ELEMENTS_MAX = 2**24

# External data has a fixed name: MLflow's writer uses a random one, which would change the sha256 at each save.
MODEL_FILE = "model.onnx"
EXTERNAL_DATA_FILE = "model.onnx.data"
# Weights up to this size are in the ONNX file itself, so one file is the whole model.
SINGLE_FILE_MAX_BYTES = 16 * 2**20
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"
REPORT_SUMMARY = "report.md"
# The evidence for other tools: see `provenance`.
BILL_FILE = "bom.cdx.json"
STATEMENT_FILE = "provenance.intoto.json"
SIGNATURE_FILE = "model.sig"
EVIDENCE = frozenset({BILL_FILE, STATEMENT_FILE, SIGNATURE_FILE})
# They are written after the digest of the folder was taken.
REPORTS = frozenset({REPORT_FILE, REPORT_PAGE, REPORT_SUMMARY}) | EVIDENCE

# Reference outputs in an artifact folder: the size of their arrays, the largest size to choose and to read, and the
# rows that are taken from a file.
REFERENCE_FILE = "reference.npz"
REFERENCE_MAX_BYTES = 4 * 2**20
REFERENCE_MAX_BYTES_LIMIT = 2**26
REFERENCE_READ_MAX_BYTES = 2**27
REFERENCE_ROWS_MAX = 8
# Weights above this size: extreme values are not among the reference outputs. PyTorch runs them on one thread, and each
# sample of a model of 800 MB took a twentieth of its export.
REFERENCE_EXTREMES_MAX_BYTES = 2**28

# Ends of the names of files with a PyTorch model or its weights, in lower case, for str.endswith. pathlib's
# suffix of ".pth.tar" is ".tar".
MODEL_SUFFIXES = (".pt2", ".ckpt", ".pth", ".pt", ".safetensors", ".pth.tar", ".pt.tar", ".tar", ".bin")
# Those of files that are loaded without their own code.
NO_CODE_SUFFIXES = (".pt2", ".safetensors")
# Ends of the names of the index of weights in several files (Hugging Face's format).
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")

# Other versions of ONNX Runtime that a release is tested in: exact versions, their largest number, and the longest run
# of one version in s.
TARGET_RUNTIME_PATTERN = r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}"
TARGET_RUNTIMES_MAX = 8
TARGET_RUNTIME_MAX_S = 900.0
# The layouts of model servers, in the order in which they are made.
SERVING_LAYOUTS = ("triton", "kserve")

# The size limit of a protocol buffer, and so of a model without external data.
PROTO_MAX_BYTES = 2**31 - 1

DEFAULT_DOMAINS = ("", "ai.onnx")
# The domain of ONNX Runtime's own operators.
RUNTIME_DOMAIN = "com.microsoft"

# The limit of all texts in an ONNX file that are not part of the graph.
METADATA_MAX_BYTES = 10**6

# The limit of the name of an input or output: each record and page of a release repeats it.
NAME_MAX_CHARACTERS = 500

# The limit of the file MLmodel: its reader takes minutes for 10 MB.
MLMODEL_MAX_BYTES = 2 * 10**6

# The limit of all arrays of a user's file in memory.
NPZ_MAX_BYTES = 2 * 2**30

# Limits of the process that runs a pickle.
PICKLE_MAX_S = 6 * 3600.0
PICKLE_FILE_MAX_BYTES = 64 * 2**30
PICKLE_ANSWER_MAX_BYTES = 256 * 2**20
# The user and group id of that process where the worker is root. No common system gives it to an account of its own.
PICKLE_USER = 65533
# The share of the memory of the machine or container, where the deployment sets no other limit.
PICKLE_MEMORY_SHARE = 0.75

FACTORY_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"


# The minimum duration of a block of timed calls, which makes a switch of sides negligible, and its maximum of calls.
MEASURE_BLOCK_S = 0.02
CALLS_PER_ROUND_MAX = 200
# Above this share of time spent waiting for a CPU, a round counts as disturbed. Measured on 2 CPUs: 0.03 on an idle
# host; 0.5 with one other busy process, where PyTorch's threads took 16 times as long.
CPU_WAIT_SHARE_MAX = 0.05
# The relative standard deviation of a speedup between processes, for any duration of the measurement: each process lays
# out weights and buffers differently (ten processes on two CPUs: `speedup_repeatability` of the bench).
PROCESS_SPREAD = 0.03

# The quantiles of the times per call that a report keeps.
LATENCY_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)

# The wait of a measurement for another one on its host, and the interval of its attempts, in s.
MEASURE_LOCK_TIMEOUT_S = 1800.0
MEASURE_LOCK_POLL_S = 0.5


# A rounding step of float16 is 1e-3 of the value, of bfloat16 8e-3, and a network adds the steps up.
DTYPE_LIMITS: dict[str, dict[str, float | None]] = {
    "float16": {"mae_max": 2e-3, "sqnr_min_db": 40.0},
    "bfloat16": {"mae_max": 1.6e-2, "sqnr_min_db": 25.0},
}

# Limits of a model of reduced precision, for outputs of every dtype: the error relative to the columns' spread (20 dB
# are 10 % of it), the cosine, and the share of equal values of integer outputs. Measured on the nano and tiny
# LocalizationNet: int8 is 32 to 34 dB below the spread, at a cosine of 0.99995 or more.
PRECISION_LIMITS: dict[str, dict[str, float | None]] = {
    "int8": {
        "mae_max": None,
        "sqnr_min_db": 20.0,
        "cosine_min": 0.999,
        "agreement_min": 0.99,
        "uncertainty_max": 0.5,
    },
    "float16": {
        "mae_max": None,
        "sqnr_min_db": 40.0,
        "cosine_min": 0.9999,
        "agreement_min": 0.999,
        "uncertainty_max": 0.1,
    },
}

# Tuning: its longest duration, and the part of it for building variants before they are timed.
TUNE_MAX_S = 300.0
TUNE_BUILD_SHARE = 0.6
# The allowed loss of speed and growth of the size against the champion. The spread between processes is 0.03.
CHAMPION_MARGIN = 0.1
# Largest relative loss of a model's metric on the evaluation sample, compared with PyTorch's or the champion's.
METRIC_LOSS_MAX = 0.01
# Opsets with new fused operators: Gelu is one node from 20 on, attention from 23 on.
TUNE_OPSETS = (20, 23)
# Rounds of a comparison with the plain export before a variant may be eliminated, and its longest duration in s.
ELIMINATION_ROUNDS_MIN = 10
ELIMINATION_MAX_S = 30.0
# Least share of the layers' weights in convolutions, for a static quantization of convolutions.
CONVOLUTION_SHARE_MIN = 0.2
# Calibration rows of a static quantization: of the evaluation sample, and of each other sample.
CALIBRATION_ROWS_MAX = 64
CALIBRATION_SAMPLE_ROWS = 8
# The batch size for the evaluation sample.
EVALUATION_BATCH_SIZE = 32

# From this size of a file of weights on, its model is made without memory, if that gives the same model.
META_MODEL_MIN_BYTES = 256 * 2**20
# The part of a memory-mapped file of weights that stays in memory after it was read.
MAPPED_PAGES_KEPT_BYTES = 32 * 2**20

# A reproduction bundle contains the model up to this size.
REPRODUCTION_MODEL_MAX_BYTES = 256 * 2**20


class OutputLimits(Record):
    """Limits on the difference between the reference's and the candidate's output. A limit of None is not applied.

    Every field is a number or None. Its bounds are the keywords of JSON schema in `json_schema_extra`;
    `parity.limits` checks them, and the trigger form shows them.
    """

    mae_max: float | None = Field(
        default=1e-5,
        title="Mean absolute error below",
        description="Per column of an output, times the column's spread where that is above 1. For float32 the usual "
        "difference is about 1e-7. Half precision has its own limit: see limits of single dtypes. Empty: not limited.",
        # No difference is below 0.
        json_schema_extra={"exclusiveMinimum": 0},
    )
    sqnr_min_db: float | None = Field(
        default=60.0,
        title="Least signal to noise ratio (dB)",
        description="The spread of each column over its difference; it finds a large error in small values. For "
        "float32 it is usually above 100. Empty: not limited.",
        json_schema_extra={"minimum": 0},
    )
    agreement_min: float | None = Field(
        default=1.0,
        title="Least agreement of integer outputs",
        description="The share of equal values of an integer or boolean output, such as a class index. It is the only "
        "limit on such an output. Empty: not limited.",
        json_schema_extra={"minimum": 0, "maximum": 1},
    )
    max_abs: float | None = Field(
        default=None,
        title="Largest absolute error",
        description="Empty: not limited.",
        json_schema_extra={"minimum": 0},
    )
    rtol: float | None = Field(
        default=None,
        title="Relative tolerance",
        description="Each value: error at most absolute tolerance + relative tolerance * PyTorch's value. Both empty: "
        "not limited.",
        json_schema_extra={"minimum": 0},
    )
    atol: float | None = Field(
        default=None,
        title="Absolute tolerance",
        description="See the relative tolerance. Empty, where that one is set: 0.",
        json_schema_extra={"minimum": 0},
    )
    cosine_min: float | None = Field(
        default=None,
        title="Least cosine similarity",
        description="Empty: not limited.",
        json_schema_extra={"minimum": -1, "maximum": 1},
    )
    uncertainty_max: float | None = Field(
        default=0.01,
        title="Largest part of the uncertainty",
        description="The largest difference over the model's own uncertainty, for the outputs that have one. "
        "Empty: not limited.",
        json_schema_extra={"exclusiveMinimum": 0},
    )


class ParityLimits(OutputLimits):
    """Limits of a whole comparison.

    `per_output` replaces limits for a named output and `per_dtype` for a dtype (``{"positions": {"max_abs": 1e-4}}``).
    An output's own entry wins over its dtype's. That one wins over `DTYPE_LIMITS`, which wins over the general fields.
    `uncertainty_of` names the output with the standard deviations of another one (``{"positions": "uncertainties"}``).
    """

    per_output: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    per_dtype: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    uncertainty_of: dict[str, str] = Field(default_factory=dict)


class LatencyBudget(Record):
    """Limits on latency at the serving batch size; other batch sizes are only reported.

    Attributes:
        batch_size: The serving batch size.
        speedup_min: The required speedup: PyTorch's median time over ONNX Runtime's.
        speedup_goal: The speedup to aim at; reaching it is only reported.
        p95_max_ms: The limit on ONNX Runtime's 95th percentile in ms.
        on_miss: The effect of a missed limit: ``refuse`` the model, ``warn``, or ``ask``: a warning, after which a
            person must approve the release. A speedup that is not settled counts as missed.
    """

    batch_size: int = SERVING_BATCH_SIZE
    speedup_min: float = 1.0
    speedup_goal: float = 1.5
    p95_max_ms: float | None = None
    on_miss: Literal["refuse", "warn", "ask"] = "refuse"


class MeasurePlan(Record):
    """Duration of the measurement of one batch size. A round times each side once, in a block of calls.

    The measurement stops when the interval of the speedup contains neither limit of the budget, or when more rounds
    would not narrow it: near a limit the spread between processes remains. A batch size without a budget stops at an
    interval of at most `interval_width_max` times its speedup. No measurement stops before `measure_min_s` and
    `rounds_min`, and none starts a round that would end after `measure_max_s`, or `reported_max_s` without a budget.
    The intervals of all looks contain the true speedup with the probability `confidence`. With fewer than 10 rounds the
    speedup is not settled. `threads` of None means every CPU that the process may use.
    """

    threads: int | None = None
    warmup_rounds: int = 5
    rounds_min: int = 12
    measure_min_s: float = 0.5
    measure_max_s: float = 40.0
    reported_max_s: float = 4.0
    confidence: float = 0.95
    interval_width_max: float = 0.25
