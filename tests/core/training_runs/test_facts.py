"""Facts of a training run: bounded, readable and without secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnx_release.records.provenance import Dataset, TrainingFacts
from onnx_release.training_runs.facts import ENTRIES_MAX, TEXT_MAX, training_facts


def rows(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def run(params: Any = (), metrics: Any = (), tags: Any = (), datasets: Any = ()) -> dict[str, Any]:
    data = {"params": rows(dict(params)), "metrics": rows(dict(metrics)), "tags": rows(dict(tags))}
    return {"data": data, "inputs": {"dataset_inputs": [{"dataset": row} for row in datasets]}}


def test_an_empty_run_has_no_facts() -> None:
    assert training_facts({}) == TrainingFacts()
    assert training_facts({"data": None, "inputs": None}) == TrainingFacts()


def test_secrets_own_metrics_and_values_without_a_number_are_left_out() -> None:
    params = {"lr": "0.1", "db_password": "x", "AWS_SECRET_ACCESS_KEY": "x", "hf_token": "x", "apiKey": "x"}
    metrics = {"mae": 0.5, "nan": "NaN", "inf": "Infinity", "onnx_release/parity/y/mae": 1e-8, "zero": None}
    found = training_facts(run(params, metrics))
    assert (found.params, found.metrics) == ({"lr": "0.1"}, {"mae": 0.5, "zero": 0.0})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('{"uri": "s3://data/train"}', "s3://data/train"),
        ('{"url": "https://me:pass@host/a?X-Amz-Signature=abc#x"}', "https://host/a"),
        ('{"path": "/data/train.csv"}', "/data/train.csv"),
        ("no json", ""),
        ("[1]", ""),
        ('{"url": "http://[bad"}', ""),
        (json.dumps({"uri": "s3://d/" + 10**7 * "x"}), ""),
    ],
)
def test_the_address_of_a_dataset_has_no_credentials(source: str, expected: str) -> None:
    (found,) = training_facts(run(datasets=[{"name": "d", "digest": "1", "source": source}])).datasets
    assert found == Dataset(name="d", digest="1", source=expected)


def test_texts_and_their_number_are_bounded() -> None:
    huge = "\x1b[31m\n" + "x" * 10**7
    found = training_facts(
        run(
            {f"p{n:04}": huge for n in range(2)} | {f"q{n:04}": "1" for n in range(1000)},
            tags={"mlflow.source.name": huge},
        )
    )
    assert len(found.params) == ENTRIES_MAX
    texts = [*found.params, *found.params.values(), found.source_name]
    assert max(map(len, texts)) == TEXT_MAX
    assert all(text.isprintable() for text in texts)


@pytest.mark.parametrize(("commit", "expected"), [("a" * 40, "a" * 40), ("main", ""), ("a" * 40 + "\n", "")])
def test_only_a_commit_is_a_commit(commit: str, expected: str) -> None:
    assert training_facts(run(tags={"mlflow.source.git.commit": commit})).source_commit == expected
