"""Packages of the tasks on this host, and their versions against the bounds of the installed distribution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from shlex import quote

from airflow.sdk import conf
from packaging.requirements import InvalidRequirement, Requirement

from airflow_onnx.deployment import settings
from airflow_onnx.preflight.checks import failure, warning
from airflow_onnx.task_outcome import missing_packages

DISTRIBUTION = "airflow-onnx-release"
# The extra with the packages of the tasks.
EXTRA = "worker"
# Every package that a task of a release imports.
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "mlflow", "boto3")
# Executors whose tasks run on the host of the scheduler.
_LOCAL = ("LocalExecutor", "SequentialExecutor")


@dataclass(frozen=True, slots=True)
class Package:
    """A required package. `found` is its version, empty if it is missing."""

    requirement: Requirement
    found: str

    @property
    def is_in_bounds(self) -> bool:
        """True if its version is one of the tested ones."""
        return bool(self.found) and self.requirement.specifier.contains(self.found, prereleases=True)


def require_packages(names: Iterable[str]) -> None:
    """Raise `DeploymentRefused` for packages that are not installed. Nothing is imported."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise missing_packages(missing)


def check_packages() -> str:
    """Return the versions of the packages.

    :raises Noticed: with the missing ones and those out of bounds, and the line that installs them. On a host that may
        run no task, missing packages are a warning.
    """
    found = list(_packages())
    missing = [one for one in found if not one.found]
    outside = [one for one in found if one.found and not one.is_in_bounds]
    if missing:
        text, action = f"missing: {_names(missing)}", f"Run: {_pip_line(missing)}."
        if settings.placement() or not tasks_run_here():
            raise warning(f"{text}. This host may run no task", f"Run this check on a worker. There: {action}")
        raise failure(text, action)
    if outside:
        listed = ", ".join(
            f"{one.requirement.name} {one.found} (tested: {one.requirement.specifier})" for one in outside
        )
        raise warning(f"not tested: {listed}", f"Run: {_pip_line(outside)}.")
    return ", ".join(f"{one.requirement.name} {one.found}" for one in found if one.requirement.name in PACKAGES)


def tasks_run_here() -> bool:
    """Return True if the executor runs the tasks on the host of the scheduler."""
    return any(name in str(conf.get("core", "executor")) for name in _LOCAL)


def _packages() -> Iterator[Package]:
    for requirement in requirements():
        yield Package(requirement, _version(requirement.name))


def _version(name: str) -> str:
    """Return the version of a distribution, or of another one with the same package, or an empty text."""
    from onnx_release.runners.distribution import DISTRIBUTIONS
    from onnx_release.serving.runtime_environment import installed_version

    if name in DISTRIBUTIONS:
        return installed_version() or ""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def requirements() -> list[Requirement]:
    """Return the requirements of the distribution with its extra, or only names if it has none.

    The folders of this package may also be on the path of Python, without an installation.
    """
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        lines = []
    found: dict[str, Requirement] = {}
    for line in lines:
        try:
            one = Requirement(line)
        except InvalidRequirement:
            continue
        # An extra may name another extra of the same distribution.
        if one.name != DISTRIBUTION and _applies(one):
            found[one.name] = one
    return list(found.values()) or [Requirement(name) for name in PACKAGES]


def _applies(requirement: Requirement) -> bool:
    extras = {"", EXTRA, *_part_extras()}
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def _part_extras() -> set[str]:
    """Return the extras that the extra of the workers consists of."""
    lines = (Requirement(line) for line in requires(DISTRIBUTION) or [])
    of_worker = (one for one in lines if one.name == DISTRIBUTION and one.marker)
    return {extra for one in of_worker if one.marker and one.marker.evaluate({"extra": EXTRA}) for extra in one.extras}


def _pip_line(packages: list[Package]) -> str:
    if EXTRA in (_extras() or []):
        return f'pip install "{DISTRIBUTION}[{EXTRA}]"'
    return f"pip install {' '.join(quote(str(_bare(one.requirement))) for one in packages)}"


def _bare(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _extras() -> list[str] | None:
    try:
        return metadata(DISTRIBUTION).get_all("Provides-Extra")
    except PackageNotFoundError:
        return None


def _names(packages: list[Package]) -> str:
    return ", ".join(one.requirement.name for one in packages)
