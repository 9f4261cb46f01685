"""Refusals of trained models by the names of their files. The watch makes them too, before it starts a release."""

from __future__ import annotations

from onnx_release.errors import TrainedModelRefused

_INPUT_SPEC = '`input_spec`: [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 224, 224]}]'
_FACTORY = "`factory`: the function that makes the model (package.module:name), in a package that the deployment allows"


def pickle_not_allowed(subject: str, detail: str = "", *, may_be_script: bool = False) -> TrainedModelRefused:
    """Return the refusal of a pickle.

    Args:
        subject: The file or the training run.
        detail: More about the pickle, in brackets.
        may_be_script: True if the file was not opened. It may then be TorchScript, which has the same file name.
    """
    kind = "a pickle or TorchScript, and a pickle" if may_be_script else f"a pickle{detail}, which"
    script = " If it is TorchScript, trigger the release yourself: that needs no pickles." if may_be_script else ""
    return TrainedModelRefused(
        subject,
        f"is {kind} runs code of the training run when it is loaded; this deployment does not allow it",
        "Log the model with serialization_format='pt2' (MLflow's default since 3.14) or log its state dict. "
        "To trust its experiment, name it in [onnx_release] pickle_experiments; allow_pickle = True trusts all."
        f"{script}",
        code="pickle",
    )


def no_input_spec(subject: str) -> TrainedModelRefused:
    """Return the refusal of a bare file whose inputs are not described."""
    return TrainedModelRefused(
        subject,
        "has no description of its inputs",
        f"Set {_INPUT_SPEC}. A file of weights without a model also needs {_FACTORY}. Both are parameters of the "
        "release, or tags of the training run.",
        code="no_input_spec",
    )


def no_factory(subject: str, problem: str = "contains weights and no model") -> TrainedModelRefused:
    """Return the refusal of weights without a model."""
    return TrainedModelRefused(
        subject,
        problem,
        f"Set {_FACTORY}. The weights also need {_INPUT_SPEC}. Both are parameters of the release, or tags of the "
        "training run.",
        code="no_factory",
    )
