"""The error class of the deployment commands."""

from __future__ import annotations


class DeployError(Exception):
    """A cause outside this code. The message names it and the next step, for a person at a terminal."""
