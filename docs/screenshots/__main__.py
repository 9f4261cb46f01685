"""Writer of docs/pictures: ``python -m docs.screenshots``.

It starts a stack of its own and removes it at the end. With ``STACK_HOME`` it uses the stack in that folder, and leaves
it running with its releases.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from docs.screenshots import pictures
from docs.screenshots.releases import ASKING, MODEL, QUEUED, REFUSED, RELEASED, WARNED, Releases
from stack import interrupts
from stack.console import make_console, make_error_console
from stack.context import Context
from stack.errors import StackError
from stack.layout import Layout
from stack.lifecycle import down, up
from stack.ports import Ports


@contextmanager
def running_stack(console: Console) -> Iterator[Context]:
    """Return the stack in STACK_HOME, or one in a temporary folder on free ports."""
    if os.environ.get("STACK_HOME"):
        yield up(Layout.from_environ(), console)
        return
    with tempfile.TemporaryDirectory(prefix="onnx-screenshots-") as folder:
        layout = Layout(Path(folder) / "state")
        layout.create()
        Ports.free().remember(layout.home)
        try:
            yield up(layout, console)
        finally:
            down(layout, console)


def take_all(context: Context, console: Console) -> None:
    """Make the releases and take their pictures. Raise `StackError` if a release is not in the state of its picture."""
    releases = Releases(context, console)
    releases.train()
    releases.end()
    releases.begin()
    runs = releases.runs
    with pictures.chromium() as browser:
        console.print("Taking the pictures.")
        pictures.take(browser, context, {"list": "/releases", "waiting": f"/releases/{runs[QUEUED]}"})
        if not releases.still_run():
            raise StackError("The release that runs ended before its pictures were taken. Repeat the command.")
        looser = releases.conf(REFUSED) | {"mae_max": 1e-6}
        paths = {
            "approval": f"/releases/{runs[ASKING]}",
            "released": f"/releases/{runs[RELEASED]}",
            "warning": f"/releases/{runs[WARNED]}",
            "refused": f"/releases/{runs[REFUSED]}",
            "model": f"/models/{MODEL}",
            "compare": f"/models/{MODEL}/compare?v=4&v=5",
            "trigger": f"/trigger?name={REFUSED}&conf={quote(json.dumps(looser))}",
        }
        pictures.take(browser, context, paths)
    console.print(f"Written: {pictures.FOLDER}")


def main() -> int:
    """Take all pictures. Return 0 on success; print one message and return another status otherwise."""
    interrupts.install()
    console = make_console()
    try:
        pictures.require_chromium()
        with running_stack(console) as context:
            take_all(context, console)
    except StackError as error:
        make_error_console().print(f"screenshots: {error}")
        return 1
    except KeyboardInterrupt:
        make_error_console().print("screenshots: interrupted. A stack of its own is stopped.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
