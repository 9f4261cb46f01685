"""Base class of all records: immutable pydantic models that travel as JSON-safe dicts."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from onnx_release.errors import RecordRefused


class Record(BaseModel):
    """Immutable result or set of options. Types are strict and unknown fields are refused."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", ser_json_inf_nan="null", protected_namespaces=()
    )

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts, lists, strings, numbers and None. NaN and infinity become None: JSON has neither."""
        data: dict[str, Any] = json.loads(self.model_dump_json())
        return data

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Build the record from the output of `to_dict`.

        Raises:
            RecordRefused: when a field is unknown, missing or of another type; the message names the field.
        """
        try:
            # JSON mode: JSON has lists where the record has tuples, and strings where it has enums.
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            # An unknown field goes first: it also explains the fields that are missing.
            first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
            field = ".".join(map(str, (cls.__name__, *first["loc"])))
            raise RecordRefused(
                f"The field {field}",
                f"is {first['input']!r:.80}: {first['msg']}",
                "Correct the parameter, or run the step that wrote the record again.",
                code="wrong_field",
            ) from error
        except (TypeError, ValueError) as error:
            raise RecordRefused(
                f"A value for {cls.__name__}",
                f"is not JSON: {error}",
                "Correct the parameter, or run the step that wrote the record again.",
                code="not_json",
            ) from error

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these fields changed; the copy is validated."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)
