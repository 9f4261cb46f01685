"""All entries of the zoo."""

from __future__ import annotations

from tests.zoo import (
    models_audio,
    models_checkpoints,
    models_control,
    models_interfaces,
    models_sequence,
    models_tabular,
    models_text,
    models_values,
    models_vision,
)
from tests.zoo.entry import Entry

ZOO: tuple[Entry, ...] = (
    *models_vision.ENTRIES,
    *models_audio.ENTRIES,
    *models_sequence.ENTRIES,
    *models_text.ENTRIES,
    *models_tabular.ENTRIES,
    *models_control.ENTRIES,
    *models_interfaces.ENTRIES,
    *models_values.ENTRIES,
    *models_checkpoints.ENTRIES,
)
