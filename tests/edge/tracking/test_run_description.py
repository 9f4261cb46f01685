"""The description of a training run: a person's text survives, and foreign text is only shown."""

from __future__ import annotations

import pytest

from airflow_onnx.tracking.run_description import Result, described, escaped

RELEASED = Result(headline="Released: fp32, MAE 2e-09, 2.16x [2.03, 2.29] at batch 1.", links={"Report": "http://m/x"})
REFUSED = Result(headline="Refused: y is NaN.", next_step="Train again.")


@pytest.mark.parametrize("person", ["", "My *note*", "a\n\n<!-- another comment -->\n\nb"])
def test_a_persons_text_survives_every_result(person: str) -> None:
    once = described(person, RELEASED, is_current=True)
    assert once.startswith(person)
    assert "**Released: fp32, MAE 2e-09, 2.16x [2.03, 2.29] at batch 1.**\n\n[Report](http://m/x)" in once
    again = described(f"{once}\n\nadded below", REFUSED, is_current=True)
    assert "Released" not in again
    assert again.startswith(person)
    assert again.endswith("added below")
    assert described(again, REFUSED, is_current=True) == again


def test_a_refusal_of_another_attempt_leaves_the_current_result() -> None:
    current = described("note", RELEASED, is_current=True)
    for _ in range(2):
        current = described(current, REFUSED, is_current=False)
    assert (current.count("Released:"), current.count("Refused:"), current.count("note")) == (1, 1, 1)
    assert current.index("Released") < current.index("Latest attempt: **Refused")


def test_a_text_that_leaves_no_room_is_not_shortened() -> None:
    full = "x" * 7990
    assert described(full, RELEASED, is_current=True) == full


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<!-- onnx-release:end --> **bold**",
        "[click](javascript:alert(1))",
        "![x](http://evil.example/pixel)",
        "http://evil.example",
        "www.evil.example",
        "a\n# heading\n- list\n```code```",
        "a_b_ *c* ~~d~~ | &amp; &#60;",
    ],
)
def test_foreign_text_has_no_markup(hostile: str) -> None:
    text = escaped(hostile)
    assert "\n" not in text
    for part in ("<", ">", "](", "://", "www.", " #", "```", " *", "&#60"):
        assert part not in text.replace("\\", "/\\"), part
    note = described("", Result(headline=hostile, next_step=hostile, links={"Report": hostile}), is_current=True)
    assert note.count("<!--") == 2
    assert "[Report]" not in note or hostile == "http://evil.example"


def test_names_of_outputs_stay_readable() -> None:
    assert escaped("max_abs of 'head_0' is 2e-09") == "max_abs of 'head_0' is 2e-09"
