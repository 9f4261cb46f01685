"""What every part of the bench is given: how much to measure, and the models that it measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.models import Models

ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How often each side runs, whether the long measurements run whole, and a folder that ends with the part."""

    models: Models
    folder: Path
    rounds: int = ROUNDS
    full: bool = False
