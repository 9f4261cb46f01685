"""The one way the stack fails on purpose."""

from __future__ import annotations


class StackError(Exception):
    """Something outside the stack's code stops it: a taken port, a missing tool, a service that would not start.

    The message is for a person at a terminal: the object, what is wrong with it, and what to do. It may hold several
    lines (the end of a service's log).
    """
