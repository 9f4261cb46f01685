"""Every number and pattern that someone may want to change, in one place.

The DAG's Params form takes its defaults from here and hands changed values back as `ParityLimits` and `LatencyBudget`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onnx_release.records.base import Record

# Opset 20 is where Gelu becomes one node; 18 is the oldest that torch's dynamo exporter writes.
OPSET_MIN = 18
OPSET_MAX = 23

# The newest that the TorchScript exporter writes.
TORCHSCRIPT_OPSET = 20

# The example that the exporter traces must have a batch of at least 2: torch.export makes sizes 0 and 1 constants.
EXPORT_BATCH_SIZE = 2
BATCH_SIZES = (1, 8, 32)
SERVING_BATCH_SIZE = 1
# Added to the parity check when no other size differs from the one the exporter saw.
UNSEEN_BATCH_SIZE = 3
BATCH_SIZE_MAX = 4096
SAMPLE_SEEDS = (11, 23)
# The size of a dimension that varies, is not the batch, and of which the run left no example.
VARYING_DIMENSION_SIZE = 16

# External data keeps one name: mlflow's own writer picks a random one, which would change the sha256 at each save.
MODEL_FILE = "model.onnx"
EXTERNAL_DATA_FILE = "model.onnx.data"
REPORT_FILE = "report.json"

# How files of PyTorch models and weights are called.
MODEL_SUFFIXES = (".pt2", ".ckpt", ".pth", ".pt", ".safetensors")

# Protocol buffers stop at 2 GiB; a model with its weights inside the file cannot be larger.
PROTO_MAX_BYTES = 2**31 - 1

DEFAULT_DOMAINS = ("", "ai.onnx")
# Operators that ONNX Runtime has besides ONNX's own.
RUNTIME_DOMAIN = "com.microsoft"

FACTORY_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"


# A block of timed calls lasts at least this long, so that a switch of sides weighs little; at most this many calls.
MEASURE_BLOCK_S = 0.02
CALLS_PER_ROUND_MAX = 200
# Above this part of its time spent waiting for a CPU, a round timed the host's other work too. Measured on 2 CPUs:
# 0.03 when alone; at 0.5, with one other busy process, PyTorch's threads took 16 times as long.
CPU_WAIT_SHARE_MAX = 0.05
# A speedup differs from process to process by this standard deviation, as a part of it, however long each measures:
# every process lays out weights and buffers anew (ten of them on two CPUs: `speedup_repeatability` of the bench).
PROCESS_SPREAD = 0.03

# How long a measurement waits for another on its host, and how often it asks, in s.
MEASURE_LOCK_TIMEOUT_S = 1800.0
MEASURE_LOCK_POLL_S = 0.5


# What half precision can hold: a step of float16 is 1e-3 of its value, of bfloat16 8e-3, and a network adds them up.
DTYPE_LIMITS: dict[str, dict[str, float | None]] = {
    "float16": {"mae_max": 2e-3, "sqnr_min_db": 40.0},
    "bfloat16": {"mae_max": 1.6e-2, "sqnr_min_db": 25.0},
}

# What a model of reduced precision is held to, over all of its outputs, whatever their dtype: the error relative to the
# output's scale (26 dB are 5 % of it), the cosine, and the share of equal values of integer outputs.
PRECISION_LIMITS: dict[str, dict[str, float | None]] = {
    "int8": {"mae_max": None, "sqnr_min_db": 26.0, "cosine_min": 0.999, "agreement_min": 0.99},
    "float16": {"mae_max": None, "sqnr_min_db": 40.0, "cosine_min": 0.9999, "agreement_min": 0.999},
}

# Tuning: how long it may take in all, and which part of that may be spent before the contest begins.
TUNE_MAX_S = 300.0
TUNE_BUILD_SHARE = 0.6
# How much worse than PyTorch's a candidate's metric on the evaluation sample may be, as a part of PyTorch's.
METRIC_LOSS_MAX = 0.01
# Where an export may gain by another opset: Gelu is one node from 20 on, attention from 23 on.
TUNE_OPSETS = (20, 23)
# Rounds of a heat before a candidate may be dropped as slower, and a heat's longest measuring in s.
HEAT_ROUNDS_MIN = 10
HEAT_MAX_S = 30.0
# Static quantisation of convolutions is tried where they hold at least this share of the weights of all layers.
CONVOLUTION_SHARE_MIN = 0.2
# Rows that the ranges of a static quantisation are taken from: of the evaluation sample, and of each other sample.
CALIBRATION_ROWS_MAX = 64
CALIBRATION_SAMPLE_ROWS = 8
# An evaluation sample is run in batches of this size.
EVALUATION_BATCH_SIZE = 32

# How much of a memory-mapped file of weights stays in memory after it was read.
MAPPED_PAGES_KEPT_BYTES = 32 * 2**20

# A reproduction bundle holds the model itself up to this size.
REPRODUCTION_MODEL_MAX_BYTES = 256 * 2**20


class OutputLimits(Record):
    """Limits on the difference between the reference's and the candidate's output. A limit of None is not applied.

    Every field is a number or None. Its bounds are the keywords of JSON schema in `json_schema_extra`;
    `parity.limits` checks them, and the trigger form shows them.
    """

    mae_max: float | None = Field(
        default=1e-5,
        title="Mean absolute error below",
        description="Per output, times the output's scale where that is above 1. For float32 the usual difference is "
        "about 1e-7. Half precision has its own limit: see limits of single dtypes.",
        # No difference is below 0.
        json_schema_extra={"exclusiveMinimum": 0},
    )
    sqnr_min_db: float | None = Field(
        default=60.0,
        title="Least signal to noise ratio (dB)",
        description="The output's scale over the difference; it finds a large error in an output of small values. "
        "For float32 it is usually above 110.",
        json_schema_extra={"minimum": 0},
    )
    agreement_min: float | None = Field(
        default=1.0,
        title="Least agreement of integer outputs",
        description="The share of equal values of an integer or boolean output, such as a class index. It is the only "
        "limit on such an output.",
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


class ParityLimits(OutputLimits):
    """Limits of a whole comparison.

    `per_output` replaces limits for a named output and `per_dtype` for a dtype (``{"positions": {"max_abs": 1e-4}}``).
    An output's own entry wins over its dtype's. That one wins over `DTYPE_LIMITS`, which wins over the general fields.
    """

    per_output: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    per_dtype: dict[str, dict[str, float | None]] = Field(default_factory=dict)


class LatencyBudget(Record):
    """What speed a release must reach, at the batch size it is served with; other batch sizes are only reported.

    `speedup_min` is required and `speedup_goal` wished for (PyTorch's median time over ONNX Runtime's). `p95_max_ms`
    bounds ONNX Runtime's 95th percentile. `on_miss` says what a missed requirement does: ``refuse`` the model, or
    ``warn`` and go on. An interval that straddles `speedup_min` after `measure_max_s` is not settled, and is treated
    as a miss under either policy, in its own words.
    """

    batch_size: int = SERVING_BATCH_SIZE
    speedup_min: float = 1.0
    speedup_goal: float = 1.5
    p95_max_ms: float | None = None
    on_miss: Literal["refuse", "warn"] = "refuse"


class MeasurePlan(Record):
    """How long and how often to measure, per batch size; a round times each side once, in a block of calls.

    Measuring stops when the interval of the speedup is no wider than `interval_width_max` times the speedup and clear
    of the budget's limit, but not before `measure_min_s` and `rounds_min`; and at `measure_max_s` in any case, or at
    `reported_max_s` for a batch size that the budget says nothing about. With fewer than 10 rounds the verdict is not
    settled. `threads` of None means every CPU that the process may use.
    """

    threads: int | None = None
    warmup_rounds: int = 5
    rounds_min: int = 30
    measure_min_s: float = 4.0
    measure_max_s: float = 40.0
    reported_max_s: float = 15.0
    confidence: float = 0.95
    bootstrap_samples: int = 2000
    interval_width_max: float = 0.25
