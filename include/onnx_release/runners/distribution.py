"""Installed distribution of ONNX Runtime. The build for GPUs has another name, and the same package."""

from __future__ import annotations

import contextlib
import importlib.metadata

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def installed_distribution() -> dict[str, str]:
    """Return the version of the installed distribution under its name; empty without one."""
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return {name: importlib.metadata.version(name)}
    return {}
