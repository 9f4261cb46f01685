"""Inputs of a release besides the trained model: factory, input specification, evaluation sample, test inputs.

Each is a parameter of the release, or a tag that the training script sets on its run. A parameter overrides the tag.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow_onnx import params
from airflow_onnx.deployment import settings
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.storage import s3
from airflow_onnx.tracking import training_run
from onnx_release.errors import SampleRefused
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags
from onnx_release.training_runs.names import validate_run_id

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook
    from onnx_release.records import TensorSpec, TrainedModel
    from onnx_release.trained.model_factory import FactoryOptions

# The tests use one batch. A larger file is a dataset.
INPUTS_MAX_BYTES = 2 * 2**30
# Larger files are read by the step that uses them.
HEADER_MAX_BYTES = 2**28
_FORMS = (
    r"runs:/[^/]+/.+\.npz",
    r"models:/[^/:@]+/[0-9]+/.+\.npz",
    r"models:/[^/:@]+@[^/:@]+/.+\.npz",
    r"mlflow-artifacts:/[^/].*\.npz",
)
_SAVE = "Save it with numpy.savez(path, **{name of the input: array, …}), and give that file."


class ReleaseInputs:
    """The parameters of one release, completed with the tags of its training run.

    :param parameters: ``factory``, ``factory_kwargs``, ``weights_key`` and ``input_spec``, each a value or its JSON.
    """

    def __init__(self, hook: MlflowHook, trained_model: TrainedModel, parameters: dict[str, Any]) -> None:
        self._run_id = trained_model.training_run_id
        with hook.mlflow_errors(f"The training run {self._run_id}"):
            run = hook.client.get_run(self._run_id)
        self._run_params = dict(run.data.params)
        self._run_tags = dict(run.data.tags)
        self._parameters = parameters

    def _value(self, parameter: str, tag: str) -> Any:
        return params.value(self._parameters.get(parameter)) or params.value(self._run_tags.get(tag))

    def factory(self) -> FactoryOptions | None:
        """Return the factory that creates the model, with the key of its weights, or None if there is neither.

        :raises TrackingRefused: if its arguments are not a JSON object.
        """
        from onnx_release.trained.model_factory import FactoryOptions

        path = str(self._value("factory", tags.FACTORY) or "").strip()
        weights_key = str(self._value("weights_key", tags.WEIGHTS_KEY) or "").strip()
        if not path and not weights_key:
            return None
        kwargs = self._value("factory_kwargs", tags.FACTORY_KWARGS) or {}
        if not isinstance(kwargs, dict):
            raise TrackingRefused(
                "The parameter factory_kwargs",
                f"is {kwargs!r:.120}",
                'Give a JSON object: {"width": 96}.',
                code="factory_kwargs",
            )
        allowed = settings.factory_packages()
        return FactoryOptions(
            path=path, allowed=allowed, kwargs=kwargs, run_params=self._run_params, weights_key=weights_key
        )

    def input_spec(self) -> Any:
        """Return the description of the inputs for `input_spec.parse_input_spec`, or None."""
        return self._value("input_spec", tags.INPUT_SPEC) or None

    def input_names(self, hook: MlflowHook, model_uri: str) -> list[str] | None:
        """Return the names of the model's inputs before it is loaded; None if they are not known yet."""
        from onnx_release.trained.input_spec import parse_input_spec

        if spec := self.input_spec():
            return [one.name for one in parse_input_spec(spec)]
        return training_run.signature_names(hook, model_uri)

    def uncertainty_of(self) -> dict[str, str]:
        """Return the outputs whose uncertainty is another output, by name, from the run's tag.

        :raises TrackingRefused: if the tag is not ``output:uncertainty``, or several of them separated by commas.
        """
        tag = self._run_tags.get(tags.UNCERTAINTY_OF, "").strip()
        pairs = [tuple(name.strip() for name in pair.split(":")) for pair in tag.split(",")] if tag else []
        if any(len(pair) != 2 or not all(pair) for pair in pairs) or len({pair[0] for pair in pairs}) != len(pairs):
            raise TrackingRefused(
                f"The tag {tags.UNCERTAINTY_OF} of run {self._run_id}",
                f"is {tag!r:.200}, which is not a list of output:uncertainty",
                "Correct the tag, for example to positions:uncertainties, or give the parameter uncertainty_of.",
                code="uncertainty_tag",
            )
        return dict(pairs)

    def evaluation_uri(self, parameter: str) -> str | None:
        """Return the URI of the evaluation sample, or None if there is none.

        :param parameter: the URI that the release was given, or an empty string.
        :raises TrackingRefused: if the tag is not the path of an ``.npz`` file below the run's artifacts.
        """
        tag = self._run_tags.get(tags.EVALUATION, "").strip()
        if parameter.strip() or not tag:
            return parameter.strip() or None
        path = PurePosixPath(tag)
        if path.is_absolute() or ".." in path.parts or path.suffix != ".npz":
            raise TrackingRefused(
                f"The tag {tags.EVALUATION} of run {self._run_id}",
                f"is {tag!r:.200}, which is not the path of an .npz file among the run's artifacts",
                "Correct the tag, or give the parameter evaluation_uri.",
                code="evaluation_tag",
            )
        return f"runs:/{self._run_id}/{path}"


