"""Isolation of a process that runs the training run's own code, as far as the kernel supports it.

Independent parts, all of Linux. Only the first one needs root:

- Another account, without other groups: it does not reach the files and processes of root.
- Landlock: the files of Python and of the step alone, and no memory, environment or signal of another process.
- A user and a network namespace: no network but this process's own loopback.
- A filter of system calls: no Unix socket, and no change of the mode or owner of a file.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnx_release.limits import PICKLE_FILE_MAX_BYTES
from onnx_release.runners import landlock
from onnx_release.runners.account import become
from onnx_release.runners.python_files import DEVICES, python_files
from onnx_release.runners.system_calls import call, filter_calls

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_CAPABILITY_VERSION = 0x20080522
_LAST_CAPABILITY = 63

NO_LANDLOCK = "it can use all files of the account, and the memory and environment of its other processes"
NO_NAMESPACES = "it can use the network"
NO_TCP_ALONE = "it can use the network, except TCP"
NO_FILTER = "it can use Unix sockets, and change the modes of the account's files"


def hide_from_children() -> None:
    """Make memory and environment of this process unreadable for others of its account, until it ends.

    A process that the child leaves behind cannot read them later either. An account with CAP_SYS_PTRACE still can.
    """
    with contextlib.suppress(OSError, AttributeError):
        call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def isolate(readable: Sequence[Path] = (), writable: Sequence[Path] = (), user: int | None = None) -> Iterator[str]:
    """Isolate this process, which has one thread. Yield a phrase for each part that the kernel does not support.

    Args:
        readable: The files and folders that the step reads, besides those of Python and the system.
        writable: The files and folders that it writes.
        user: The account to change to, from `child_account`; None: the account stays.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (PICKLE_FILE_MAX_BYTES, PICKLE_FILE_MAX_BYTES))
    # Before the change of the account, to which folders of the import path can be closed.
    of_python = list(python_files())
    alone = False
    if user is not None:
        # Root needs no user namespace for a network of its own. Some systems forbid such namespaces to other accounts.
        alone = _enter_namespaces_if_possible(0)
        become(user)
    alone = alone or _enter_namespaces_if_possible(_CLONE_NEWUSER)
    _drop_capabilities()
    unsupported = OSError, AttributeError
    try:
        landlock.restrict([*of_python, *readable], [*DEVICES, *writable], network=alone)
    except unsupported:
        yield NO_LANDLOCK
        with_tcp = True
    else:
        with_tcp = not landlock.restricts_tcp()
    if not alone:
        yield NO_NAMESPACES if with_tcp else NO_TCP_ALONE
    try:
        filter_calls()
    except unsupported:
        yield NO_FILTER


def _enter_namespaces_if_possible(of_the_user: int) -> bool:
    # A trial in another process: a half-made namespace has no account and cannot write files.
    if not _succeeds_elsewhere(of_the_user):
        return False
    try:
        _enter_namespaces(of_the_user)
    except OSError:  # A library of the environment has started a thread.
        return False
    return True


def _succeeds_elsewhere(of_the_user: int) -> bool:
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    status = 1
    try:
        _enter_namespaces(of_the_user)
        status = 0
    finally:
        os._exit(status)


def _enter_namespaces(of_the_user: int) -> None:
    user, group = os.geteuid(), os.getegid()
    call("unshare", of_the_user | _CLONE_NEWNET | _CLONE_NEWIPC)
    if of_the_user:
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
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        for number in range(_LAST_CAPABILITY + 1):
            # The kernel has fewer, and an ordinary account may not change the set.
            with contextlib.suppress(OSError):
                call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
        header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
        call("capset", ctypes.c_char_p(header), ctypes.c_char_p(nothing))
