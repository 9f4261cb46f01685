"""The error class of the stack."""

from __future__ import annotations


class StackError(Exception):
    """A cause outside the stack's code: a taken port, a missing program, a service that does not start.

    The message is for a person at a terminal. It names the object, the problem and the next step, and may have several
    lines (the end of a service's log).
    """
