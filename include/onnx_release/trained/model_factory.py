"""A model made by a function of an allowed package, for runs that left weights and no model."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field

from onnx_release.errors import Refused
from onnx_release.limits import FACTORY_PATTERN
from onnx_release.records.base import Record


class FactoryOptions(Record):
    """Which function or class makes the model: ``package.module:name``, from one of the packages `allowed`.

    `kwargs` are its arguments by name; `run_params` are the training run's, texts of which those are taken that the
    factory has an argument for and `kwargs` does not name.
    """

    path: str = ""
    allowed: tuple[str, ...] = ()
    kwargs: dict[str, Any] = Field(default_factory=dict)
    run_params: dict[str, str] = Field(default_factory=dict)


def make_model(options: FactoryOptions, hyper_parameters: Mapping[str, Any]) -> Any:
    """Import the factory and call it; returns what it makes.

    :param hyper_parameters: what a Lightning checkpoint says of its module, taken where nothing else names them.
    :raises Refused: when the path is not allowed, cannot be imported, or the call fails.
    """
    factory = _import(options)
    arguments = _arguments(factory, options, hyper_parameters)
    try:
        return factory(**arguments)
    except Exception as error:  # a factory is the deployment's own code, which raises anything
        shown = ", ".join(f"{name}={value!r:.60}" for name, value in arguments.items())
        raise Refused(
            f"factory {options.path}({shown})",
            f"raised {type(error).__name__}: {' '.join(str(error).split())[:400]}",
            "Give its arguments by the parameter `factory_kwargs`, or log them as params of the training run.",
        ) from error


def _import(options: FactoryOptions) -> Callable[..., Any]:
    subject = f"factory {options.path!r:.200}"
    if not re.fullmatch(FACTORY_PATTERN, options.path):
        raise Refused(subject, "is of no known form", "Give package.module:name.")
    module_name, _, attributes = options.path.partition(":")
    if not any(module_name == name or module_name.startswith(f"{name}.") for name in options.allowed):
        allowed = ", ".join(options.allowed) or "none"
        raise Refused(
            subject,
            f"is in no package that this deployment allows ({allowed})",
            "Let the deployment name its package: [onnx_release] factory_packages = package, other.package.",
        )
    try:
        found: Any = importlib.import_module(module_name)
        for name in attributes.split("."):
            found = getattr(found, name)
    except Exception as error:  # importing runs the module
        raise Refused(
            subject,
            f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "Install the package where Airflow's tasks run.",
        ) from error
    # What an allowed module has imported from elsewhere (os.system, say) was not allowed with it.
    home = str(getattr(found, "__module__", ""))
    if not callable(found) or not any(home == name or home.startswith(f"{name}.") for name in options.allowed):
        raise Refused(
            subject, f"is defined in {home or 'no module'}, not in an allowed package", "Name its own module."
        )
    return found  # type: ignore[no-any-return]


def _arguments(
    factory: Callable[..., Any], options: FactoryOptions, hyper_parameters: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters
    named = {
        name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != "self"
    }
    found = {name: value for name, value in hyper_parameters.items() if name in named}
    found |= {name: parse_value(text) for name, text in options.run_params.items() if name in named}
    return found | options.kwargs


def parse_value(text: str) -> Any:
    """Return what a param of MLflow, which keeps texts alone, was before: JSON or a Python literal, else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text
