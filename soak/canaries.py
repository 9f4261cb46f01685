"""Search for planted secrets where no secret may be: files, objects, texts of servers, environments of processes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

_BLOCK_BYTES = 2**22
_MIN_CHARACTERS = 8


class Canaries:
    """Secrets by their name, and the search for them in every form in which a program may write them.

    :param secrets: the texts by a name for the answer. A short one would be found by accident, so it is refused.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        short = [name for name, text in secrets.items() if len(text) < _MIN_CHARACTERS]
        if short:
            raise ValueError(f"these secrets are shorter than {_MIN_CHARACTERS} characters: {', '.join(short)}")
        self._forms = {name: sorted(_forms(text)) for name, text in secrets.items()}
        every = {form for forms in self._forms.values() for form in forms}
        self._pattern = re.compile(b"|".join(re.escape(form) for form in sorted(every, key=len, reverse=True)))
        self._overlap = max(map(len, every)) - 1

    def in_text(self, place: str, content: str | bytes) -> Iterator[str]:
        """Yield ``place: name`` for each secret in a text."""
        data = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
        found = {match[0] for match in self._pattern.finditer(data)}
        for name, forms in self._forms.items():
            if found.intersection(forms):
                yield f"{place}: {name}"

    def in_folders(self, *folders: Path) -> Iterator[str]:
        """Yield the secrets in all files below folders. A link is not followed."""
        for folder in folders:
            for path in folder.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    with suppress(OSError):
                        yield from self.in_text(f"name of {path}", str(path.relative_to(folder)))
                        yield from dict.fromkeys(self._in_file(path))

    def in_objects(self, client: Any, bucket: str, prefix: str = "") -> Iterator[str]:
        """Yield the secrets in keys, metadata and bytes of all objects of a bucket.

        :param client: a client of boto3 that may read it.
        :param prefix: the beginning of the keys to read.
        """
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                answer = client.get_object(Bucket=bucket, Key=entry["Key"])
                place = f"object {bucket}/{entry['Key']}"
                yield from self.in_text(f"{place}, its metadata", json.dumps([entry["Key"], answer["Metadata"]]))
                yield from dict.fromkeys(self.in_blocks(place, answer["Body"].iter_chunks(_BLOCK_BYTES)))

    def in_environments(self, pids: Iterable[int]) -> Iterator[str]:
        """Yield the secrets in environments and command lines of processes. One that has ended is skipped."""
        for pid in pids:
            for part in ("environ", "cmdline"):
                with suppress(OSError):
                    yield from self.in_text(f"{part} of process {pid}", Path(f"/proc/{pid}/{part}").read_bytes())

    def in_mlflow(self, client: Any) -> Iterator[str]:
        """Yield the secrets in runs, experiments, models and versions of MLflow, without their files.

        :param client: a client of MLflow that may read all.
        """
        experiments = list(client.search_experiments())
        for one in experiments:
            yield from self.in_text(f"experiment {one.name}", repr(dict(one)))
        for one in experiments:
            for run in client.search_runs([one.experiment_id], max_results=5000):
                yield from self.in_text(f"run {run.info.run_id}", repr(run.to_dictionary()))
        for model in client.search_registered_models():
            yield from self.in_text(f"model {model.name}", repr(dict(model)))
        for version in client.search_model_versions():
            yield from self.in_text(f"version {version.name} {version.version}", repr(dict(version)))

    def _in_file(self, path: Path) -> Iterator[str]:
        with path.open("rb") as file:
            yield from self.in_blocks(str(path), iter(lambda: file.read(_BLOCK_BYTES), b""))

    def in_blocks(self, place: str, blocks: Iterable[bytes]) -> Iterator[str]:
        """Yield the secrets in a text that comes in parts."""
        # A secret may lie on the border of two blocks.
        tail = b""
        for block in blocks:
            yield from self.in_text(place, tail + block)
            tail = (tail + block)[-self._overlap :]


def _forms(secret: str) -> set[bytes]:
    plain = secret.encode()
    # Encoded inside of a longer text, its letters depend on the position. The ends depend on the neighbours.
    encoded = {base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 : -4] for shift in range(3)}
    forms = {plain, quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode(), plain.hex().encode()}
    return forms | {form for form in encoded if len(form) >= _MIN_CHARACTERS}
