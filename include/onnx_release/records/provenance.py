"""Records of the origin of a model: the facts that its training run logged."""

from __future__ import annotations

from pydantic import Field

from onnx_release.records.base import Record


class Dataset(Record):
    """Dataset that a training run logged as an input.

    Attributes:
        name: The name in MLflow.
        digest: MLflow's digest of the data, in the form that the training run computed.
        source: The address of the data; empty if it is unknown.
    """

    name: str
    digest: str
    source: str = ""


class TrainingFacts(Record):
    """Facts of a training run, as MLflow returns them: the training script wrote all of them.

    Attributes:
        params: The hyperparameters, text by name.
        metrics: The last finite value of each metric.
        datasets: The datasets.
        source_commit: The commit of the training script; empty if MLflow has none.
        source_name: The file or project of the training script; likewise.
    """

    params: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    datasets: tuple[Dataset, ...] = ()
    source_commit: str = ""
    source_name: str = ""
