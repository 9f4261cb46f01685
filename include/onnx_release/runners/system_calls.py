"""Calls of the C library that Python does not have, and a filter of the system calls of a pickle's process."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct

_PR_SET_SECCOMP, _FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOWED, _ERROR = 0x7FFF0000, 0x00050000
_EACCES, _EOPNOTSUPP = 13, 95
# Numbers from here on are another interface of the kernel, x32, with the same system calls.
_FOREIGN_NUMBERS = 0x40000000
_IO_URING_SETUP = 425
_FAMILIES = (socket.AF_INET, socket.AF_INET6, 16)  # 16 is AF_NETLINK, which lists the network interfaces.
# By machine: its number, `socket`, the calls that change a mode or an owner, and those that set other attributes.
_MACHINES = {
    "x86_64": (0xC000003E, 41, (90, 91, 92, 93, 94, 260, 268, 452), (188, 189, 190, 463, 469)),
    "aarch64": (0xC00000B7, 198, (52, 53, 54, 55, 452), (5, 6, 7, 463, 469)),
}


def call(name: str, *arguments: object) -> int:
    """Call a function of the C library. Raise `OSError` if it fails, and `AttributeError` if there is none."""
    library = ctypes.CDLL(None, use_errno=True)
    # The kernel compares all 64 bits of a number.
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(getattr(library, name)(*converted))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def filter_calls() -> None:
    """Forbid sockets of other kinds than the internet's, and changes of modes, owners and attributes of files.

    Landlock restricts neither. A Unix socket leads to a database or a container engine of the host. Libraries copy
    modes of files, so a change of a mode or an owner has no effect instead of an error. The process needs
    `no_new_privs`.

    Raises:
        OSError: The kernel or the machine has no such filter.
        AttributeError: The system is not Linux.
    """
    if platform.machine() not in _MACHINES:
        raise OSError(f"the numbers of the system calls of {platform.machine()} are unknown")
    machine, new_socket, modes, attributes = _MACHINES[platform.machine()]
    program = [
        (_LOAD, _ARCHITECTURE, "next", "next"),
        (_EQUAL, machine, "next", "deny"),
        (_LOAD, _NUMBER, "next", "next"),
        (_AT_LEAST, _FOREIGN_NUMBERS, "deny", "next"),
        # A ring of requests makes sockets without these calls.
        (_EQUAL, _IO_URING_SETUP, "deny", "next"),
        *((_EQUAL, number, "skip", "next") for number in modes),
        *((_EQUAL, number, "unsupported", "next") for number in attributes),
        (_EQUAL, new_socket, "next", "allow"),
        (_LOAD, _FIRST_ARGUMENT, "next", "next"),
        *((_EQUAL, family, "allow", "next") for family in _FAMILIES),
    ]
    # The first one follows the last comparison: a family that is not allowed.
    ends = {"deny": _ERROR | _EACCES, "skip": _ERROR, "unsupported": _ERROR | _EOPNOTSUPP, "allow": _ALLOWED}

    def distance(index: int, target: str) -> int:
        return 0 if target == "next" else len(program) + list(ends).index(target) - index - 1

    code = [
        struct.pack("HBBI", kind, distance(index, true), distance(index, false), value)
        for index, (kind, value, true, false) in enumerate(program)
    ]
    code += [struct.pack("HBBI", _RETURN, 0, 0, end) for end in ends.values()]
    instructions = ctypes.create_string_buffer(b"".join(code))
    described = struct.pack("HP", len(code), ctypes.addressof(instructions))
    call("prctl", _PR_SET_SECCOMP, _FILTER, ctypes.c_char_p(described), 0, 0)
