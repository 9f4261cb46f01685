"""Checks before the export: a release with a wrong bucket, right, package or file fails before minutes of work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airflow_onnx import validation
from airflow_onnx.deployment import settings
from airflow_onnx.errors import together
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.preflight.checks import State, Subject
from airflow_onnx.preflight.mlflow_probe import CALL_TIMEOUT_S, require_run_writable
from airflow_onnx.preflight.packages import PACKAGES, require_packages
from airflow_onnx.preflight.store import StoreProbe
from airflow_onnx.preflight.worker import check_staging
from airflow_onnx.tracking import release_inputs
from onnx_release.errors import Refused, ReleaseError, Transient
from onnx_release.records import TrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """The checks before the export of one release.

    :param files: URIs of the user's ``.npz`` files by the parameter of the release; an empty text stands for none.
    :param model_source: the parameters of `ReleaseInputs`.
    :param owner: the DAG run of the release, as `dag_runs.owner` returns it.
    """

    hook: MlflowHook
    trained_model: TrainedModel
    bucket: str
    prefix: str = ""
    s3_conn_id: str
    files: dict[str, str] = field(default_factory=dict)
    model_source: dict[str, Any] = field(default_factory=dict)
    owner: str = ""

    def run(self) -> None:
        """Make every check and raise one error with all problems, those of the deployment first.

        An outage of a server is only logged: it may be over when the export has ended.

        :raises Refused: with the code of the first problem.
        """
        subject = Subject("The release")
        # With a placement, the tasks that need these packages run on other workers, and check there.
        if not settings.placement():
            subject.check("worker.packages", _passed(lambda: require_packages(PACKAGES)))
        subject.check("mlflow.runs", _passed(self._require_run))
        self._check_stores(subject)
        for name, uri in self.files.items():
            subject.check("input", _passed(lambda name=name, uri=uri: self._require_file(name, uri)))  # type: ignore[misc]
        problems: list[ReleaseError] = []
        for error in subject.errors:
            if isinstance(error, Transient):
                log.warning("Not checked before the export: %s", error)
            else:
                problems.append(error)
        noticed = [one for one in subject.checks if one.state is State.WARNING]
        for one in noticed:
            log.warning("%s: %s. %s", one.name, one.found, one.action)
        if problems:
            # The model is not refused while the deployment is at fault.
            problems.sort(key=lambda error: not (isinstance(error, Refused) and error.is_of_deployment))
            raise together("The checks before the export", problems)

    def _require_run(self) -> None:
        with MlflowRest(self.hook.server, CALL_TIMEOUT_S) as rest:
            require_run_writable(rest, self.trained_model.training_run_id)

    def _check_stores(self, subject: Subject) -> None:
        name, run_id = self.trained_model.model_name or "", self.trained_model.training_run_id
        uri = validation.run_folder_uri(self.bucket, self.prefix, name, run_id)
        target = StoreProbe(self.s3_conn_id, uri, self.owner)
        store, staging = Subject("The store"), Subject("The staging folder")
        target.run(store)
        check_staging(staging, [target] if store.passed("store.copy") else [])
        for one in (store, staging):
            subject.checks += one.checks
            subject.errors += one.errors

    def _require_file(self, parameter: str, uri: str) -> None:
        arrays = release_inputs.require_inputs(self.hook, self.s3_conn_id, uri, parameter, {self.bucket})
        if arrays:
            source = release_inputs.ReleaseInputs(self.hook, self.trained_model, self.model_source)
            names = source.input_names(self.hook, self.trained_model.model_uri)
            if names is not None:
                release_inputs.require_names(arrays, names, parameter, uri)


def _passed(require: Callable[[], None]) -> Callable[[], str]:
    """Return a check that passes if the function raises nothing."""

    def run() -> str:
        require()
        return "passed"

    return run
