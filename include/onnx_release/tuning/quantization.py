"""Quantization to int8 and conversion to float16, with ONNX Runtime's tools.

The results have operators of ONNX's own domain, which every runtime supports. Only blockwise quantization needs an
operator of ONNX Runtime's domain.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxruntime import quantization
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnx_release.errors import TuningRefused
from onnx_release.limits import MODEL_FILE
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.scratch import scratch_folder
from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays
from onnx_release.tuning.graph_rewrites import normalize

_PRODUCTS = ["MatMul", "Gemm"]

# Weights along a column with a common scale: the size of ONNX Runtime's fastest kernels, and the careful size.
_BLOCK, _BLOCK_CAREFUL = 128, 32
# The operator's accuracy level: 4 rounds activations to int8 in blocks and multiplies in int8.
_COMPUTE_IN_INT8 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Options:
    """Options of an int8 quantization. Weights are symmetric, with one scale per output channel.

    `exclude` are the names of nodes that stay in float. `whole_bytes` uses 8 bits for weights instead of 7. With 7 bits
    no sum of products overflows on a CPU without dot-product instructions (AVX2); with 8 bits ONNX Runtime uses a
    slower kernel there. So both give the same numbers on every CPU. `convolutions`: convolutions and the operators
    between them are quantized too.
    """

    exclude: tuple[str, ...] = ()
    whole_bytes: bool = False
    convolutions: bool = False


def quantize_dynamic(source: Path, target: Path, options: Int8Options) -> None:
    """Write the model with matrix products in int8. Each call computes the ranges of the activations.

    Args:
        source: the folder of the model.
        target: the folder of the result.
        options: the options of the quantization.

    Raises:
        TuningRefused: `unsupported_by_tool`, if ONNX Runtime's tool rejects the graph.
    """
    with _normalized("int8-dynamic", target) as made:
        quantization.quantize_dynamic(
            _copy(source, made.with_name("source")),
            made,
            op_types_to_quantize=["MatMul"],
            weight_type=quantization.QuantType.QUInt8 if options.whole_bytes else quantization.QuantType.QInt8,
            nodes_to_exclude=_both_names(options.exclude),
            per_channel=True,
            reduce_range=not options.whole_bytes,
        )


def quantize_static(source: Path, target: Path, options: Int8Options, samples: Sequence[Arrays]) -> None:
    """Write the model with QuantizeLinear and DequantizeLinear pairs around the int8 operators.

    Args:
        source: the folder of the model.
        target: the folder of the result.
        options: the options of the quantization.
        samples: calibration inputs, which give the ranges of the activations.

    Raises:
        TuningRefused: `unsupported_by_tool`, if ONNX Runtime's tool rejects the graph.
    """
    with _normalized("int8-static", target) as made:
        quantization.quantize_static(
            _copy(source, made.with_name("source")),
            made,
            _CalibrationReader(samples),
            op_types_to_quantize=None if options.convolutions else _PRODUCTS,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QUInt8 if options.whole_bytes else quantization.QuantType.QInt8,
            nodes_to_exclude=list(options.exclude),
            per_channel=True,
            reduce_range=not options.whole_bytes,
            extra_options={
                "MatMulConstBOnly": True,
                "WeightSymmetric": True,
                # Products return floats. Rounding them would lose accuracy without a gain in speed.
                "OpTypesToExcludeOutputQuantization": [] if options.convolutions else _PRODUCTS,
            },
        )


def quantize_blockwise(source: Path, target: Path, options: Int8Options) -> None:
    """Write the model with matrix products in int8, with one scale per block.

    A block of weights is a short part of a column. Each call scales the activations per such part of a row; the other
    quantizations have one scale per tensor. So an outlier affects fewer values, and the error is about half. Weights
    have 8 bits on every CPU; `whole_bytes` selects shorter blocks.

    Args:
        source: the folder of the model.
        target: the folder of the result.
        options: the options of the quantization.

    Raises:
        TuningRefused: `unsupported_by_tool`, if ONNX Runtime's tool rejects the graph.
    """
    with _normalized("int8-blockwise", target) as made:
        # Older versions of ONNX Runtime have no quantizer of 8 bits: the tuning then skips the variant.
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

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


def convert_to_float16(source: Path, target: Path) -> None:
    """Write the model with float16 inside. Its inputs and outputs keep their dtypes.

    Args:
        source: the folder of the model.
        target: the folder of the result.

    Raises:
        TuningRefused: `unsupported_by_tool`, if ONNX Runtime's tool rejects the graph.
    """
    with _normalized("float16", target) as made:
        model: Any = convert_float_to_float16(str(_copy(source, made.with_name("source"))), keep_io_types=True)
        made.write_bytes(model.SerializeToString())


class _CalibrationReader(quantization.CalibrationDataReader):  # type: ignore[misc]  # an untyped base class
    """Iterator over calibration samples, in the form of ONNX Runtime."""

    def __init__(self, samples: Sequence[Arrays]) -> None:
        self._samples: Iterator[Arrays] = iter(samples)

    def get_next(self) -> Arrays | None:
        """Return the inputs of the next sample, or None after the last one."""
        return next(self._samples, None)


def _copy(source: Path, scratch: Path) -> Path:
    """Copy the model: the tools write next to their input, and reject links to external data."""
    normalize(source / MODEL_FILE, scratch)
    return scratch / MODEL_FILE


def _both_names(nodes: Sequence[str]) -> list[str]:
    """Return the names of nodes before and after the tool splits a Gemm into MatMul and Add."""
    return [name for node in nodes for name in (node, f"{node}_MatMul")]


@contextmanager
def _normalized(name: str, target: Path) -> Iterator[Path]:
    """Yield a path for the tool's result in a temporary folder, then write the result to `target`.

    Args:
        name: the name of the conversion, for the refusal of a graph that the tool rejects.
        target: the folder of the result.
    """
    with _tool_errors(name), scratch_folder() as scratch:
        made = scratch / MODEL_FILE
        yield made
        normalize(made, target)


@contextmanager
def _tool_errors(name: str) -> Iterator[None]:
    """Drop the tools' advice from the log, and refuse the variant when a tool fails."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:
        raise_machine_failure(error)
        raise TuningRefused(
            f"The variant {name}",
            f"cannot be built: {type(error).__name__}: {shorten(error)}",
            "The tuning skips it.",
            code="unsupported_by_tool",
        ) from error
    finally:
        logger.setLevel(before)
