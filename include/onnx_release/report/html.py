"""Release report as HTML: one file without scripts and without requests, from the templates of the release page."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup

from onnx_release.limits import LATENCY_QUANTILES, REPORT_PAGE
from onnx_release.records import Measures, ReleaseReport
from onnx_release.report.champion import champion_speed
from onnx_release.report.escape import visible
from onnx_release.report.gates import TITLES, published_speedup, refused_outputs
from onnx_release.report.numbers import limit_text, measured_text, seconds_text, size_text, speedup_text, three_digits
from onnx_release.report.plots import gate_bar, latency_plot, sides
from onnx_release.report.short_view import closest_gates, has_more_reasons, release_state, used_measures, worst_first
from onnx_release.text import shorten

TEMPLATES = Path(__file__).parent / "templates"

_COMPARISONS_SHOWN_MAX = 200
_NAME_CHARACTERS = 90

_SIGNS = {
    "passed": "✓",
    "warning": "▲",
    "refused": "✖",
    "not settled": "▲",
    "not measured": "–",
    "error": "✖",
    "info": "i",
    "taken": "✓",
    "failed": "✖",
    "unfit": "✖",
    "released": "●",
    "released with a warning": "▲",
    "bit-equal": "✓",
    "within limits": "✓",
    "changes": "▲",
    "does not run": "✖",
    "does not load": "✖",
    "not rehearsed": "–",
}
# The names of tasks for people, where they differ.
_STEPS = {"wait_for_training": "wait", "prepare_work": "prepare", "parity_latency": "measure"}
# The classes of the style sheet by word.
_TONES = {
    "passed": "good",
    "taken": "good",
    "chosen": "good",
    "released": "good",
    "warning": "warn",
    "not settled": "warn",
    "released with a warning": "warn",
    "refused": "bad",
    "error": "bad",
    "failed": "bad",
    "unfit": "bad",
    "bit-equal": "good",
    "within limits": "good",
    "changes": "warn",
    "not rehearsed": "warn",
    "does not run": "bad",
    "does not load": "bad",
}


def report_html(report: ReleaseReport) -> str:
    """Return the whole report as one HTML file."""
    return render_page("report.html", report=report)


def render_page(template: str, **values: object) -> str:
    """Return a template as one HTML file with the style sheet inside."""
    css = (TEMPLATES / "release.css").read_text(encoding="utf-8")
    # Only this style sheet applies, and no script runs, even if a name is not escaped.
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    page = environment().get_template(template)
    return page.render(css=Markup(css), css_digest=digest, **values)  # noqa: S704 - a file of this package


def write_page(folder: Path, report: ReleaseReport) -> Path:
    """Write `REPORT_PAGE` into a folder and return its path."""
    path = folder / REPORT_PAGE
    path.write_text(report_html(report), encoding="utf-8", newline="\n")
    return path


@cache
def environment(folder: Path | None = None) -> jinja2.Environment:
    """Return the environment of the templates; all text is escaped.

    Args:
        folder: A folder of further templates, which may import the macros of ``release.html``.
    """
    folders = [TEMPLATES] if folder is None else [folder, TEMPLATES]
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else visible(value),
    )
    made.filters |= {
        "closest": closest_gates,
        "bar": gate_bar,
        "digits": three_digits,
        "duration": seconds_text,
        "limit": lambda gate: limit_text(gate).replace("at most", "≤").replace("at least", "≥"),
        "has_more_reasons": has_more_reasons,
        "link": safe_link,
        "measured": measured_text,
        "name": shown_name,
        "refused_outputs": refused_outputs,
        "percent": lambda share: "-" if share is None else f"{share:.0%}",
        "plot": latency_plot,
        "published": published_speedup,
        "champion_speed": champion_speed,
        "sides": sides,
        "sign": lambda word: _SIGNS.get(word, "·"),
        "size": size_text,
        "step": lambda task: _STEPS.get(task, task),
        "speedup": lambda record: speedup_text(record.speedup, record.speedup_low, record.speedup_high),
        "state": release_state,
        "title": lambda name: TITLES.get(name, name),
        "tone": lambda word: _TONES.get(word, "plain"),
        "used_measures": used_measures,
        "worst_first": worst_first,
    }
    made.globals |= {
        "MEASURES": {name: info.title or name for name, info in Measures.model_fields.items()},
        "COMPARISONS_SHOWN_MAX": _COMPARISONS_SHOWN_MAX,
        "QUANTILES": LATENCY_QUANTILES,
    }
    return made


def shown_name(text: str) -> str:
    """Return a name on one line and cut, without invisible characters."""
    return shorten(visible(text), _NAME_CHARACTERS)


def safe_link(url: str | None) -> str:
    """Return a web address, or nothing for an address of another scheme."""
    try:
        return url if url and urlsplit(url).scheme in ("http", "https") else ""
    except ValueError:
        return ""
