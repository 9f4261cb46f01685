"""Checks before the export: a release with a wrong bucket, key, package or file fails before minutes of work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec

from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_onnx import validation
from airflow_onnx.deployment import settings
from airflow_onnx.errors import together
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3
from airflow_onnx.task_outcome import classified, missing_packages
from airflow_onnx.tracking import release_inputs
from onnx_release.errors import ReleaseError, Transient
from onnx_release.records import TrainedModel

log = logging.getLogger(__name__)

# Every package that a task of a release imports.
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "mlflow", "boto3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """The checks before the export of one release.

    :param files: URIs of the user's ``.npz`` files by the parameter of the release; an empty text stands for none.
    """

    hook: MlflowHook
    trained_model: TrainedModel
    bucket: str
    prefix: str = ""
    s3_conn_id: str
    files: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Run every check and raise one error with all problems.

        An outage of a server is only logged: it may be over when the export has ended.

        :raises Refused: with the code of the first problem.
        """
        checks: list[Callable[[], None]] = [self._require_packages, self._require_store]
        checks += [lambda name=name: self._require_file(name) for name in self.files]  # type: ignore[misc]
        problems: list[ReleaseError] = []
        for check in checks:
            try:
                check()
            except Transient as outage:
                log.warning("Not checked before the export: %s", outage)
            except (ReleaseError, AirflowNotFoundException) as error:
                problems.append(classified(error))
        if problems:
            raise together("The checks before the export", problems)

    def _require_packages(self) -> None:
        # With a placement, the tasks that need these packages run on other workers, and check there.
        if not settings.placement():
            require_packages(PACKAGES)

    def _require_store(self) -> None:
        name, run_id = self.trained_model.model_name or "", self.trained_model.training_run_id
        folder = s3.folder_at(self.s3_conn_id, validation.run_folder_uri(self.bucket, self.prefix, name, run_id))
        s3.require_bucket(folder)
        s3.require_write_access(folder)

    def _require_file(self, parameter: str) -> None:
        release_inputs.require_inputs(self.hook, self.s3_conn_id, self.files[parameter], parameter)


def require_packages(names: Iterable[str]) -> None:
    """Raise `DeploymentRefused` for packages that are not installed. Nothing is imported."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise missing_packages(missing)
