"""The one way a deployment fails on purpose."""

from __future__ import annotations


class DeployError(Exception):
    """Something outside this code stops it; the message names it and says what to do, for a person at a terminal."""
