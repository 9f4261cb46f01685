"""Landlock: the files, processes and connections of the network that a process of a pickle may reach.

Landlock needs no administrator. A process cannot leave its domain, and its children inherit it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from onnx_release.runners.system_calls import call

# The numbers of these system calls are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_CONNECT_TCP = 1 << 1
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
_REFER_SINCE, _TRUNCATE_SINCE, _NETWORK_SINCE, _SCOPE_SINCE = 2, 3, 4, 6
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE


def version() -> int:
    """Return the version of the kernel's Landlock; `OSError` or `AttributeError` without one."""
    return call("syscall", _CREATE_RULESET, None, 0, _VERSION_FLAG)


def restricts_tcp() -> bool:
    """Return True if `restrict` can forbid connections over TCP."""
    return version() >= _NETWORK_SINCE


def restrict(readable: Iterable[Path], writable: Iterable[Path], *, network: bool) -> None:
    """Enter a domain with these files and folders, out of which no process reads or traces another one.

    Args:
        readable: Files and folders to read and execute. A missing one is skipped.
        writable: Files and folders to read and change. A link is skipped.
        network: False to forbid connections over TCP, on Linux 6.7 or newer.

    Raises:
        OSError: The kernel has no Landlock, or one that forbids moves between folders.
        AttributeError: The system is not Linux.
    """
    supported = version()
    if supported < _REFER_SINCE:
        raise OSError("this version of Landlock forbids to move a file to another folder")
    # Everything that a path can be used for, except the control of devices.
    handled = _REFER | (_REFER - 1) | (_TRUNCATE if supported >= _TRUNCATE_SINCE else 0)
    fields = [handled]
    if supported >= _NETWORK_SINCE:
        fields.append(0 if network else _CONNECT_TCP)
    if supported >= _SCOPE_SINCE:
        fields.append(_SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS)
    rules = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = call("syscall", _CREATE_RULESET, rules, len(rules), 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ & handled, 0)
        for path in writable:
            _allow(ruleset, path, handled, os.O_NOFOLLOW)
        call("syscall", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int, flags: int) -> None:
    # A path that does not exist here, or that this account cannot reach.
    with suppress(OSError):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
        try:
            if not stat.S_ISDIR(os.fstat(opened).st_mode):
                access &= _OF_A_FILE
            call("syscall", _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, opened), 0)
        finally:
            os.close(opened)
