"""The two ways a release step can fail, and nothing else.

A step raises `Refused` when doing it again gives the same answer, and `Transient` when a later try may succeed. The
distinction is made where the cause is known, so that a scheduler need not guess from an exception's type.
"""

from __future__ import annotations


class ReleaseError(Exception):
    """A release step that did not succeed.

    The message is one paragraph for the person who reads the log: what happened to which object, the value seen, the
    limit it missed, and what to do next.

    :param subject: the object it is about, e.g. ``output 'positions' at batch 8`` or ``run 3f2a…``.
    :param problem: what is wrong with it, with the value seen and the limit.
    :param action: the next thing a person does about it.
    """

    def __init__(self, subject: str, problem: str, action: str) -> None:
        super().__init__(subject, problem, action)
        self.subject = subject
        self.problem = problem
        self.action = action

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}. {self.action}"


class Refused(ReleaseError):
    """The same input gives the same failure: a retry is pointless, a person has to change something."""


class Transient(ReleaseError):
    """The cause lies outside the model (a server, the network, the disk) and may be gone at the next try."""
