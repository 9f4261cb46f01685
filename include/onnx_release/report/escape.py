"""Foreign text in pages and in Markdown: names, reasons and messages that must stay text."""

from __future__ import annotations

import re
import unicodedata


def visible(text: str) -> str:
    """Return a text without invisible characters: they can turn the text around it. Line breaks stay."""
    return "".join(one for one in text if one == "\n" or unicodedata.category(one) not in ("Cc", "Cf"))


def escaped(text: str) -> str:
    """Return any text as Markdown that shows it on one line, without links, emphasis or HTML."""
    one_line = visible(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # `_` between letters starts no emphasis; names of outputs stay readable.
    one_line = re.sub(r"[\\`*~|#]|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(", lambda found: f"\\{found[0]}", one_line)
    # MLflow makes a link of each bare address.
    return re.sub(r"(?i)(://|www\.)", lambda found: "".join(f"&#{ord(one)};" for one in found[0]), one_line)


def code_text(text: str) -> str:
    """Return any text for a code span, which has no escapes."""
    return visible(" ".join(text.split())).replace("`", "'").replace("|", "¦")
