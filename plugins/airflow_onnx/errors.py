"""Refusals of the edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from onnx_release.errors import Refused, ReleaseError


class TrackingRefused(Refused):
    """A training run, tag or registry entry in MLflow that cannot be used."""

    codes: ClassVar[Mapping[str, str]] = {
        "alias_moved": "The alias is at another version than the given one.",
        "rejected": "A person rejected the version.",
        "not_answered": "Nobody approved or rejected the version in time.",
        "no_approval": "A move needs an approval, and there is none for these bytes.",
        "not_verifiable": "The version has no files that can be compared with a sha256.",
        "contract_change": "The alias is at a version with other inputs or outputs.",
        "contract_unknown": "The inputs and outputs of the version that has the alias cannot be read.",
        "uncertainty_tag": "The tag onnx_release.uncertainty_of is not a list of output:uncertainty.",
        "evaluation_tag": "The tag onnx_release.evaluation is not the path of an .npz file among the run's artifacts.",
        "factory_kwargs": "The arguments of the model factory are not a JSON object.",
        "version_bucket": "The files of a version are in a bucket that the deployment does not allow.",
        "inputs_bucket": "An .npz file is in a bucket that the deployment does not allow.",
        "inputs_uri_form": "The URI of an .npz file has no known form.",
        "mlflow_address": "The Airflow connection to MLflow has no usable server address.",
        "artifacts_not_served": "The artifacts are in a store that MLflow's server does not serve.",
        "mlflow_permission": "MLflow refuses the account of the connection.",
        "mlflow_refused": "MLflow refuses a request, for example a wrong filter.",
        "not_found": "A run, model or file does not exist in MLflow.",
        "file_too_large": "A file of the training run is larger than the page of releases reads.",
        "model_uri_form": "The model URI has no known form.",
        "model_without_run": "The logged model or version belongs to no training run.",
        "no_pytorch_flavor": "The given model was not logged with mlflow.pytorch.",
        "run_deleted": "The training run was deleted.",
        "run_not_finished": "The training run failed or was killed.",
        "run_or_model": "The run id and the model URI are both given, or both empty.",
        "unreadable_model": "The file MLmodel of the given model cannot be read.",
        "released_version": "The given model is an ONNX version of an earlier release.",
        "unknown_stage": "The legacy stage is neither Staging nor Production.",
    }
    deployment_codes: ClassVar[frozenset[str]] = frozenset({"mlflow_address", "mlflow_permission"})


class StorageRefused(Refused):
    """An object, bucket or staging folder that cannot be used."""

    codes: ClassVar[Mapping[str, str]] = {
        "no_bucket": "The bucket does not exist.",
        "bucket_not_allowed": "The deployment does not allow the bucket for releases.",
        "no_object": "The object does not exist.",
        "not_found": "The bucket or the object does not exist.",
        "object_changed": "The object was replaced after it was verified.",
        "objects_changed": "Objects of the release are missing or changed when the alias is moved.",
        "access_denied": "The store refuses the account of the connection.",
        "bucket_name": "The store does not accept the bucket's name.",
        "invalid_request": "The request has no credentials or a wrong parameter.",
        "wrong_address": "The connection to the store has a wrong address or region.",
        "wrong_extra": "The extra of the connection to the store is not a JSON object.",
        "no_store_clock": "A server sends no time, so the age of its objects is unknown.",
        "store_refused": "The store refuses a request for another reason, which the message has.",
        "object_too_large": "An object is larger than the limit for its use.",
        "staging_uri": "The staging folder is not a usable file:// or s3:// URI.",
        "not_staged": "The staged artifact or one of its files is missing.",
        "staging_record": "The record of the staged objects is damaged.",
        "not_a_work_folder": "A folder that is not a DAG run's work folder was to be deleted.",
        "not_an_artifact_folder": "A folder that is not an artifact's below bucket and prefix was to be deleted.",
    }
    deployment_codes: ClassVar[frozenset[str]] = frozenset(
        {"access_denied", "wrong_address", "wrong_extra", "invalid_request", "staging_uri", "not_a_work_folder"}
    )


class WatchRefused(Refused):
    """A search for training runs that cannot be made, or a release that cannot be started."""

    codes: ClassVar[Mapping[str, str]] = {
        "airflow_refused": "Airflow refuses the parameters of a release, or has no DAG of the route.",
        "no_data_interval": "The DAG run of a backfill has no data interval.",
        "no_experiment": "No experiment is given or configured.",
        "no_since": "A range of time has an end and no begin.",
        "no_watch": "The command names no DAG of the watch, or one that does not exist.",
    }


class LeftoversRefused(Refused):
    """A garbage collection that cannot be made safely. Nothing is removed."""

    codes: ClassVar[Mapping[str, str]] = {
        "other_tracking_server": "The objects belong to releases of another MLflow server.",
        "registry_empty": "The registry has no version, and training runs were released.",
        "wrong_grace": "The grace period is not a number of hours in its range.",
        "wrong_dry_run": "The parameter dry_run is neither true nor false.",
    }
    deployment_codes: ClassVar[frozenset[str]] = frozenset(codes)


class VerificationRefused(Refused):
    """A DAG run of the verification with versions that did not pass."""

    codes: ClassVar[Mapping[str, str]] = {
        "versions_failed": "Released versions failed their verification.",
        "versions_not_verified": "A server or the worker prevented the verification of released versions.",
    }
    deployment_codes: ClassVar[frozenset[str]] = frozenset({"versions_not_verified"})


class DeploymentRefused(Refused):
    """A setting, connection or package of the deployment that is missing or cannot be used."""

    codes: ClassVar[Mapping[str, str]] = {
        "wrong_option": "An option of `[onnx_release]` has a value that cannot be used.",
        "unknown_kind": "The option `placement` names a kind of task that does not exist.",
        "wrong_placement": "A field of the option `placement` is unknown or has a wrong value.",
        "no_connection": "An Airflow connection does not exist.",
        "wrong_signing_key": "The connection of `signing_conn_id` has no key, or names a file that cannot be read.",
        "missing_package": "The worker's Python environment lacks a package.",
        "kubernetes_missing": "A KubernetesExecutor is configured, but the Kubernetes client is not installed.",
    }
    deployment_codes: ClassVar[frozenset[str]] = frozenset(codes)


STAGES: tuple[type[Refused], ...] = (
    TrackingRefused,
    StorageRefused,
    WatchRefused,
    LeftoversRefused,
    VerificationRefused,
    DeploymentRefused,
)


def together(subject: str, problems: Sequence[ReleaseError]) -> ReleaseError:
    """Return one refusal with all problems and the code of the first. A single problem is returned as such.

    :param subject: the object of the checks, such as ``The checks before the export``.
    """
    first = problems[0]
    if len(problems) == 1 or not isinstance(first, Refused):
        return first
    listed = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
    return type(first)(f"{subject} found {len(problems)} problems:", listed, "Correct all of them.", code=first.code)
