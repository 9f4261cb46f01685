"""Provider metadata that registers the connection type `mlflow` without an installed wheel.

Airflow finds provider packages through the metadata of installed distributions. The stack loads the plugin from its
folder, and an installed wheel would load it twice. So the stack writes metadata with the provider only, into a folder
on the services' PYTHONPATH.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from stack.layout import REPO

GROUP = "apache_airflow_provider"


def write_metadata(folder: Path) -> None:
    """Write distribution metadata from pyproject.toml into `folder`."""
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())
    project, source = settings["project"], (REPO / settings["tool"]["hatch"]["version"]["path"]).read_text()
    name, version = project["name"], re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)[0]
    target = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    target.mkdir(parents=True, exist_ok=True)
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {value}" for key, value in project["entry-points"][GROUP].items()]
    (target / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
