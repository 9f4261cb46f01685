"""Ceph's object gateway over one monitor and one OSD in memory, on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
USER, SECRET = "release", "release-secret"
_START_MAX_S = 90.0
_CONFIG = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1073741824
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
mon data = {folder}/mon
osd data = {folder}/osd
keyring = {folder}/keyring
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


def missing() -> list[str]:
    """Return the programs that are not installed. Debian's packages are ceph-mon, ceph-osd and radosgw."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def radosgw(folder: Path, port: int, mon_port: int) -> Iterator[str]:
    """Start the three programs with their state in a folder, yield the address, and stop them at the end."""
    for name in ("mon", "osd"):
        (folder / name).mkdir(parents=True)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    config = folder / "ceph.conf"
    config.write_text(_CONFIG.format(fsid=fsid, folder=folder, port=port, mon_port=mon_port))

    def call(*argv: str, tries: int = 1) -> None:
        for left in reversed(range(tries)):
            ended = subprocess.run(
                [*argv, "-c", str(config)], check=False, capture_output=True, text=True, timeout=_START_MAX_S
            )
            if ended.returncode == 0:
                return
            if not left:
                raise RuntimeError(f"{argv} ended with {ended.returncode}: {ended.stderr[-2000:]}")
            time.sleep(0.5)

    try:
        call("ceph-authtool", "--create-keyring", str(folder / "keyring"), "--gen-key", "-n", "mon.")
        monitor = f"[v1:127.0.0.1:{mon_port}]"
        call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, str(folder / "monmap"))
        call("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"))
        call("ceph-mon", "-i", "a")
        # Under load a client may send a command before it knows the monitor's fsid, and ends with "wrong fsid".
        call("ceph", "osd", "new", osd, tries=20)
        call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        call("ceph-osd", "-i", "0", tries=20)
        call("radosgw", "-n", "client.rgw.a")
        call(
            "radosgw-admin", "user", "create", f"--uid={USER}", "--display-name=x", f"--access-key={USER}",
            f"--secret-key={SECRET}",
        )  # fmt: skip
        await_answer(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        # The programs are daemons of their own.
        for path in folder.glob("*.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def await_answer(address: str) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + _START_MAX_S
    while True:
        with suppress(httpx.TransportError):
            httpx.get(address)
            return
        if time.monotonic() > deadline:
            raise TimeoutError(address)
        time.sleep(0.2)
