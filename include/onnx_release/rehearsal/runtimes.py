"""Runtimes of a rehearsal: exact versions, a line of requirements, or environments that exist."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from onnx_release.errors import ParameterRefused
from onnx_release.limits import TARGET_RUNTIME_PATTERN, TARGET_RUNTIMES_MAX
from onnx_release.records.rehearsal import Runtime
from onnx_release.serving.runtime_environment import (
    RuntimeEnvironment,
    existing_environment,
    listed_versions,
    prepare_environments,
)

_TEXT_MAX_CHARACTERS = 200
_REQUIREMENT = re.compile(r"onnxruntime\s*[<>=!~]")


def choose_runtimes(
    texts: object, *, environments: Mapping[str, str] | None = None, paths_allowed: bool = False
) -> tuple[Runtime, ...]:
    """Return the runtimes that the texts name, without duplicates and in their order.

    A text is an exact version, a requirement such as ``onnxruntime>=1.20,<1.24``, or the name of an environment. Of a
    requirement the newest release of each minor version is taken, from the list of the worker's package index.

    Args:
        texts: A list of texts.
        environments: The paths of environments that the deployment allows, by name.
        paths_allowed: True to take a text with a slash as the path of an interpreter or environment, if it exists.

    Raises:
        ParameterRefused: `runtimes`, for another text, for no runtime, or for too many.
        Transient: The package index does not answer.
    """
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts:
        raise _refused(f"is {texts!r:.80}, which is not a list of runtimes")
    if len(texts) > TARGET_RUNTIMES_MAX:
        raise _refused(f"has {len(texts)} entries")
    found: list[Runtime] = []
    for text in texts:
        if not isinstance(text, str) or len(text) > _TEXT_MAX_CHARACTERS:
            raise _refused(f"has {text!r:.80}")
        if re.fullmatch(TARGET_RUNTIME_PATTERN, text):
            found.append(Runtime(name=text, version=text))
        elif path := (environments or {}).get(text):
            found.append(Runtime(name=text, python=path))
        elif paths_allowed and os.sep in text and Path(text).exists():
            found.append(Runtime(name=text, python=text))
        elif _REQUIREMENT.match(text):
            found += [Runtime(name=version, version=version) for version in _resolved(text)]
        else:
            raise _refused(f"has {text!r:.80}")
    unique = tuple(dict.fromkeys(found))
    if len(unique) > TARGET_RUNTIMES_MAX:
        raise _refused(f"names {len(unique)} runtimes: {', '.join(one.name for one in unique)}")
    return unique


def open_runtime(runtime: Runtime, folder: Path) -> RuntimeEnvironment:
    """Return the environment of a runtime. That of a version is made in the folder if it is missing.

    Raises:
        Refused: The version cannot be installed, or the environment is damaged.
        Transient: The package index does not answer in time.
    """
    if runtime.python is not None:
        return existing_environment(Path(runtime.python), runtime.name)
    (environment,) = prepare_environments([runtime.version], folder)
    return environment


def _resolved(text: str) -> Iterable[str]:
    """Return the newest listed release of each minor version that fits a requirement, the oldest first."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise _refused(f"has {text!r:.80}, which is not a requirement") from error
    if requirement.url or requirement.marker or requirement.extras:
        raise _refused(f"has {text!r:.80}, which is more than versions")
    newest: dict[tuple[int, int], Version] = {}
    for version in sorted(map(Version, listed_versions())):
        if version in requirement.specifier and re.fullmatch(TARGET_RUNTIME_PATTERN, str(version)):
            newest[version.major, version.minor] = version
    if not newest:
        raise _refused(f"has {text!r:.80}, which no version in the package index of this worker fits")
    return map(str, newest.values())


def _refused(problem: str) -> ParameterRefused:
    return ParameterRefused(
        "The parameter 'runtimes'",
        problem,
        f"Give at most {TARGET_RUNTIMES_MAX} exact versions of ONNX Runtime such as 1.20.1, a requirement such as "
        "onnxruntime>=1.20,<1.24, or environments: by name in a deployment, by an existing path on a command line.",
        code="runtimes",
    )
