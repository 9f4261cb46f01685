"""Make the connection type `mlflow` known to Airflow without installing the project.

Airflow finds provider packages through the metadata of installed distributions. The stack takes the plugin from its
folder, and installing the wheel besides would load the plugin twice; so it writes metadata that names the provider
only, in a folder that is on the services' PYTHONPATH.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from stack.layout import REPO

GROUP = "apache_airflow_provider"


def write_metadata(folder: Path) -> None:
    """Write the distribution's metadata, from pyproject.toml, into `folder`."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    target = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    target.mkdir(parents=True, exist_ok=True)
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {value}" for key, value in project["entry-points"][GROUP].items()]
    (target / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
