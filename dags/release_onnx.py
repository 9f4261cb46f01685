"""Releases one finished training run as an ONNX model: wait, export, tune, check, measure, upload, register, promote.

Trigger it with a training run's id or a model URI, from the form in Airflow's UI or over the API. Clearing a task and
triggering again are both safe: one training run and one set of bytes make one model version.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, TriggerRule

from airflow_onnx import defaults
from airflow_onnx.deployment import placement
from airflow_onnx.operators.check import OnnxCheckOperator
from airflow_onnx.operators.export import OnnxExportOperator
from airflow_onnx.operators.parity_latency import OnnxParityLatencyOperator
from airflow_onnx.operators.promote import RELEASED_VERSIONS, MlflowPromoteModelOperator
from airflow_onnx.operators.register import MlflowRegisterOnnxOperator
from airflow_onnx.operators.tune import OnnxTuneOperator
from airflow_onnx.operators.upload import TARGET_KEY, OnnxUploadToS3Operator
from airflow_onnx.operators.work_folder import CleanWorkFolderOperator, PrepareWorkFolderOperator
from airflow_onnx.params import field, fields_of, json_param, task_record, task_text, text_param
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor
from onnx_release import limits

BUDGET, PLAN = limits.LatencyBudget(), limits.MeasurePlan()
# The sections of the trigger form, in its order. Airflow's form opens the one of this name, and only that one.
WHAT, SAME, FAST, FASTER, WHERE = "Run Parameters", "Parity", "Latency", "Tuning", "Destination"


PARAMS = {
    "training_run_id": field(
        None, "string", WHAT, "Training run id", "The run's id in MLflow. Give this **or** a model URI.",
        pattern=defaults.RUN_ID_PATTERN,
    ),
    "model_uri": field(
        None, "string", WHAT, "Model URI",
        "One model instead: runs:/RUN_ID/PATH, models:/m-ID, models:/NAME/VERSION or models:/NAME@ALIAS.",
        pattern=defaults.MODEL_URI_PATTERN,
    ),
    "model_name": field(
        defaults.MODEL_NAME, "string", WHAT, "Registered model",
        "The name in MLflow's registry; made if it is not there. Letters, digits, dots, dashes and underscores.",
        pattern=defaults.MODEL_NAME_PATTERN,
    ),
    "opset": field(
        None, "integer", WHAT, "Opset", "The ONNX opset to write. Empty: the exporter's default.",
        minimum=limits.OPSET_MIN, maximum=limits.OPSET_MAX,
    ),
    "device": field(
        "auto", "string", WHAT, "Device", "Where to export, and so to test: `auto` takes CUDA where there is one.",
        enum=["auto", "cpu", "cuda"],
    ),
    "factory": field(
        None, "string", WHAT, "Model factory",
        "For a run that left weights alone (a state dict, a Lightning checkpoint): what makes the model, as "
        "`package.module:name`, from a package that the deployment allows. Empty: as the run's tags say.",
        pattern=limits.FACTORY_PATTERN,
    ),
    "factory_kwargs": field(
        {}, "object", WHAT, "Factory arguments",
        "Those not given here are the run's params of the same name, or the checkpoint's hyperparameters.",
    ),
    "input_spec": field(
        [], "array", WHAT, "Inputs",
        'Where the model has no signature, or it is wrong: `[{"name": "x", "dtype": "float32", "shape": ["batch", 3, '
        '224, 224], "low": 0, "high": 1}]`; integers may have a `vocabulary_size`.',
        items={"type": "object"},
    ),
    "allowed_domains": field(
        [], "array", WHAT, "Custom operator domains",
        "Domains besides ONNX's own that the serving runtime knows. With com.microsoft, ONNX Runtime's, tuning tries "
        "int8 in blocks. Empty: none.",
        items={"type": "string"},
    ),
    "batch_sizes": field(
        list(limits.BATCH_SIZES), "array", SAME, "Batch sizes",
        "Compared and timed at each of these. If the exporter has seen them all, one that it has not is added.",
        items={"type": "integer", "minimum": 1, "maximum": limits.BATCH_SIZE_MAX}, minItems=1,
    ),
    "inputs_uri": field(
        None, "string", SAME, "Inputs to compare with",
        "An .npz file with an array per input: s3://BUCKET/KEY.npz or runs:/RUN_ID/PATH.npz. It is timed with, too.",
        pattern=defaults.INPUTS_URI_PATTERN,
    ),
    **fields_of(limits.OutputLimits, SAME),
    "per_output": field(
        {}, "object", SAME, "Limits of single outputs", 'For example `{"positions": {"max_abs": 1e-4}}`.'
    ),
    "per_dtype": field(
        {}, "object", SAME, "Limits of single dtypes", 'For example `{"float16": {"mae_max": 1e-3}}`.'
    ),
    "serving_batch_size": field(
        BUDGET.batch_size, "integer", FAST, "Serving batch size", "The speed limits hold at this size.",
        minimum=1, maximum=limits.BATCH_SIZE_MAX,
    ),
    "speedup_min": field(
        BUDGET.speedup_min, "number", FAST, "Required speedup",
        "PyTorch's median time over ONNX Runtime's; 1 is as fast.",
        minimum=0,
    ),
    "speedup_goal": field(
        BUDGET.speedup_goal, "number", FAST, "Goal speedup", "The report states if it is reached.", minimum=0
    ),
    "p95_max_ms": field(
        None, "number", FAST, "p95 at most (ms)", "ONNX Runtime at the serving batch size. Empty: not limited.",
        exclusiveMinimum=0,
    ),
    "on_miss": field(
        BUDGET.on_miss, "string", FAST, "When a speed limit is missed",
        "`refuse` the model, or `warn` and release it with the warning on record.", enum=["refuse", "warn"],
    ),
    "threads": field(
        None, "integer", FAST, "Threads", "Of either side. Empty: all processors that the task may use.",
        minimum=1, maximum=1024,
    ),
    "measure_max_s": field(
        PLAN.measure_max_s, "number", FAST, "Measure at most (s)",
        "At the serving batch size, while the answer is open; at others at most 15 s.",
        exclusiveMinimum=0, maximum=3600,
    ),
    "tune": field(
        False, "boolean", FASTER, "Tune",
        "Try other forms of the model, each gated by limits of its own, and ship the fastest. Off: the plain export.",
    ),
    "tune_precisions": field(
        ["exact"], "array", FASTER, "Precisions",
        "What may be shipped, of exact, float16 and int8. A reduced one gets an alias of its own, such as "
        "candidate-int8. Without exact: a reduced one or nothing.",
        items={"type": "string", "enum": ["exact", "float16", "int8"]}, minItems=1, uniqueItems=True,
    ),
    "tune_max_s": field(
        limits.TUNE_MAX_S, "number", FASTER, "Tune at most (s)",
        "In all; what it leaves out then is in the report.",
        exclusiveMinimum=0, maximum=24 * 3600,
    ),
    "precision_limits": field(
        {}, "object", FASTER, "Limits of reduced precisions",
        'Instead of their defaults, for example `{"int8": {"cosine_min": 0.995, "sqnr_min_db": 20}}`.',
    ),
    "evaluation_uri": field(
        None, "string", FASTER, "Evaluation sample",
        "An .npz file with an array per input and `target.OUTPUT` for outputs: s3://BUCKET/KEY.npz or "
        "runs:/RUN_ID/PATH.npz. Empty: as the run's tag says.",
        pattern=defaults.INPUTS_URI_PATTERN,
    ),
    "metric_loss_max": field(
        limits.METRIC_LOSS_MAX, "number", FASTER, "Metric may lose",
        "How much worse than PyTorch's the metric on that sample may be, as a part of it: 0.01 is one percent.",
        minimum=0,
    ),
    "bucket": field(
        defaults.BUCKET, "string", WHERE, "Bucket", "Must exist. Small letters, digits, dots and dashes.",
        pattern=defaults.BUCKET_PATTERN,
    ),
    "alias": field(
        defaults.ALIAS, "string", WHERE, "Alias",
        "Moved to the new version at the end. Small letters, digits, dashes and underscores; a letter first.",
        pattern=defaults.ALIAS_PATTERN,
    ),
    "stage": field(
        "none", "string", WHERE, "Legacy stage", "For consumers that still load `models:/<name>/<stage>`.",
        enum=["none", "Staging", "Production"],
    ),
    "mlflow_conn_id": field("mlflow_default", "string", WHERE, "MLflow connection", "Of type `mlflow`.", minLength=1),
    "s3_conn_id": field("minio_default", "string", WHERE, "Object store connection", "Of type `aws`.", minLength=1),
}  # fmt: skip

with DAG(
    dag_id="release_onnx",
    dag_display_name="Release a training run as ONNX",
    description=__doc__.splitlines()[0],
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    params=PARAMS,
    tags=["onnx", "mlflow", "release"],
    # A release that waits costs nothing; what runs at once is bounded by the executor's slots and the measuring pool.
    max_active_runs=defaults.RELEASES_ACTIVE_MAX,
    default_args={
        # The later task goes first: a release is finished before the next is begun, and few artifacts are staged.
        "weight_rule": "upstream",
        # What may heal heals within minutes; a refusal is never repeated, whatever stands here.
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=5),
        **placement.arguments("light"),
    },
):
    store: dict[str, Any] = {"s3_conn_id": text_param("s3_conn_id")}
    server: dict[str, Any] = {"mlflow_conn_id": text_param("mlflow_conn_id"), "model_name": text_param("model_name")}

    wait = MlflowTrainingRunSensor(
        task_id="wait_for_training",
        training_run_id=text_param("training_run_id"),
        model_uri=text_param("model_uri"),
        poke_interval=5,
        timeout=timedelta(hours=24).total_seconds(),
        deferrable=True,
        **server,
    )
    step = {**server, "trained_model": task_record("wait_for_training")}
    source = {"factory": text_param("factory"), **{name: json_param(name) for name in ("factory_kwargs", "input_spec")}}
    prepare = PrepareWorkFolderOperator(task_id="prepare_work").as_setup()
    export = OnnxExportOperator(
        task_id="export",
        work_uri=task_text("prepare_work"),
        opset=json_param("opset"),
        device=text_param("device"),
        model_source=source,
        optional_tasks={"tune": json_param("tune")},
        **placement.arguments("export"),
        **step,
    )
    measuring: dict[str, Any] = {
        "batch_sizes": json_param("batch_sizes"),
        "parity": {name: json_param(name) for name in limits.ParityLimits.model_fields},
        "precision_limits": json_param("precision_limits"),
        "budget": {
            "batch_size": json_param("serving_batch_size"),
            **{name: json_param(name) for name in ("speedup_min", "speedup_goal", "p95_max_ms", "on_miss")},
        },
        "plan": {name: json_param(name) for name in ("threads", "measure_max_s")},
        "model_source": source,
        "inputs_uri": text_param("inputs_uri"),
        "s3_conn_id": text_param("s3_conn_id"),
        # A pool of as many slots as there are hosts to measure on: two measurements at once would time each other.
        **placement.arguments("measure"),
    }
    tune = OnnxTuneOperator(
        task_id="tune",
        artifact=task_record("export"),
        work_uri=task_text("prepare_work"),
        enabled=json_param("tune"),
        precisions=json_param("tune_precisions"),
        max_s=json_param("tune_max_s"),
        evaluation_uri=text_param("evaluation_uri"),
        metric_loss_max=json_param("metric_loss_max"),
        allowed_domains=json_param("allowed_domains"),
        opset=json_param("opset"),
        alias=text_param("alias"),
        stage=text_param("stage"),
        **measuring,
        **step,
    )
    candidate = task_record("tune", otherwise="export")
    check = OnnxCheckOperator(
        task_id="check",
        artifact=candidate,
        allowed_domains=json_param("allowed_domains"),
        # Tuning is skipped unless it is asked for.
        trigger_rule=TriggerRule.NONE_FAILED,
        **step,
    )
    parity_latency = OnnxParityLatencyOperator(
        task_id="parity_latency",
        artifact=candidate,
        check=task_record("check"),
        **measuring,
        **step,
    )
    judged: dict[str, Any] = {
        "artifact": candidate,
        "check": task_record("check"),
        "benchmark": task_record("parity_latency"),
    }
    upload = OnnxUploadToS3Operator(task_id="upload", bucket=text_param("bucket"), **judged, **step, **store)
    register = MlflowRegisterOnnxOperator(
        task_id="register",
        artifact=candidate,
        uploaded=task_record("upload"),
        **step,
        **store,
    )
    promote = MlflowPromoteModelOperator(
        task_id="promote",
        uploaded=task_record("upload"),
        version=task_record("register"),
        alias=text_param("alias"),
        outlets=[RELEASED_VERSIONS],
        stage=text_param("stage"),
        **judged,
        **step,
        **store,
    )
    clean = CleanWorkFolderOperator(
        task_id="clean_work",
        work_uri=task_text("prepare_work"),
        target_uri=task_text("upload", TARGET_KEY),
        version=task_record("promote"),
        trigger_rule=TriggerRule.ALL_DONE_SETUP_SUCCESS,
        **step,
        **store,
    ).as_teardown(setups=prepare)

    wait >> prepare >> export >> tune >> check >> parity_latency >> upload >> register >> promote >> clean
