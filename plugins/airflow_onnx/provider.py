"""Provider metadata for Airflow: the connection type with its form, the links, the command and the options."""

from __future__ import annotations

from typing import Any, Literal

OptionType = Literal["string", "boolean", "integer", "float"]


def _field(label: str, description: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **more}}


def _option(
    description: str, default: str | None, example: str | None = None, kind: OptionType = "string"
) -> dict[str, Any]:
    # Airflow formats each default as text, so a number is given as text, too.
    return {
        "description": description,
        "default": default,
        "example": example,
        "type": kind,
        "version_added": "0.1.0",
    }


def get_provider_info() -> dict[str, Any]:
    """Return the metadata in the form of Airflow's provider schema."""
    options = {**_trust_options(), **_staging_options(), **_placement_options(), **_watch_options(), **_page_options()}
    return {
        "package-name": "airflow-onnx-release",
        "name": "ONNX release",
        "description": "Turns a finished PyTorch training run into a tested, stored and registered ONNX model.",
        "connection-types": [_mlflow_connection(), _store_connection()],
        "cli": ["airflow_onnx.cli.commands.get_commands"],
        "extra-links": [
            "airflow_onnx.links.TrainingRunLink",
            "airflow_onnx.links.ReportLink",
            "airflow_onnx.links.RerunLink",
            "airflow_onnx.links.ModelVersionLink",
            "airflow_onnx.links.ObjectLink",
        ],
        "config": {
            "onnx_release": {
                "description": "Options of the ONNX release. Only the deployment sets them.",
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
            "placeholders": {"host": "https://mlflow.example.org", "port": "443; the Test button of the list needs it"},
        },
        "conn-fields": {
            "token": _field("Token", "Bearer token. It replaces user and password.", "string", format="password"),
            "ui_url": _field("UI address", "Address of MLflow in a browser. Empty: the Server.", "string"),
            "insecure_tls": _field("Skip TLS verification", "For test servers only.", "boolean"),
            "ca_file": _field("CA file", "Path of the server's CA certificate on the workers.", "string"),
        },
    }


def _store_connection() -> dict[str, Any]:
    return {
        "connection-type": "s3store",
        "hook-class-name": "airflow_onnx.hooks.s3_store.S3StoreHook",
        "hook-name": "S3 store",
        "ui-field-behaviour": {
            "hidden-fields": ["schema"],
            "relabeling": {"host": "Server", "login": "Access key", "password": "Secret key"},
            "placeholders": {"host": "https://minio.example.org", "port": "443; the Test button of the list needs it"},
        },
        "conn-fields": {
            "region_name": _field("Region", "Empty: us-east-1.", "string"),
            "console_url": _field("Console address", "The store's console, for links. Empty: no console.", "string"),
        },
    }


def _trust_options() -> dict[str, Any]:
    return {
        "allow_pickle": _option(
            "Load pickled models of all experiments. A pickle can run any code on the worker.", "False", kind="boolean"
        ),
        "pickle_experiments": _option(
            "Experiments of MLflow whose pickled models are loaded: ids, names, or patterns of names.",
            "",
            "radio/*, 12",
        ),
        "factory_packages": _option(
            "Packages whose functions may build a model for a training run that logged only weights.",
            "",
            "our_models, radio.nets",
        ),
        "protected_aliases": _option(
            "Aliases that move only after a person approved it in Airflow.", "", "champion, production"
        ),
    }


def _staging_options() -> dict[str, Any]:
    return {
        "bucket": _option("Bucket of the released artifacts. It must exist.", "onnx-models", "models"),
        "staging_uri": _option(
            "Folder through which the tasks of a release pass the artifact.", None, "s3://onnx-staging/releases"
        ),
        "staging_conn_id": _option("Connection of type s3store or aws for a staging folder in S3.", "minio_default"),
        "cache_folder": _option(
            "Folder on the worker's own disk that caches downloads.",
            None,
            "/var/cache/onnx_release",
        ),
        "cache_max_bytes": _option(
            "Size limit of the cache folder in bytes; 0 disables the cache.", str(10 * 1024**3), kind="integer"
        ),
    }


def _placement_options() -> dict[str, Any]:
    return {
        "placement": _option(
            "Queue, pool, executor and Kubernetes resources by kind of task, a JSON object.",
            "",
            '{"export": {"queue": "gpu"}, "measure": {"queue": "measuring"}}',
        ),
        "preload": _option(
            "Import PyTorch, ONNX Runtime and MLflow in the scheduler, from which LocalExecutor forks the tasks.",
            "False",
            kind="boolean",
        ),
        "measure_lock": _option(
            "Absolute path of the file that a task locks while it measures. All workers of a host share it.",
            None,
            "/run/onnx_release/measure.lock",
        ),
        "measure_lock_timeout_s": _option(
            "Seconds that a task waits for another measurement on its host.", "1800", kind="float"
        ),
    }


def _watch_options() -> dict[str, Any]:
    return {
        "watch_experiments": _option(
            "Names or ids of the MLflow experiments whose finished runs are released; * for all.",
            "",
            "radio-localisation, 17",
        ),
        "watch_filter": _option(
            "More conditions for these runs in MLflow's filter language.", "", "tags.release = 'yes'"
        ),
        "watch_cron": _option(
            "Schedule of watch_training between asset events. It is also the interval of a backfill.",
            "*/10 * * * *",
        ),
        "watch_release_params": _option(
            "Parameters of release_onnx for every release that watch_training starts, a JSON object.",
            "",
            '{"bucket": "models", "alias": "nightly"}',
        ),
        "watch_poll_s": _option("Seconds between two polls for finished training runs.", "2.0", kind="float"),
    }


def _page_options() -> dict[str, Any]:
    return {
        "pages": _option("Show the pages of releases in Airflow.", "True", kind="boolean"),
        "pages_mlflow_conn_id": _option(
            "Connection of type mlflow whose releases the pages show.", "mlflow_default", "mlflow_production"
        ),
    }
