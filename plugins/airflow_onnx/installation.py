"""Checks of the installation: Airflow's version, and one complete copy of the code.

The plugin and the factories of DAGs call them before their other imports, and Airflow shows the message as an import
error. The package itself and the provider's metadata do not: an error there would end every process of Airflow, and
its other DAGs would stop. This module imports the standard library only.
"""

from __future__ import annotations

import re
from importlib import metadata, util
from pathlib import Path

DISTRIBUTION = "airflow-onnx-release"
AIRFLOW_MIN = (3, 2)


def check(package: Path) -> None:
    """Raise ImportError if this installation cannot work.

    :param package: the folder `airflow_onnx` that is imported or mounted.
    """
    _check_airflow()
    _check_copies(package.resolve())
    if util.find_spec("onnx_release") is None:
        raise ImportError(
            f"The package 'onnx_release' is missing beside {package}. Mount the folder include/, too, and add it to "
            "PYTHONPATH."
        )


def _check_airflow() -> None:
    try:
        version = metadata.version("apache-airflow-core")
    except metadata.PackageNotFoundError:
        # MLflow imports a part of this package in processes without Airflow.
        return
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < AIRFLOW_MIN:
        raise ImportError(
            f"{DISTRIBUTION} needs Airflow {'.'.join(map(str, AIRFLOW_MIN))} or newer, and {version} is installed. "
            f"Upgrade Airflow, or remove the package (pip uninstall {DISTRIBUTION})."
        )


def _check_copies(package: Path) -> None:
    """Refuse a folder beside an installed wheel.

    An editable installation, and metadata alone, have no second copy.
    """
    for found in metadata.distributions(name=DISTRIBUTION):
        for file in found.files or ():
            copy = Path(str(found.locate_file(file))).resolve().parent
            if file.parts[-2:] == ("airflow_onnx", "plugin.py") and copy != package and copy.exists():
                raise ImportError(
                    f"{DISTRIBUTION} is there twice: as a wheel in {copy.parent} and as a folder in {package.parent}. "
                    f"Remove the folder from Airflow's plugins and from PYTHONPATH, or the wheel (pip uninstall "
                    f"{DISTRIBUTION})."
                )
