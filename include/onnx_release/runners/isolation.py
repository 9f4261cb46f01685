"""Isolation of a process that runs the training run's own code, as far as the kernel supports it.

Three independent parts, all of Linux, none of which needs an administrator:

- Landlock: no memory, environment or signal of a process outside of this one.
- A user and a network namespace: no network but this process's own loopback.
- No capabilities, and no program that would give some.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from onnx_release.limits import PICKLE_FILE_MAX_BYTES

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_CAPABILITY_VERSION = 0x20080522
_LAST_CAPABILITY = 63
# The numbers of these system calls are the same on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_VERSION_FLAG = 1
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
_REFER, _PATH_BENEATH = 1 << 13, 1
_REFER_SINCE, _SCOPE_SINCE = 2, 6

NO_LANDLOCK = "it can read the memory and environment of other processes of the account"
NO_NAMESPACES = "it can use the network"


def hide_from_children() -> None:
    """Make memory and environment of this process unreadable for others of its account, until it ends.

    A process that the child leaves behind cannot read them later either. An account with CAP_SYS_PTRACE still can.
    """
    with contextlib.suppress(OSError, AttributeError):
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def isolate() -> Iterator[str]:
    """Isolate this process, which has one thread. Yield a phrase for each part that the kernel does not support."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (PICKLE_FILE_MAX_BYTES, PICKLE_FILE_MAX_BYTES))
    # A trial in another process: a half-made namespace has no account and cannot write files.
    if not _succeeds_elsewhere():
        yield NO_NAMESPACES
    else:
        try:
            _enter_namespaces()
        except OSError:  # A library of the environment has started a thread.
            yield NO_NAMESPACES
    _drop_capabilities()
    try:
        _restrict_by_landlock()
    except (OSError, AttributeError):
        yield NO_LANDLOCK


def _succeeds_elsewhere() -> bool:
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    status = 1
    try:
        _enter_namespaces()
        status = 0
    finally:
        os._exit(status)


def _enter_namespaces() -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    # The account keeps its number, so its files stay its own.
    (own / "uid_map").write_text(f"{user} {user} 1")
    (own / "gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # A model that was logged inside DistributedDataParallel makes a process group of one process over loopback.
        request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
        (flags,) = struct.unpack_from("h", request, 16)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _drop_capabilities() -> None:
    with contextlib.suppress(OSError, AttributeError):
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        for number in range(_LAST_CAPABILITY + 1):
            # The kernel has fewer, and an ordinary account may not change the set.
            with contextlib.suppress(OSError):
                _call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
        header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
        _call("capset", ctypes.c_char_p(header), ctypes.c_char_p(nothing))


def _restrict_by_landlock() -> None:
    """Enter a domain, out of which no process reads or traces another one. Files stay as accessible as before."""
    version = _call("syscall", _LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION_FLAG)
    if version < _REFER_SINCE:
        raise OSError("this version of Landlock forbids to move a file to another folder")
    scoped = version >= _SCOPE_SINCE
    rules = struct.pack("3Q", 0, 0, _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS) if scoped else struct.pack("Q", _REFER)
    ruleset = _call("syscall", _LANDLOCK_CREATE_RULESET, rules, len(rules), 0)
    root = os.open("/", os.O_PATH)
    try:
        if not scoped:
            # A ruleset has to restrict something. This one allows that everywhere.
            _call("syscall", _LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", _REFER, root), 0)
        _call("syscall", _LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(root)
        os.close(ruleset)


def _call(name: str, *arguments: object) -> int:
    """Call a function of the C library. Raise `OSError` if it fails, and `AttributeError` if there is none."""
    library = ctypes.CDLL(None, use_errno=True)
    # The kernel compares all 64 bits of a number.
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(getattr(library, name)(*converted))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
