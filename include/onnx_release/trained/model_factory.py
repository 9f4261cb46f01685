"""Model factories: functions of an allowed package that make the model of a training run that logged only weights."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field

from onnx_release.errors import TrainedModelRefused
from onnx_release.limits import FACTORY_PATTERN
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records.base import Record
from onnx_release.text import shorten
from onnx_release.trained.checkpoint_file import absent_in


class FactoryOptions(Record):
    """The function or class that makes the model, and its arguments.

    Attributes:
        path: ``package.module:name``; empty for none.
        allowed: The packages that the deployment allows.
        kwargs: Arguments by name.
        run_params: The params of the training run. Those that are parameters of the factory and not in `kwargs` are
            passed on, parsed by `parse_value`.
        weights_key: The key of the weights in the file; empty for those that fit. Nested keys are joined by dots, and
            the beginning of the weights' names may follow (``state_dict.generator``).
    """

    path: str = ""
    allowed: tuple[str, ...] = ()
    kwargs: dict[str, Any] = Field(default_factory=dict)
    run_params: dict[str, str] = Field(default_factory=dict)
    weights_key: str = ""


def make_model(options: FactoryOptions, hyper_parameters: Mapping[str, Any]) -> Any:
    """Import and call the factory.

    Args:
        options: The factory and its arguments.
        hyper_parameters: The hyperparameters in a Lightning checkpoint. Params of the run and `kwargs` override them.

    Returns:
        The factory's result.

    Raises:
        TrainedModelRefused: The path is malformed or not allowed, the import fails, or the call fails.
    """
    factory = _import(options)
    parameters = inspect.signature(factory).parameters
    names = {
        name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != "self"
    }
    arguments = {name: value for name, value in hyper_parameters.items() if name in names}
    arguments |= {name: parse_value(text) for name, text in options.run_params.items() if name in names}
    arguments |= options.kwargs
    if absent := {name: origin for name, value in arguments.items() if (origin := absent_in(value))}:
        raise TrainedModelRefused(
            f"The factory {options.path}",
            "needs hyperparameters of the checkpoint that are not plain values: "
            + ", ".join(f"{name} has {origin}" for name, origin in absent.items()),
            "Set them with the parameter `factory_kwargs`, or log them as params of the training run.",
            code="opaque_argument",
        )
    try:
        return factory(**arguments)
    except Exception as error:  # a factory is the deployment's own code, which raises anything
        raise_machine_failure(error)
        shown = ", ".join(f"{name}={value!r:.60}" for name, value in arguments.items())
        raise TrainedModelRefused(
            f"The factory {options.path}({shown})",
            f"raised {type(error).__name__}: {shorten(error, 400)}",
            "Set its arguments with the parameter `factory_kwargs`, or log them as params of the training run.",
            code="factory_failed",
        ) from error


def _import(options: FactoryOptions) -> Callable[..., Any]:
    subject = f"The factory {options.path!r:.200}"
    if not re.fullmatch(FACTORY_PATTERN, options.path):
        problem = "is not of the form package.module:name"
        raise TrainedModelRefused(subject, problem, "Correct the parameter `factory`.", code="factory_path")
    module_name, _, attributes = options.path.partition(":")
    if not _is_in(module_name, options.allowed):
        allowed = ", ".join(options.allowed) or "none"
        raise TrainedModelRefused(
            subject,
            f"is in no package that this deployment allows ({allowed})",
            "Allow its package in the deployment: [onnx_release] factory_packages = package, other.package.",
            code="factory_not_allowed",
        )
    try:
        found: Any = importlib.import_module(module_name)
        for name in attributes.split("."):
            found = getattr(found, name)
    except Exception as error:  # importing runs the module
        raise_machine_failure(error)
        raise TrainedModelRefused(
            subject,
            f"cannot be imported: {type(error).__name__}: {shorten(error)}",
            "Install the package where Airflow's tasks run.",
            code="factory_import",
        ) from error
    # An allowed module may import functions from elsewhere, such as os.system. Those are not allowed with it.
    home = str(getattr(found, "__module__", ""))
    if not callable(found) or not _is_in(home, options.allowed):
        raise TrainedModelRefused(
            subject,
            f"is defined in {home or 'no module'}, which is not in an allowed package",
            "Use the module that defines the factory.",
            code="factory_not_allowed",
        )
    return found  # type: ignore[no-any-return]


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def parse_value(text: str) -> Any:
    """Return the value of an MLflow param, which is stored as text: JSON, else a Python literal, else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text
