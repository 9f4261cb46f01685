"""What Airflow's provider manager reads: the connection type with its form, the links, the settings."""

from __future__ import annotations

from typing import Any


def _field(label: str, description: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **more}}


def _option(description: str, default: str | None, example: str | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "default": default,
        "example": example,
        "type": "string",
        "version_added": "0.1.0",
    }


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description in the form of Airflow's provider schema."""
    options = {**_trust_options(), **_staging_options(), **_placement_options(), **_watch_options()}
    return {
        "package-name": "airflow-onnx-release",
        "name": "ONNX release",
        "description": "Turns a finished PyTorch training run into a tested, stored and registered ONNX model.",
        "connection-types": [_mlflow_connection()],
        "cli": ["airflow_onnx.cli.commands.get_commands"],
        "extra-links": [
            "airflow_onnx.links.TrainingRunLink",
            "airflow_onnx.links.ModelVersionLink",
            "airflow_onnx.links.ObjectLink",
        ],
        "config": {
            "onnx_release": {
                "description": "Settings of the ONNX release that only the deployment decides.",
                "options": options,
            }
        },
    }


def _mlflow_connection() -> dict[str, Any]:
    return {
        "connection-type": "mlflow",
        "hook-class-name": "airflow_onnx.hooks.mlflow.MlflowHook",
        "hook-name": "MLflow",
        "ui-field-behaviour": {
            "hidden-fields": ["schema"],
            "relabeling": {"host": "Server", "login": "User"},
            "placeholders": {"host": "https://mlflow.example.org", "port": "leave empty when Server names it"},
        },
        "conn-fields": {
            "token": _field("Token", "Bearer token; used instead of user and password.", "string", format="password"),
            "ui_url": _field("UI address", "Where people open MLflow, if not at Server.", "string"),
            "insecure_tls": _field("Skip TLS verification", "Only for a test server.", "boolean"),
            "ca_file": _field("CA file", "Path on the workers of the server's CA certificate.", "string"),
        },
    }


def _trust_options() -> dict[str, Any]:
    return {
        "allow_pickle": _option("Load pickled models. A pickle runs its author's code.", "False"),
        "factory_packages": _option(
            "Packages with functions that may make a model for a run that left weights alone.",
            "",
            "our_models, radio.nets",
        ),
    }


def _staging_options() -> dict[str, Any]:
    return {
        "staging_uri": _option(
            "Folder that a release's tasks hand the artifact through.", None, "s3://onnx-staging/releases"
        ),
        "staging_conn_id": _option("Connection of type aws for a staging folder in S3.", "minio_default"),
        "cache_folder": _option(
            "Folder on a worker's own disk for what its tasks have fetched.",
            None,
            "/var/cache/onnx_release",
        ),
        "cache_max_bytes": _option("How much that folder holds; 0 keeps nothing.", str(10 * 1024**3)),
    }


def _placement_options() -> dict[str, Any]:
    return {
        "placement": _option(
            "Where tasks run, by kind of task: queues, pools, executors, hints for Kubernetes; JSON.",
            "",
            '{"export": {"queue": "gpu"}, "measure": {"queue": "measuring"}}',
        ),
        "measure_lock": _option(
            "File that a task locks while it measures, the same for all workers of a host.",
            None,
            "/run/onnx_release/measure.lock",
        ),
        "measure_lock_timeout_s": _option("Seconds to wait for another's measuring on the host.", "1800"),
    }


def _watch_options() -> dict[str, Any]:
    return {
        "watch_experiments": _option(
            "Names or ids of the MLflow experiments whose runs are released as they end; * for all.",
            "",
            "radio-localisation, 17",
        ),
        "watch_filter": _option(
            "More conditions for these runs, in MLflow's filter language.", "", "tags.release = 'yes'"
        ),
        "watch_cron": _option(
            "When watch_training looks without being called, and so the interval of a backfill.",
            "*/10 * * * *",
        ),
        "watch_release_params": _option(
            "Parameters of release_onnx, a JSON object, for every release that watch_training starts.",
            "",
            '{"bucket": "models", "alias": "nightly"}',
        ),
        "watch_poll_s": _option("Seconds between two looks for training runs that have ended.", "2.0"),
    }
