"""What a release is told of its model beside the model itself: what makes it, what it takes, what to test it with.

Each may be a parameter of the release, or a tag that the training script set on its run, so that a run that nobody
watches says itself what it needs. A parameter wins over the tag.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow_onnx import params
from airflow_onnx.deployment import settings
from airflow_onnx.storage import s3
from onnx_release.errors import Refused

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook
    from onnx_release.records import TrainedModel
    from onnx_release.trained.model_factory import FactoryOptions

TAGS = ("factory", "factory_kwargs", "input_spec")
# Tests hold one batch; a larger file is a dataset.
INPUTS_MAX_BYTES = 2 * 2**30


class Source:
    """The parameters of one release, with the training run's own words where they are empty.

    :param given: ``factory``, ``factory_kwargs`` and ``input_spec`` as the operator's templates rendered them.
    """

    def __init__(self, hook: MlflowHook, training: TrainedModel, given: dict[str, Any]) -> None:
        with hook.mlflow_errors(f"run {training.training_run_id}"):
            run = hook.client.get_run(training.training_run_id)
        self._params = dict(run.data.params)
        self._run_id = training.training_run_id
        tags = run.data.tags
        self._evaluation = str(tags.get("onnx_release.evaluation", "")).strip()
        self._given = {n: params.value(given.get(n)) or params.value(tags.get(f"onnx_release.{n}")) for n in TAGS}

    def factory(self) -> FactoryOptions | None:
        """Return what makes the model, or None where nobody said; raises `Refused` for arguments that are no object."""
        from onnx_release.trained.model_factory import FactoryOptions

        path = str(self._given["factory"] or "").strip()
        if not path:
            return None
        kwargs = self._given["factory_kwargs"] or {}
        if not isinstance(kwargs, dict):
            raise Refused("factory_kwargs", f"is {kwargs!r:.120}", 'Give a JSON object: {"width": 96}.')
        allowed = settings.factory_packages()
        return FactoryOptions(path=path, allowed=allowed, kwargs=kwargs, run_params=self._params)

    def input_spec(self) -> Any:
        """Return the inputs' description as it was given, for `input_spec.parse_input_spec`."""
        return self._given["input_spec"] or None

    def evaluation_uri(self, given: str) -> str:
        """Return where the evaluation sample is: as given, else among the run's artifacts by its tag, else empty.

        :raises Refused: for a tag that is no path of an ``.npz`` file below the run's artifacts.
        """
        if given.strip() or not self._evaluation:
            return given.strip()
        path = PurePosixPath(self._evaluation)
        if path.is_absolute() or ".." in path.parts or path.suffix != ".npz":
            raise Refused(
                f"tag onnx_release.evaluation of run {self._run_id}",
                f"is {self._evaluation!r:.200}, no path of an .npz file among the run's artifacts",
                "Correct the tag, or give the parameter evaluation_uri.",
            )
        return f"runs:/{self._run_id}/{path}"


def fetch_inputs(hook: MlflowHook, s3_conn_id: str, uri: str, folder: Path, parameter: str = "inputs_uri") -> str:
    """Fetch a user's ``.npz`` file from ``s3://…`` or MLflow into `folder` and return its path, empty without a URI.

    :param parameter: what the URI was given as, for messages.
    :raises Refused: for a URI of another kind, or a file that is not there or too large.
    """
    uri = uri.strip()
    if not uri:
        return ""
    if uri.startswith(("runs:/", "models:/", "mlflow-artifacts:/")):
        return str(hook.download(uri, folder))
    if not uri.startswith("s3://") or not uri.endswith(".npz"):
        action = "Give s3://bucket/key.npz or runs:/ID/x.npz."
        raise Refused(f"{parameter} {uri!r:.200}", "is of no known form", action)
    parent, _, name = uri.rpartition("/")
    where = s3.folder_at(s3_conn_id, parent)
    folder.mkdir(parents=True)
    return str(s3.fetch_one(where, name, folder, INPUTS_MAX_BYTES))
