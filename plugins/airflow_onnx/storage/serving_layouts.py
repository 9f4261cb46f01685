"""Layouts of model servers in the store, in a folder beside that of the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_onnx.storage import s3
from onnx_release.errors import Transient
from onnx_release.records import FileDigest, OnnxArtifact, ServingLayout
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from onnx_release.serving.layouts import Layout

_SUFFIX = "-serving"


def layouts_folder(artifact: s3.S3Folder) -> s3.S3Folder:
    """Return the folder of all layouts of an artifact: its own folder contains exactly the judged files."""
    return replace(artifact, prefix=f"{artifact.prefix.rstrip('/')}{_SUFFIX}/")


def put_layouts(
    target: s3.S3Folder, artifact: OnnxArtifact, layouts: Sequence[Layout], metadata: dict[str, str]
) -> tuple[ServingLayout, ...]:
    """Put the files of the layouts, verify each object, and remove other objects there.

    The store copies model and weights from the uploaded artifact. Objects with the right bytes are not put again.

    :param target: the folder of the uploaded artifact.
    """
    folder, made = layouts_folder(target), []
    for layout in layouts:
        files = [*_put_texts(folder, layout, metadata), *_copy_model(target, folder, artifact, layout, metadata)]
        made.append(
            ServingLayout(
                layout=layout.layout, name=layout.name, uri=f"{folder.uri}/{layout.place}", files=tuple(files)
            )
        )
    stray = set(s3.sizes(folder)) - {file.path for layout in made for file in layout.files}
    s3.remove(folder, sorted(stray))
    return tuple(made)


def _put_texts(folder: s3.S3Folder, layout: Layout, metadata: dict[str, str]) -> list[FileDigest]:
    from onnx_release.artifact.digests import describe_folder

    with scratch_folder() as scratch:
        for path, text in layout.texts.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_text(text, encoding="utf-8", newline="\n")
        files = list(describe_folder(scratch))
        for file in files:
            if s3.read_digest(folder, file.path) != file:
                s3.put(folder, scratch, file, metadata)
    return files


def _copy_model(
    target: s3.S3Folder, folder: s3.S3Folder, artifact: OnnxArtifact, layout: Layout, metadata: dict[str, str]
) -> list[FileDigest]:
    """Copy the model into a layout and compare the sha256 of each copy."""
    from onnx_release.serving.layouts import model_files

    if not layout.copies:
        return []
    place = replace(folder, prefix=f"{folder.prefix}{layout.copies}/")
    stored, names = s3.listing(target), model_files(artifact)
    copied = []
    for file in artifact.files:
        if file.path not in names:
            continue
        if s3.read_digest(place, file.path) != file:
            if file.path not in stored:
                raise Transient(f"The object {target.uri}/{file.path}", "is missing", "Airflow uploads it again.")
            etag = stored[file.path]["ETag"].strip('"')
            s3.copy(target, place, file, s3.VerifiedObject(etag=etag, etag_from_bytes=False), metadata)
        copied.append(file.replace(path=f"{layout.copies}/{file.path}"))
    return copied
