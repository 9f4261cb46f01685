"""Fields of the trigger form of a release, and so its parameters over Airflow's API."""

from __future__ import annotations

from airflow.sdk import Param

from airflow_onnx import defaults
from airflow_onnx.deployment import settings
from airflow_onnx.params import field, fields_of
from onnx_release import limits
from onnx_release.training_runs.names import MODEL_NAME, RUN_ID

# The sections of the trigger form, in its order. Airflow forces the name of the first one: the form opens only the
# section "Run Parameters" (a constant of its UI) and collapses all others.
RELEASE = "Run Parameters"
MODEL = "Experts: the model and its export"
PARITY = "Experts: same numbers (parity)"
LATENCY = "Experts: fast enough (latency)"
SERVING = "Experts: where it runs (serving)"
TUNING = "Experts: faster still (tuning)"
PROMOTION = "Experts: who decides (champion, approval)"
DESTINATION = "Experts: where to (alias, store, connections)"


def release_params() -> dict[str, Param]:
    """Return the parameters of a release by name, in the order of the form."""
    return {
        **_release_params(),
        **_model_params(),
        **_parity_params(),
        **_latency_params(),
        **_tuning_params(),
        **_serving_params(),
        **_promotion_params(),
        **_destination_params(),
    }


def _release_params() -> dict[str, Param]:
    """Return the fields that a person sees first."""
    return {
        "training_run_id": field(
            None, "string", RELEASE, "Training run id",
            "The 32 hex digits from the run's page in MLflow. Set this or a model URI.",
            pattern=RUN_ID,
        ),
        "model_uri": field(
            None, "string", RELEASE, "Model URI",
            "A single model: runs:/RUN_ID/PATH, models:/m-ID, models:/NAME/VERSION or models:/NAME@ALIAS.",
            pattern=defaults.MODEL_URI,
        ),
        "model_name": field(
            None, "string", RELEASE, "Registered model",
            "The name in MLflow's registry. A missing one is created. Letters, digits, dots, dashes and underscores. "
            "Empty: from the tag onnx_release.model_name of the run or its experiment, else EXPERIMENT-MODEL.",
            pattern=MODEL_NAME,
        ),
        "alias": field(
            defaults.ALIAS, "string", RELEASE, "Alias",
            "It moves to the new version at the end. Lower-case letters, digits, dashes, underscores; a letter first.",
            pattern=defaults.ALIAS_NAME,
        ),
        "tune": field(
            False, "boolean", RELEASE, "Tune",
            "Try other forms of the model, check each against its own limits, and release the fastest. "
            "Off: release the plain export.",
        ),
    }  # fmt: skip


def _model_params() -> dict[str, Param]:
    return {
        "logged_model_name": field(
            None, "string", MODEL, "Logged model",
            "For a run that logged models of different names at its last step. Empty: from the run's tag.",
            maxLength=500,
        ),
        "opset": field(
            None, "integer", MODEL, "Opset", "The ONNX opset of the export. Empty: the exporter's default.",
            minimum=limits.OPSET_MIN, maximum=limits.OPSET_MAX,
        ),
        "device": field(
            "auto", "string", MODEL, "Device",
            "The device of the export. It decides the execution providers of the tests. auto: CUDA if available.",
            enum=["auto", "cpu", "cuda"],
        ),
        "factory": field(
            None, "string", MODEL, "Model factory",
            "For a run that logged only weights (a state dict, a Lightning checkpoint): the function that builds the "
            "model, as package.module:name. The deployment must allow the package. Empty: from the run's tags.",
            pattern=defaults.FACTORY_PATH,
        ),
        "factory_kwargs": field(
            {}, "object", MODEL, "Factory arguments",
            "Missing arguments come from the run's params of the same name, or the checkpoint's hyperparameters.",
            may_be_empty=True,
        ),
        "weights_key": field(
            None, "string", MODEL, "Key of the weights",
            "For a file with several networks, or with averaged weights (EMA): the key to release, such as "
            "state_dict_ema. Join nested keys by dots. Empty: from the run's tag, else the weights that fit.",
            maxLength=500,
        ),
        "input_spec": field(
            [], "array", MODEL, "Inputs",
            "For a model without a signature, or with a wrong one: "
            '[{"name": "x", "dtype": "float32", "shape": ["batch", 3, 224, 224], "low": 0, "high": 1}]. '
            "Integer inputs may have a vocabulary_size.",
            may_be_empty=True, items={"type": "object"},
        ),
        "allowed_domains": field(
            [], "array", MODEL, "Custom operator domains",
            "Domains besides ONNX's own that the serving runtime supports, one a line. With com.microsoft, the domain "
            "of ONNX Runtime, tuning also tries int8 in blocks. Empty: none.",
            may_be_empty=True, items={"type": "string"},
        ),
    }  # fmt: skip


