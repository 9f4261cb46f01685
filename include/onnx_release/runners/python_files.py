"""Files that every Python process needs: the interpreter, its packages, and the system's libraries and devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store", "/opt/nvidia", "/opt/rocm",
    # Processes, their limits, and the CPUs. Landlock keeps the environments of other processes closed.
    "/proc", "/sys",
    # No other file of /etc: Airflow's configuration may be there.
    *(f"/etc/{name}" for name in (
        "alternatives", "fonts", "group", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
        "mime.types", "nsswitch.conf", "os-release", "passwd", "pki/tls/certs", "ssl/certs", "ssl/openssl.cnf",
        "timezone",
    )),
)  # fmt: skip
DEVICES = tuple(
    Path("/dev", name) for name in ("null", "zero", "full", "random", "urandom", "shm", "dri", "kfd", "nvidia-caps")
) + tuple(sorted(Path("/dev").glob("nvidia[0-9a-z-]*")))
_MODULE_SUFFIXES = (".py", ".pyc", ".so", ".zip", ".egg", ".whl", ".libs", ".data", ".dist-info", ".egg-info")


def python_files() -> Iterator[Path]:
    """Yield files and folders to read. Some of them may not exist."""
    yield from map(Path, _SYSTEM)
    installed = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    yield from installed
    # A link to an interpreter outside of the environment.
    yield Path(sys.executable).resolve()
    for text in (*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)):
        folder = Path(text).resolve()
        if not text or any(folder.is_relative_to(place) for place in installed):
            continue
        if not folder.is_dir():
            yield folder
            continue
        # The folder itself may also have secrets: that of a started command is on the path, and may be AIRFLOW_HOME.
        yield from (entry for entry in folder.iterdir() if is_module(entry))
    yield from editable_packages()


def editable_packages() -> Iterator[Path]:
    """Yield the packages that setuptools installed as editable."""
    for finder in sys.meta_path:
        mapping = getattr(sys.modules.get(getattr(finder, "__module__", "")), "MAPPING", {})
        yield from map(Path, mapping.values() if isinstance(mapping, dict) else ())


def is_module(entry: Path) -> bool:
    """Return True if an entry of a folder of the import path is a package, a module or the data of one."""
    if entry.name.isidentifier():
        return entry.is_dir()
    return ".so." in entry.name or entry.suffix in _MODULE_SUFFIXES
