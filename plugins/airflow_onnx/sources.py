"""What a release is told of its model beside the model itself: what makes it, what it takes, what to test it with.

Each may be a parameter of the release, or a tag that the training script set on its run, so that a run that nobody
watches says itself what it needs. A parameter wins over the tag.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import objects, rendered, settings
from onnx_release.errors import Refused

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook
    from onnx_release.factory import FactoryOptions
    from onnx_release.records import TrainedModel

TAGS = ("factory", "factory_kwargs", "input_spec")
# Tests hold one batch; a larger file is a dataset.
INPUTS_MAX_BYTES = 2 * 2**30


class Source:
    """The parameters of one release, with the training run's own words where they are empty.

    :param given: ``factory``, ``factory_kwargs`` and ``input_spec`` as the operator's templates rendered them.
    """

    def __init__(self, hook: MlflowHook, training: TrainedModel, given: dict[str, Any]) -> None:
        with hook.explained(f"run {training.training_run_id}"):
            run = hook.client.get_run(training.training_run_id)
        self._params = dict(run.data.params)
        tags = run.data.tags
        self._given = {n: rendered.value(given.get(n)) or rendered.value(tags.get(f"onnx_release.{n}")) for n in TAGS}

    def factory(self) -> FactoryOptions | None:
        """Return what makes the model, or None where nobody said; raises `Refused` for arguments that are no object."""
        from onnx_release.factory import FactoryOptions

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


def fetch_inputs(hook: MlflowHook, s3_conn_id: str, uri: str, folder: Path) -> str:
    """Fetch a user's ``.npz`` file from ``s3://…`` or MLflow into `folder` and return its path, empty without a URI.

    :raises Refused: for a URI of another kind, or a file that is not there or too large.
    """
    uri = uri.strip()
    if not uri:
        return ""
    if uri.startswith(("runs:/", "models:/", "mlflow-artifacts:/")):
        return str(hook.download(uri, folder))
    if not uri.startswith("s3://") or not uri.endswith(".npz"):
        raise Refused(f"inputs_uri {uri!r:.200}", "is of no known form", "Give s3://bucket/key.npz or runs:/ID/x.npz.")
    parent, _, name = uri.rpartition("/")
    where = objects.folder_at(s3_conn_id, parent)
    folder.mkdir(parents=True)
    return str(objects.fetch_one(where, name, folder, INPUTS_MAX_BYTES))
