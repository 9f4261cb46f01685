"""Provider metadata for Airflow: the connection type with its form, the links, the command and the options."""

from __future__ import annotations

from typing import Any

from airflow_onnx.deployment.options import OPTIONS, SECTION, Option


def _field(label: str, description: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **more}}


def _option(option: Option) -> dict[str, Any]:
    # Airflow formats each default as text. A JSON value has braces, so its option has no default here.
    return {
        "description": option.help,
        "default": option.default,
        "example": option.example,
        "type": option.kind,
        "version_added": "0.2.0",
    }


def get_provider_info() -> dict[str, Any]:
    """Return the metadata in the form of Airflow's provider schema."""
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
            SECTION: {
                "description": "Options of the ONNX release. Only the deployment sets them.",
                "options": {name: _option(option) for name, option in OPTIONS.items()},
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
