"""The choice among logged models, without a server."""

from __future__ import annotations

import pytest

from onnx_release.training_runs import logged_models
from onnx_release.training_runs.logged_models import Choice, Kind, LoggedModel, Unusable
from tests.refusals import refused


def model(name: str, step: int = 0, created_ms: int = 0, status: str = "READY") -> LoggedModel:
    return LoggedModel(
        uri=f"models:/m-{name}{step}{created_ms}", name=name, step=step, created_ms=created_ms, status=status
    )


def choose(*models: LoggedModel, name: str | None = None, broken: tuple[str, ...] = ()) -> Choice:
    def check(one: LoggedModel) -> Kind | Unusable:
        return Unusable("it is not a PyTorch model") if one.name in broken else "pt2"

    return logged_models.choose(models, name, check, "The training run r")


@pytest.mark.parametrize(
    ("models", "chosen", "skipped"),
    [
        ([model("m", 1, 9), model("m", 5, 3)], model("m", 5, 3), ["step 1"]),
        ([model("m", 0, 3), model("m", 0, 9), model("m", 0, 5)], model("m", 0, 9), []),
        ([model("late", 7), model("early", 2)], model("late", 7), []),
        ([model("m", 1), model("m", 5, status="FAILED")], model("m", 1), ["FAILED"]),
        ([model("m", 1), model("m", 5, status="PENDING")], model("m", 1), ["PENDING"]),
        ([model("m", 1), model("", 5, status="DELETED")], model("m", 1), ["deleted"]),
        ([model("m", 5), model("scaler", 9), model("scaler", 5)], model("m", 5), ["PyTorch", "PyTorch"]),
        ([model("m", 0, 9, "FAILED"), model("m", 0, 5)], model("m", 0, 5), ["FAILED"]),
        ([model("checkpoint", 10, 5), model("model", 0, 9)], model("checkpoint", 10, 5), ["'model'"]),
    ],
)
def test_the_newest_usable_model_is_chosen_and_the_others_are_reported(
    models: list[LoggedModel], chosen: LoggedModel, skipped: list[str]
) -> None:
    for order in (models, models[::-1]):
        choice = choose(*order, broken=("scaler",))
        assert choice.model == chosen
        assert len(choice.skipped) == len(skipped)
        assert all(part in text for part, text in zip(skipped, choice.skipped, strict=True))


def test_models_of_different_names_at_the_newest_step_are_refused_unless_one_is_named() -> None:
    epochs = [model(f"epoch_{number}", 0, number) for number in range(6)]
    with refused("several_logged_models", "'epoch_5', 'epoch_4'", "'epoch_0'", "logged_model_name"):
        choose(*epochs)
    assert choose(*epochs, name="epoch_3").model == epochs[3]
    assert choose(*epochs[4:], broken=("epoch_5",)).model == epochs[4], "the other one cannot be released"


def test_a_name_that_no_model_has_is_refused_with_the_names() -> None:
    with refused("no_such_logged_model", "'best'", "'a', 'b'"):
        choose(model("a", 2), model("b", 1), name="best")


def test_the_number_of_checked_models_is_limited() -> None:
    checks = 0

    def check(_: LoggedModel) -> Unusable:
        nonlocal checks
        checks += 1
        return Unusable("its files are gone", gone=True)

    choice = logged_models.choose([model("m", step) for step in range(500)], None, check, "r")
    assert (choice.model, choice.gone, checks) == (None, True, logged_models.CHECKED_MAX)
    assert "not checked" in choice.skipped[-1]
