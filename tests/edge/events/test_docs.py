"""Examples of docs/events.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_onnx.events.figures import Figures
from airflow_onnx.events.release_end import ReleaseEnd

PAGE = (Path(__file__).parents[3] / "docs" / "events.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_each_example_makes_a_dag(block: str) -> None:
    found: dict[str, Any] = {}
    exec(compile(block, "docs/events.md", "exec"), found)
    assert isinstance(found["dag"], DAG)


def test_the_page_names_every_field() -> None:
    words = set(re.findall(r"\w+", PAGE))
    assert {*Figures.model_fields, *ReleaseEnd.model_fields} - words == set()
