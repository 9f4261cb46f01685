"""Measures of the difference between two outputs, with the rules that reports apply to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field

from onnx_release.records.base import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """Rules for one measure in reports.

    `worst` reduces the values of several samples to the worst one. `form` is the format of the printed value.
    With `skip_missing` the worst value leaves out samples without a value; otherwise one missing value makes it None.
    """

    worst: Callable[[Iterable[float]], float]
    form: str
    skip_missing: bool = False


class Measures(Record):
    """Measures of one output on one sample. None means that the measure has no value.

    A new measure needs a field here, a limit in `limits.OutputLimits`, and its formula in `parity.measures`.
    """

    mae: Annotated[float | None, Reporting(worst=max, form="{:.2e}")] = Field(
        default=None, title="MAE", description="Mean absolute difference of the finite values."
    )
    max_abs: Annotated[float | None, Reporting(worst=max, form="{:.2e}")] = Field(
        default=None, title="largest absolute", description="Largest absolute difference of the finite values."
    )
    max_rel: Annotated[float | None, Reporting(worst=max, form="{:.2e}")] = Field(
        default=None,
        title="largest relative",
        description="Largest difference over the reference's value, without reference values of 0.",
    )
    cosine: Annotated[float | None, Reporting(worst=min, form="{:.8f}")] = Field(
        default=None, title="cosine", description="Cosine similarity. None when only one side is all zeros."
    )
    # Equal outputs have no such ratio, so the worst value is the least of the others.
    sqnr_db: Annotated[float | None, Reporting(worst=min, form="{:.0f} dB", skip_missing=True)] = Field(
        default=None,
        title="SQNR",
        description="Signal to noise ratio in dB: the root mean square of each column's difference relative to the "
        "column's scale, over all columns. None when nothing differs.",
    )
    uncertainty_ratio: Annotated[float | None, Reporting(worst=max, form="{:.2e}", skip_missing=True)] = Field(
        default=None,
        title="of its uncertainty",
        description="Largest difference over the model's own uncertainty, where another output contains it. "
        "Differences up to rounding are left out.",
    )
    agreement: Annotated[float | None, Reporting(worst=min, form="{:.2%}")] = Field(
        default=None, title="agreement", description="Share of equal values of an integer or boolean output."
    )

    @classmethod
    def rules(cls) -> dict[str, Reporting]:
        """Return each measure's rules for reports, by field name."""
        return {
            name: next(item for item in info.metadata if isinstance(item, Reporting))
            for name, info in cls.model_fields.items()
        }

    @classmethod
    def worst(cls, every: Sequence[Measures], *, skip_missing: bool = False) -> Self:
        """Return the worst value of each measure.

        Args:
            every: the measures of several samples or outputs.
            skip_missing: leave out missing values of every measure, for outputs of different dtypes.
        """
        found: dict[str, float | None] = {}
        for name, rule in cls.rules().items():
            values = [getattr(one, name) for one in every]
            known = [value for value in values if value is not None]
            complete = len(known) == len(values) or skip_missing or rule.skip_missing
            found[name] = rule.worst(known) if known and complete else None
        return cls(**found)

    def texts(self) -> dict[str, str]:
        """Return each measure as text for a person, by field name; a missing one is a dash."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        rules = self.rules()
        return {name: "-" if value is None else rules[name].form.format(value) for name, value in values.items()}
