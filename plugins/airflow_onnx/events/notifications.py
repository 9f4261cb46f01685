"""Notifications of the end of a release."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

from airflow_onnx.events import airflow_metrics
from airflow_onnx.events.release_end import release_end

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

Notifier = Callable[[Any], Any]
"""A function of Airflow's context, or a notifier of Airflow."""

CONTEXT_KEY = "release"
"""The key of the `ReleaseEnd` in the context: ``{{ release.headline }}`` in the template of a notifier."""


class ReleaseEndCallback:
    """Callback of the last task of a release, after Airflow has stored the task's state.

    It sends the metrics and calls the notifiers of the status. Airflow calls it when the task has succeeded, or has
    failed without another try.
    """

    def __init__(self, **notifiers: Notifier | Sequence[Notifier] | None) -> None:
        """Set the notifiers by status: `released`, `refused` and `failed`.

        :raises TypeError: for one that cannot be called, when the DAG file is parsed.
        """
        self.notifiers = {status: listed(status, found) for status, found in notifiers.items()}

    def __call__(self, context: Context) -> None:
        """Send the metrics and call the notifiers. An error of one is logged; the others are still called."""
        try:
            end = release_end(context)
        except Exception:  # The release has ended; the API server or a damaged XCom can raise anything.
            log.exception("The end of the release cannot be read. No notifier is called.")
            return
        airflow_metrics.send(context, end)
        call_each(self.notifiers.get(end.status, ()), {**context, CONTEXT_KEY: end}, end.headline)


def call_each(notifiers: Sequence[Notifier], context: Mapping[str, Any], headline: str) -> None:
    """Call the notifiers. An error of one is logged; the others are still called.

    :param headline: the result in one sentence, for the log.
    """
    for notifier in notifiers:
        named = getattr(notifier, "__name__", type(notifier).__name__)
        # A notifier renders its templates in place. A copy keeps the templates for another call.
        called = copy.copy(notifier) if isinstance(notifier, BaseNotifier) else notifier
        try:
            called({**context})
        except Exception:  # A notifier of the deployment can raise anything, and the work has ended.
            log.exception("The notifier %s failed. The result is not changed.", named)
        else:
            log.info("The notifier %s was called: %s", named, headline)


def listed(status: str, found: Notifier | Sequence[Notifier] | None) -> list[Notifier]:
    """Return the notifiers of an argument of a factory.

    :raises TypeError: for one that cannot be called.
    """
    notifiers = [] if found is None else list(found) if isinstance(found, Sequence) else [found]
    for notifier in notifiers:
        if not callable(notifier):
            raise TypeError(
                f"on_{status} has {notifier!r:.200}, which cannot be called. Give a notifier or a function."
            )
    return notifiers