def require_inputs(
    hook: MlflowHook, s3_conn_id: str, uri: str, parameter: str, buckets: Collection[str] = ()
) -> tuple[TensorSpec, ...]:
    """Raise if a user's ``.npz`` file has a URI of another form, does not exist, is too large or is not readable.

    A file of up to `HEADER_MAX_BYTES` is downloaded, and its arrays are returned without their values.

    :param buckets: the buckets that a file may be in, besides those of the option `inputs_buckets`.
    :raises Refused: as `fetch_inputs`, which downloads the file.
    """
    uri = uri.strip()
    if not uri:
        return ()
    if uri.startswith("s3://"):
        _require_bucket(uri, parameter, {*buckets, *settings.inputs_buckets()})
        size = _require_object(s3_conn_id, uri, parameter)
    else:
        size = _require_artifact(hook, uri, parameter)
    if size > HEADER_MAX_BYTES:
        return ()
    from onnx_release.samples.npz_header import read_header

    with scratch_folder() as scratch:
        path = Path(fetch_inputs(hook, s3_conn_id, uri, scratch / "inputs", parameter) or "")
        return read_header(path, f"The parameter {parameter} = {uri!r:.200}", _SAVE)


def require_names(arrays: Sequence[TensorSpec], names: Sequence[str], parameter: str, uri: str) -> None:
    """Refuse a file whose arrays are not those of the model's inputs. Targets of an evaluation sample do not count."""
    from onnx_release.parity.task_metrics import TARGET

    given = {spec.name for spec in arrays if parameter != "evaluation_uri" or not spec.name.startswith(TARGET)}
    problems = [f"lacks the input {name!r:.80}" for name in names if name not in given]
    problems += [f"has {name!r:.80}, which the model does not take" for name in sorted(given.difference(names))]
    if problems:
        more = f", and {len(problems) - 5} more problems" if len(problems) > 5 else ""
        raise SampleRefused(
            f"The parameter {parameter} = {uri!r:.200}",
            "; ".join(problems[:5]) + more,
            f"Save one array for each input: {', '.join(names):.300}.",
            code="example_mismatch",
        )


def _require_bucket(uri: str, parameter: str, buckets: Collection[str]) -> None:
    """Refuse a file in another bucket. The connection of a release may read more than its users."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if bucket not in buckets:
        raise TrackingRefused(
            f"The parameter {parameter} = {uri!r:.200}",
            f"is in a bucket that the deployment does not allow ({', '.join(sorted(buckets))})",
            "Put the file into the bucket of the release, or log it to the training run. The deployment allows others "
            "by [onnx_release] inputs_buckets.",
            code="inputs_bucket",
        )


def _require_object(s3_conn_id: str, uri: str, parameter: str) -> int:
    if not uri.endswith(".npz"):
        raise _wrong_form(parameter, uri)
    parent, _, name = uri.rpartition("/")
    return s3.require_object(s3.folder_at(s3_conn_id, parent, rerun=None), name, INPUTS_MAX_BYTES)


def _require_artifact(hook: MlflowHook, uri: str, parameter: str) -> int:
    """Return the size of a file that MLflow serves, 0 if MLflow has no request for it."""
    require_form(uri, parameter)
    with hook.mlflow_errors(f"The parameter {parameter} = {uri!r:.200}", f"Correct {parameter}."):
        hook.require_served(uri)
    found = re.fullmatch(r"runs:/([^/]+)/(.+)", uri)
    if found is None:
        return 0
    path = PurePosixPath(found[2])
    folder = "" if path.parent == PurePosixPath(".") else str(path.parent)
    with MlflowRest(hook.server) as rest:
        sizes = {
            entry["path"]: int(entry.get("file_size") or 0)
            for entry in rest.run_files(validate_run_id(found[1]), folder)
        }
    if str(path) not in sizes:
        raise TrackingRefused(
            f"The parameter {parameter} = {uri!r:.200}",
            "names a file that the run does not have",
            f"Log the file to the run, or correct {parameter}.",
            code="not_found",
        )
    return sizes[str(path)]


def require_form(uri: str, parameter: str) -> None:
    """Refuse a URI that is not a file of a run, a registered version or MLflow's artifact store."""
    if not any(re.fullmatch(form, uri) for form in _FORMS) or ".." in PurePosixPath(uri).parts:
        raise _wrong_form(parameter, uri)


def _wrong_form(parameter: str, uri: str) -> TrackingRefused:
    return TrackingRefused(
        f"The parameter {parameter} = {uri!r:.200}",
        "has no known form",
        "Give s3://BUCKET/KEY.npz, runs:/RUN_ID/PATH.npz or models:/NAME/VERSION/PATH.npz.",
        code="inputs_uri_form",
    )


def fetch_inputs(
    hook: MlflowHook, s3_conn_id: str, uri: str | None, folder: Path, parameter: str = "inputs_uri"
) -> str | None:
    """Download a user's ``.npz`` file and return its path; None without a URI.

    :param uri: ``s3://…``, ``runs:/…``, ``models:/…`` or ``mlflow-artifacts:/…``.
    :param parameter: the name of the release's parameter, for messages.
    :raises TrackingRefused: for a URI of another form.
    :raises StorageRefused: if the object does not exist or is too large.
    """
    uri = (uri or "").strip()
    if not uri:
        return None
    if not uri.startswith("s3://"):
        require_form(uri, parameter)
        return str(hook.download(uri, folder))
    if not uri.endswith(".npz"):
        raise _wrong_form(parameter, uri)
    parent, _, name = uri.rpartition("/")
    folder.mkdir(parents=True)
    return str(s3.fetch_one(s3.folder_at(s3_conn_id, parent, rerun=None), name, folder, INPUTS_MAX_BYTES))
