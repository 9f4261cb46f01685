"""Description of a training run in MLflow: the result of its release and the links to the next steps.

The tag ``mlflow.note.content`` is Markdown. The release writes between two markers, and a person's own text stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

TAG = "mlflow.note.content"
# MLflow cuts longer values.
_MAX_CHARACTERS = 8000
_START, _END = "<!-- onnx-release:start -->", "<!-- onnx-release:end -->"
# Between the result of the current release and a later attempt that did not replace it.
_ATTEMPT = "<!-- onnx-release:attempt -->"
_BLOCK = re.compile(rf"\s*{re.escape(_START)}(.*?)(?:{re.escape(_END)}|\Z)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One attempt of a release for its training run's description.

    :param headline: the result in one sentence; any text.
    :param next_step: the advice for a person, empty if nothing is to do; any text.
    :param links: addresses by the text of the link. An empty address is left out.
    """

    headline: str
    next_step: str = ""
    links: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the result as paragraphs of Markdown."""
        links = " · ".join(f"[{escaped(text)}]({url})" for text, url in self.links.items() if _is_address(url))
        parts = [f"**{escaped(self.headline)}**", escaped(self.next_step), links]
        return "\n\n".join(part for part in parts if part)


def described(before: str, result: Result, *, is_current: bool) -> str:
    """Return a description with the result in place of that of an earlier attempt.

    :param before: the description so far, with any text of a person.
    :param is_current: False for an attempt after which the earlier release is still the current one.
    :return: the description, or `before` if the result does not fit beside the person's text.
    """
    found = _BLOCK.search(before)
    old = found[1].partition(_ATTEMPT)[0].strip() if found else ""
    text = result.markdown()
    if not is_current and old:
        text = f"{old}\n\n{_ATTEMPT}\n\nLatest attempt: {text}"
    block = f"{_START}\n\n{text}\n\n{_END}"
    own = [part.strip() for part in ((before[: found.start()], before[found.end() :]) if found else (before,))]
    new = "\n\n".join([part for part in [own[0], block, *own[1:]] if part])
    return new if len(new) <= _MAX_CHARACTERS else before


def escaped(text: str) -> str:
    """Return any text as Markdown that shows it on one line, without links, emphasis or HTML."""
    from onnx_release.report import escape

    return escape.escaped(text)


def _is_address(url: str) -> bool:
    return bool(re.fullmatch(r"https?://[^\s<>()]+", url))
