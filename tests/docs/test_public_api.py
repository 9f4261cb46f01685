"""Every public name has a docstring with its parameters. The site's pages of the API list the public names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe
import pytest

from docs.site_pages import API

ROOT = Path(__file__).parents[2]
# A class inherits these from Airflow; its users meet them nowhere else.
OF_AIRFLOW = {"self", "cls", "kwargs", "context"}


@cache
def _code() -> griffe.ModulesCollection:
    loader = griffe.GriffeLoader(search_paths=[ROOT / "include", ROOT / "plugins"])
    logging.getLogger("griffe").setLevel(logging.ERROR)
    loader.load("onnx_release")
    loader.load("airflow_onnx")
    loader.resolve_aliases()
    return loader.modules_collection


def _texts(item: griffe.Object) -> Iterator[str]:
    """Yield the docstrings that may describe a parameter: those of the object, its class and the bases of that."""
    yield item.docstring.value if item.docstring else ""
    if isinstance(item, griffe.Class):
        for base in item.mro():
            yield base.docstring.value if base.docstring else ""
    elif isinstance(item.parent, griffe.Class):
        yield from _texts(item.parent)


def _public(item: griffe.Object, members: bool) -> Iterator[griffe.Object]:
    yield item
    if isinstance(item, griffe.Class | griffe.Module):
        for name, member in item.members.items():
            constructor = name == "__init__"
            if not member.is_alias and (constructor or (members and not name.startswith("_"))):
                yield from _public(member, members)  # type: ignore[arg-type]


def _undocumented(item: griffe.Object) -> Iterator[str]:
    if not item.docstring and item.name != "__init__" and not item.is_attribute:
        yield item.path
    if isinstance(item, griffe.Function):
        text = "\n".join(_texts(item))
        for parameter in item.parameters:
            name = parameter.name
            if name not in OF_AIRFLOW and not re.search(
                rf":param {name}:|^\s+(\w+, )*{name}(, \w+)*: |`{name}`", text, re.MULTILINE
            ):
                yield f"{item.path}({name})"


@pytest.mark.parametrize("page", API)
def test_every_public_name_and_parameter_is_documented(page: str) -> None:
    found = [item for name in API[page].names for item in _public(_code()[name], API[page].members)]
    assert found
    assert sorted(name for item in found for name in _undocumented(item)) == []
