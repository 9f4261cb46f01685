"""int8 and float16 by ONNX Runtime's own tools.

All but the blockwise form are in operators of ONNX's own domain, so that any runtime takes them; that form is in one of
ONNX Runtime's own, which no other runtime need know.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxruntime import quantization
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnx_release.errors import Refused
from onnx_release.limits import MODEL_FILE
from onnx_release.trained.arrays import Arrays
from onnx_release.tuning.graph_rewrites import rewrite

_PRODUCTS = ["MatMul", "Gemm"]

# Weights along a column that share a scale: the size that ONNX Runtime's kernels are fastest at, and the careful one.
_BLOCK, _BLOCK_CAREFUL = 128, 32
# The operator's own scale of accuracy: 4 lets it round activations to int8, in blocks too, and multiply in int8.
_COMPUTE_IN_INT8 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Options:
    """How to quantise; weights are symmetric and have a scale for each output channel.

    `exclude` names nodes that stay in float. `whole_bytes` takes 8 bits for the weights instead of 7: with 7, no sum
    of products overflows on a CPU without dot-product instructions (AVX2), where 8 bits take another, slower kernel.
    So either gives the same numbers on any CPU. `convolutions` quantises these too, and what lies between them.
    """

    exclude: tuple[str, ...] = ()
    whole_bytes: bool = False
    convolutions: bool = False


def quantise_dynamic(source: Path, target: Path, options: Int8Options) -> None:
    """Write the model of folder `source` into `target`, its matrix products in int8, ranges found at each call.

    :raises Refused: when ONNX Runtime's tool does not take the graph.
    """
    with _refusing("int8-dynamic"), tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        made = Path(scratch, MODEL_FILE)
        quantization.quantize_dynamic(
            _copy(source, Path(scratch, "source")),
            made,
            op_types_to_quantize=["MatMul"],
            weight_type=quantization.QuantType.QUInt8 if options.whole_bytes else quantization.QuantType.QInt8,
            nodes_to_exclude=_both_names(options.exclude),
            per_channel=True,
            reduce_range=not options.whole_bytes,
        )
        rewrite(made, target)


def quantise_static(source: Path, target: Path, options: Int8Options, samples: Sequence[Arrays]) -> None:
    """Write the model of folder `source` into `target` with quantise and dequantise pairs around what is int8.

    :param samples: what the ranges of activations are taken from.
    :raises Refused: when ONNX Runtime's tool does not take the graph.
    """
    with _refusing("int8-static"), tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        made = Path(scratch, MODEL_FILE)
        quantization.quantize_static(
            _copy(source, Path(scratch, "source")),
            made,
            _Reader(samples),
            op_types_to_quantize=None if options.convolutions else _PRODUCTS,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QUInt8 if options.whole_bytes else quantization.QuantType.QInt8,
            nodes_to_exclude=list(options.exclude),
            per_channel=True,
            reduce_range=not options.whole_bytes,
            extra_options={
                "MatMulConstBOnly": True,
                "WeightSymmetric": True,
                # A product hands on floats: rounding them too would cost accuracy and gain nothing.
                "OpTypesToExcludeOutputQuantization": [] if options.convolutions else _PRODUCTS,
            },
        )
        rewrite(made, target)


def quantise_blockwise(source: Path, target: Path, options: Int8Options) -> None:
    """Write the model of folder `source` into `target`, its matrix products in int8 with a scale for each block.

    The weights' blocks are short parts of a column; at each call the activations get a scale for each such part of a
    row, where the other forms have one for a whole tensor. So outliers cost less, and the error is about half. Weights
    have 8 bits on any CPU, and `whole_bytes` asks for shorter blocks.

    :raises Refused: when ONNX Runtime's tool does not take the graph.
    """
    with _refusing("int8-blockwise"), tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        made = Path(scratch, MODEL_FILE)
        tool = MatMulNBitsQuantizer(
            str(source / MODEL_FILE),
            bits=8,
            block_size=_BLOCK_CAREFUL if options.whole_bytes else _BLOCK,
            is_symmetric=True,
            accuracy_level=_COMPUTE_IN_INT8,
            nodes_to_exclude=_both_names(options.exclude),
        )
        tool.model.replace_gemm_with_matmul()
        tool.process()
        tool.model.save_model_to_file(str(made), use_external_data_format=True)
        rewrite(made, target)


def to_float16(source: Path, target: Path) -> None:
    """Write the model of folder `source` into `target` with float16 inside, its inputs and outputs as they were.

    :raises Refused: when ONNX Runtime's tool does not take the graph.
    """
    with _refusing("float16"), tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        made = Path(scratch, MODEL_FILE)
        model: Any = convert_float_to_float16(str(_copy(source, Path(scratch, "source"))), keep_io_types=True)
        made.write_bytes(model.SerializeToString())
        rewrite(made, target)


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # an untyped base class
    """Hands out samples one by one, as the calibration asks for them."""

    def __init__(self, samples: Sequence[Arrays]) -> None:
        self._left: Iterator[Arrays] = iter(samples)

    def get_next(self) -> Arrays | None:
        """Return the next sample's inputs, or None after the last."""
        return next(self._left, None)


def _copy(source: Path, scratch: Path) -> Path:
    """Copy the model: the tools write beside what they read, and external data must be no link."""
    rewrite(source / MODEL_FILE, scratch)
    return scratch / MODEL_FILE


def _both_names(nodes: Sequence[str]) -> list[str]:
    """Return the names that nodes have in the tool's hands: it makes of a Gemm a MatMul and an Add first."""
    return [name for node in nodes for name in (node, f"{node}_MatMul")]


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Keep the tools' advice out of the task's log, and turn what they raise into `Refused`."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # the tools raise anything on a graph that they do not know
        problem = f"cannot be made: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise Refused(f"candidate {name}", problem, "It is left out of the tuning.") from error
    finally:
        logger.setLevel(before)