def _parity_params() -> dict[str, Param]:
    return {
        "batch_sizes": field(
            list(limits.BATCH_SIZES), "array", PARITY, "Batch sizes",
            "The outputs are compared and timed at each size. If the exporter used all of them, another is added.",
            items={"type": "integer", "minimum": 1, "maximum": limits.BATCH_SIZE_MAX}, minItems=1,
        ),
        "inputs_uri": field(
            None, "string", PARITY, "Inputs for comparison",
            "An .npz file with an array per input: s3://BUCKET/KEY.npz or runs:/RUN_ID/PATH.npz. "
            "The timing uses it, too.",
            pattern=defaults.INPUTS_URI,
        ),
        **fields_of(limits.OutputLimits, PARITY),
        "per_output": field(
            {}, "object", PARITY, "Limits of single outputs", 'For example {"positions": {"max_abs": 1e-4}}.',
            may_be_empty=True,
        ),
        "per_dtype": field(
            {}, "object", PARITY, "Limits of single dtypes", 'For example {"float16": {"mae_max": 1e-3}}.',
            may_be_empty=True,
        ),
        "uncertainty_of": field(
            {}, "object", PARITY, "Outputs with uncertainties",
            'The output with the standard deviations of another one: {"positions": "uncertainties"}. '
            "Empty: from the run's tag.",
            may_be_empty=True,
        ),
    }  # fmt: skip


def _latency_params() -> dict[str, Param]:
    budget, plan = limits.LatencyBudget(), limits.MeasurePlan()
    return {
        "serving_batch_size": field(
            budget.batch_size, "integer", LATENCY, "Serving batch size", "The latency limits apply at this size.",
            minimum=1, maximum=limits.BATCH_SIZE_MAX,
        ),
        "speedup_min": field(
            budget.speedup_min, "number", LATENCY, "Required speedup",
            "PyTorch's median time over ONNX Runtime's. 1: equal speed.",
            minimum=0,
        ),
        "speedup_goal": field(
            budget.speedup_goal, "number", LATENCY, "Goal speedup", "The report shows if it is reached.", minimum=0
        ),
        "p95_max_ms": field(
            None, "number", LATENCY, "p95 at most (ms)", "ONNX Runtime at the serving batch size. Empty: not limited.",
            exclusiveMinimum=0,
        ),
        "on_miss": field(
            budget.on_miss, "string", LATENCY, "If a latency limit is missed",
            "Refuse the model; warn: release it and record the warning; ask: a person must approve the release. A "
            "speed that is not settled counts as missed.",
            enum=["refuse", "warn", "ask"],
        ),
        "threads": field(
            None, "integer", LATENCY, "Threads",
            "Threads of PyTorch and of ONNX Runtime. Empty: all processors that the task may use.",
            minimum=1, maximum=1024,
        ),
        "measure_max_s": field(
            plan.measure_max_s, "number", LATENCY, "Measure at most (s)",
            "At the serving batch size. It ends earlier if the verdict is settled. Other sizes: at most 4 s.",
            exclusiveMinimum=0, maximum=3600,
        ),
    }  # fmt: skip


def _tuning_params() -> dict[str, Param]:
    precisions = ["exact", "float16", "int8"]
    return {
        "tune_precisions": field(
            ["exact"], "array", TUNING, "Precisions",
            "Precisions that may be released: exact, float16, int8. A reduced precision has its own alias, such as "
            "candidate-int8. Without exact, a model of full precision is never released.",
            items={"type": "string", "enum": precisions}, examples=precisions, minItems=1, uniqueItems=True,
        ),
        "tune_max_s": field(
            limits.TUNE_MAX_S, "number", TUNING, "Tune at most (s)",
            "For all candidates together. The report lists the skipped ones.",
            exclusiveMinimum=0, maximum=24 * 3600,
        ),
        "precision_limits": field(
            {}, "object", TUNING, "Limits of reduced precisions",
            'They replace the defaults, for example {"int8": {"cosine_min": 0.995, "sqnr_min_db": 15}}.',
            may_be_empty=True,
        ),
        "evaluation_uri": field(
            None, "string", TUNING, "Evaluation sample",
            "An .npz file with an array per input and target.OUTPUT for outputs: s3://BUCKET/KEY.npz or "
            "runs:/RUN_ID/PATH.npz. Empty: from the run's tag.",
            pattern=defaults.INPUTS_URI,
        ),
        "metric_loss_max": field(
            limits.METRIC_LOSS_MAX, "number", TUNING, "Metric loss at most",
            "Largest loss of the metric on that sample, as a fraction of PyTorch's or the champion's: 0.01 is one "
            "percent.",
            minimum=0,
        ),
    }  # fmt: skip


