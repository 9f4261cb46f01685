"""Comparison of an environment's packages before and after an installation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Changes:
    """Packages that were added, and those of before that have another version or are gone."""

    added: dict[str, str]
    changed: dict[str, str]


def frozen(text: str) -> dict[str, str]:
    """Return the version of each package in the output of ``pip freeze --all``; of a direct reference, its address."""
    found = {}
    for line in text.splitlines():
        name, separator, version = line.partition(" @ ") if " @ " in line else line.partition("==")
        if separator:
            found[name.strip().lower().replace("_", "-")] = version.strip()
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
