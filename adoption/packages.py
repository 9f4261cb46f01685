"""Comparison of an environment's packages before and after an installation."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WHEEL = re.compile(r"/[^/]+?-([^/-]+)-[^/]*\.whl")


@dataclass(frozen=True, slots=True)
class Changes:
    """Packages that were added, and those of before that have another version or are gone."""

    added: dict[str, str]
    changed: dict[str, str]


def frozen(text: str) -> dict[str, str]:
    """Return the version of each package in the output of ``pip freeze --all``.

    A package from a wheel file has its address there. The name of the file has the version.
    """
    found = {}
    for line in text.splitlines():
        name, separator, version = line.partition(" @ ") if " @ " in line else line.partition("==")
        if separator:
            wheel = _WHEEL.search(version)
            found[name.strip().lower().replace("_", "-")] = wheel[1] if wheel else version.strip()
    return found


def compare(before: dict[str, str], after: dict[str, str]) -> Changes:
    """Return the differences."""
    added = {name: version for name, version in after.items() if name not in before}
    changed = {
        name: f"{version} -> {after.get(name, 'removed')}"
        for name, version in before.items()
        if after.get(name) != version
    }
    return Changes(added, changed)