def _serving_params() -> dict[str, Param]:
    return {
        "single_file_max_bytes": field(
            limits.SINGLE_FILE_MAX_BYTES, "integer", SERVING, "One file up to (bytes)",
            "Weights up to this size are stored in model.onnx itself, so that one file is the whole model. Larger "
            "weights are in model.onnx.data beside it. 0: always beside it.",
            minimum=0, maximum=limits.PROTO_MAX_BYTES,
        ),
        "reference_max_bytes": field(
            limits.REFERENCE_MAX_BYTES, "integer", SERVING, "Reference outputs up to (bytes)",
            "Inputs and PyTorch's outputs are stored beside the model up to this size, so that its outputs can be "
            "verified without PyTorch. 0: none.",
            minimum=0, maximum=limits.REFERENCE_MAX_BYTES_LIMIT,
        ),
        "target_runtimes": field(
            [], "array", SERVING, "Other versions of ONNX Runtime",
            "Exact versions, one a line, such as 1.20.1. Each is installed beside this worker's own, loads the model, "
            "and must return PyTorch's outputs. Empty: only the worker's version.",
            may_be_empty=True, items={"type": "string", "pattern": f"^{limits.TARGET_RUNTIME_PATTERN}$"},
            maxItems=limits.TARGET_RUNTIMES_MAX,
        ),
        "serving_layouts": field(
            [], "array", SERVING, "Layouts of model servers",
            "triton: an entry of a model repository. kserve: that, and a manifest of an InferenceService. They are "
            "uploaded beside the artifact. Empty: none.",
            may_be_empty=True, items={"type": "string", "enum": list(limits.SERVING_LAYOUTS)},
            examples=list(limits.SERVING_LAYOUTS), uniqueItems=True,
        ),
    }  # fmt: skip


def _promotion_params() -> dict[str, Param]:
    return {
        "promotion": field(
            "candidate", "string", PROMOTION, "Promotion",
            "candidate: only the alias above moves. auto: the champion's alias moves too if the model is not worse "
            "than the champion. approve: both move after a person approved the version in Airflow.",
            enum=["candidate", "auto", "approve"],
        ),
        "champion_alias": field(
            defaults.CHAMPION_ALIAS, "string", PROMOTION, "Alias of the champion",
            "The alias of the version in production. It moves unless promotion is candidate.",
            pattern=defaults.ALIAS_NAME,
        ),
        "champion_margin": field(
            limits.CHAMPION_MARGIN, "number", PROMOTION, "Margin against the champion",
            "Allowed loss of speed and growth of the file against the champion: 0.1 is ten percent. auto refuses a "
            "model beyond it, approve shows it.",
            minimum=0, exclusiveMaximum=1,
        ),
        "approval_timeout_h": field(
            defaults.APPROVAL_TIMEOUT_H, "number", PROMOTION, "Wait for an approval (hours)",
            "Without an answer in this time the release is refused.",
            exclusiveMinimum=0, maximum=24 * 366,
        ),
    }  # fmt: skip


def _destination_params() -> dict[str, Param]:
    return {
        "bucket": field(
            settings.bucket() or None, "string", DESTINATION, "Bucket",
            "The bucket must exist. A release needs one: set it here, in release_dag(bucket=…), or in the option "
            "[onnx_release] bucket.",
            pattern=defaults.BUCKET_NAME,
        ),
        "prefix": field(
            settings.prefix() or None, "string", DESTINATION, "Folder in the bucket",
            "For a bucket that others use too. Empty: the root of the bucket.",
            may_be_empty=True, pattern=defaults.PREFIX,
        ),
        "contract_change": field(
            "refuse", "string", DESTINATION, "If inputs or outputs change",
            "The alias is at a version with other names, dtypes or fixed dimensions: refuse the model, or allow it.",
            enum=["refuse", "allow"],
        ),
        "alias_back": field(
            False, "boolean", DESTINATION, "Move the alias back",
            "Move it also from the version of a newer training run to this older one. "
            "Off: the older run is released as a version, and the alias stays.",
        ),
        "stage": field(
            "none", "string", DESTINATION, "Legacy stage", "For consumers that still load models:/NAME/STAGE.",
            enum=["none", "Staging", "Production"],
        ),
        "mlflow_conn_id": field(
            "mlflow_default", "string", DESTINATION, "MLflow connection", "Of type mlflow.",
            minLength=1, maxLength=250,
        ),
        "s3_conn_id": field(
            "minio_default", "string", DESTINATION, "Object store connection", "Of type s3store or aws.",
            minLength=1, maxLength=250,
        ),
    }  # fmt: skip
