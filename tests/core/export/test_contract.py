"""Contract of the exported graph: names, dtypes and shapes, and the codes of their differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onnx_release.export.contract import ModelContract, require_contract, require_varying
from onnx_release.records import TensorSpec
from tests.refusals import refused

X = TensorSpec(name="x", dtype="float32", shape=("batch", "length", 4))
Y = TensorSpec(name="y", dtype="float32", shape=("batch", 2))
CONTRACT = ModelContract(inputs=(X,), outputs=(Y,), example={})


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"shape": (2, "length", 4)}, "frozen_batch", "'batch' (dimension 0) frozen at 2"),
        ({"shape": ("batch", 5, 4)}, "frozen_dimension", "'length' (dimension 1) frozen at 5"),
        ({"shape": (2, 5, 3), "dtype": "float64"}, "frozen_batch", "float64 instead of float32"),
        ({"shape": ("batch", "length", 3)}, "contract_mismatch", "size 3 instead of 4 in dimension 2"),
        ({"shape": ("batch", 4)}, "contract_mismatch", "shape ['batch', 4]"),
        ({"dtype": "int64"}, "contract_mismatch", "int64 instead of float32"),
        ({"name": "z"}, "contract_mismatch", "['z'] instead of ['x']"),
    ],
)
def test_a_graph_that_differs_from_the_contract_is_refused(changes: dict[str, Any], code: str, part: str) -> None:
    with refused(code, part):
        require_contract([X.replace(**changes)], [Y], CONTRACT)


def test_a_graph_that_fulfils_the_contract_passes() -> None:
    require_contract([X.replace(shape=("n", "length + 1", 4))], [Y], CONTRACT)


def test_outputs_that_the_training_run_does_not_describe_are_not_compared() -> None:
    require_contract([X], [Y.replace(name="other")], ModelContract(inputs=(X,), outputs=(), example={}))


def test_a_program_with_a_frozen_dimension_or_another_number_of_inputs_is_refused() -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(torch.nn.Identity(), (torch.ones(2, 5, 4),), dynamic_shapes=({0: batch},))
    require_varying(program, [X.replace(shape=("batch", 5, 4))])
    with refused("frozen_dimension", "'length' (dimension 1) frozen at 5"):
        require_varying(program, [X])
    with refused("inputs_differ"):
        require_varying(program, [X, Y])
