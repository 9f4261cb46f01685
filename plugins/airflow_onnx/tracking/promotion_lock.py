"""Lock of a registered model, for the task that moves its aliases.

MLflow cannot set an alias on a condition. Each task has an entry in a tag of its own on the model, first without a
number, then with the next one. The lowest number goes on, after every entry has a number (Lamport's bakery algorithm).
So no order of requests lets two go on.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_onnx.tracking import model_registry
from onnx_release.errors import Transient
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_onnx.hooks.mlflow import MlflowHook

_POLL_S = 0.2
# An entry that does not change for this time belongs to a task that was killed.
_STALE_S = 60.0
_WAIT_MAX_S = 600.0


@dataclass(frozen=True, slots=True)
class Lock:
    """The entry of a task on a registered model.

    :param key: the tag. All tries of a task have the same one, so that a try takes over from a killed one.
    :param owner: a text of this try alone.
    """

    hook: MlflowHook
    model_name: str
    key: str
    owner: str

    def require(self) -> None:
        """Raise `Transient` if the entry was removed or taken over, because this try was slow."""
        if not self._is_own():
            subject = f"The lock of model '{self.model_name}'"
            raise Transient(subject, "was taken over by another release", "Airflow tries again.")

    def write(self, number: int) -> None:
        """Write the number, 0 while it is chosen."""
        model_registry.set_tag_of_model(self.hook, self.model_name, self.key, f"{number} {self.owner}")

    def remove(self) -> None:
        """Remove the entry, unless a later try has it."""
        if self._is_own():
            model_registry.delete_tag_of_model(self.hook, self.model_name, self.key)

    def _is_own(self) -> bool:
        return model_registry.tags_of_model(self.hook, self.model_name).get(self.key, "").endswith(f" {self.owner}")


def holder(context: Context, task_id: str) -> str:
    """Return the text that names a task of a DAG run, the same in each try."""
    run: Any = context["dag_run"]
    instance: Any = context["ti"]
    return "\0".join((run.dag_id, run.run_id, task_id, str(getattr(instance, "map_index", -1))))


@contextmanager
def promotion_lock(hook: MlflowHook, model_name: str, holder: str) -> Iterator[Lock]:
    """Let one task at a time move the aliases of a registered model. Yields its entry.

    :param holder: a text that names the task, see `holder`.
    :raises Transient: if other releases have the lock all the time, or if a later try of the task has taken it over.
    """
    digest = hashlib.sha256(holder.encode()).hexdigest()[:32]
    lock = Lock(hook, model_name, f"{tags.PROMOTION_LOCK}.{digest}", uuid.uuid4().hex)
    deadline = time.monotonic() + _WAIT_MAX_S
    try:
        lock.write(0)
        number = 1 + max(_entries(hook, model_name).values(), default=0)
        lock.write(number)
        seen: dict[str, tuple[int, float]] = {}
        while before := _entries_before(_entries(hook, model_name), number, lock.key):
            now = time.monotonic()
            seen = {other: seen[other] if seen.get(other, (-1, 0))[0] == n else (n, now) for other, n in before.items()}
            for other in [other for other, (_, since) in seen.items() if now - since > _STALE_S]:
                model_registry.delete_tag_of_model(hook, model_name, other)
            if now > deadline:
                raise Transient(
                    f"The registered model '{model_name}'", "is locked by other releases", "Airflow tries again."
                )
            time.sleep(_POLL_S)
        lock.require()
        yield lock
    finally:
        lock.remove()


def _entries(hook: MlflowHook, model_name: str) -> dict[str, int]:
    """Return the number of each task that has the lock or waits for it; 0 while it chooses."""
    found = model_registry.tags_of_model(hook, model_name).items()
    numbers = {key: text.partition(" ")[0] for key, text in found if key.startswith(f"{tags.PROMOTION_LOCK}.")}
    return {key: int(text) for key, text in numbers.items() if text.isdecimal()}


def _entries_before(entries: dict[str, int], number: int, key: str) -> dict[str, int]:
    """Return the entries of other tasks that choose, or that have a lower number. Equal numbers go by their key."""
    return {other: n for other, n in entries.items() if other != key and (n == 0 or (n, other) < (number, key))}
