"""Writer of docs/options.md, the table of options: ``python docs/options.py``."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
for source in ("include", "plugins"):
    sys.path.insert(0, str(DOCS.parent / source))

from airflow_onnx.deployment.options import OPTIONS, SECTION, Option  # noqa: E402 - needs the path above

PAGE = DOCS / "options.md"
HEAD = """\
# Options

Which settings has a deployment, and which value counts?

The first of these that is set:

1. the parameter of the DAG run: a field of the form, or a key of `conf`
2. the argument of the factory in the DAG file, such as `release_dag("release_churn", bucket="models")`
3. the environment variable, such as `AIRFLOW__ONNX_RELEASE__BUCKET`
4. the option in the section `[onnx_release]` of `airflow.cfg`
5. the default of the package

Airflow itself reads an environment variable before `airflow.cfg`. An option without an argument belongs to the
deployment: no DAG and no person who triggers a release can change it. [parameters.md](parameters.md) has the parameters
without an option. An empty value means "not set".

`make generated` writes this page from the code.

| option | argument | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown: a row for each option, and the environment variables below the table."""
    cells = (
        (f"`{name}`", option.argument and f"`{option.argument}`", _default(option), _meaning(option))
        for name, option in OPTIONS.items()
    )
    rows = "".join(f"| {' | '.join(row)} |\n" for row in cells)
    return f"{HEAD}{rows}\nEach option `NAME` has the environment variable `AIRFLOW__{SECTION.upper()}__NAME`.\n"


def _default(option: Option) -> str:
    return option.default_words or (f"`{option.default}`" if option.default else "none")


def _meaning(option: Option) -> str:
    return f"{option.help}{f' Example: `{option.example}`' if option.example else ''}"


if __name__ == "__main__":
    PAGE.write_text(page())
