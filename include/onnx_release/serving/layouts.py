"""Layouts of model servers: the files of each, made of the files of an artifact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE
from onnx_release.records import OnnxArtifact
from onnx_release.serving import kserve, triton
from onnx_release.serving.layout_names import KSERVE, TRITON, require_layouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Files of one layout.

    Attributes:
        layout: The model server.
        name: The name of the model in the server.
        place: The path that the server or a person uses: the folder of a model repository, or the manifest.
        texts: The new files by path.
        copies: The folder with copies of the model and its weights; empty for none.
    """

    layout: Literal["triton", "kserve"]
    name: str
    place: str
    texts: dict[str, str] = field(default_factory=dict)
    copies: str = ""


def plan_layouts(
    names: Iterable[object], artifact: OnnxArtifact, model_name: str, uri: str, max_batch_size: int
) -> tuple[Layout, ...]:
    """Return the layouts of an artifact.

    Args:
        names: The names of the layouts.
        artifact: The record of the artifact.
        model_name: The name of the registered model.
        uri: The folder of all layouts.
        max_batch_size: The largest batch of a model with a batch that varies.

    Raises:
        ParameterRefused: As `require_layouts`.
        ServingRefused: A model server lacks the dtype of a tensor.
    """
    made: list[Layout] = []
    for name in require_layouts(names):
        if name == TRITON:
            entry = PurePosixPath(TRITON, model_name)
            config = triton.config_pbtxt(artifact, model_name, max_batch_size)
            made.append(
                Layout(
                    layout="triton",
                    name=model_name,
                    place=TRITON,
                    texts={str(entry / triton.CONFIG_FILE): config},
                    copies=str(entry / triton.VERSION_FOLDER),
                )
            )
        else:
            manifest = kserve.inference_service(artifact, model_name, f"{uri}/{TRITON}")
            path = f"{KSERVE}/{kserve.MANIFEST_FILE}"
            made.append(
                Layout(layout="kserve", name=kserve.service_name(model_name), place=path, texts={path: manifest})
            )
    return tuple(made)


def model_files(artifact: OnnxArtifact) -> list[str]:
    """Return the files of the artifact that a layout copies."""
    return [file.path for file in artifact.files if file.path in (MODEL_FILE, EXTERNAL_DATA_FILE)]
