"""Files of a step that runs in a child process: its inputs, and its outputs in folders of their own.

A child with the worker's account reads the inputs where they are. A child with another account gets copies, because the
worker's folders are closed to it. Everything that such a child leaves is untrusted: only plain files of its account are
copied back, and no link is followed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from onnx_release.artifact.digests import fresh_folder
from onnx_release.errors import ArtifactRefused
from onnx_release.limits import PICKLE_ANSWER_MAX_BYTES
from onnx_release.records.base import Record
from onnx_release.runners.account import child_account
from onnx_release.scratch import open_to_group

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class StepFiles:
    """Files of one step.

    Attributes:
        user: The account of the child; None for that of this process.
        own: The folder that the child may change, besides its outputs. It has the folder `home` and the answer.
        arguments: The arguments of the step, with the paths that the child uses.
        read: The files and folders that the child reads.
        written: The files and folders that it writes.
    """

    user: int | None
    own: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    read: list[Path] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The home and temporary folder of the child."""
        return self.own / "home"

    @property
    def answer(self) -> Path:
        """The file with the child's answer."""
        return self.own / "answer.json"

    def read_answer(self) -> dict[str, Any]:
        """Return the child's answer. Without a plain JSON file of a usual size it is empty."""
        try:
            with _open_plain(self.answer, self.user) as file:
                text = file.read(PICKLE_ANSWER_MAX_BYTES + 1)
            found = json.loads(text) if len(text) <= PICKLE_ANSWER_MAX_BYTES else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


@contextmanager
def step_files(arguments: Mapping[str, Any], scratch: Path) -> Iterator[StepFiles]:
    """Yield the files of a step. At the end without an error, its outputs move to their places.

    Args:
        arguments: The arguments of the step. Its output folder is `out`, and its options name other files.
        scratch: A folder from `scratch_folder`, for this step alone.

    Raises:
        RunnerRefused: As in `child_account`.
        ArtifactRefused: `special_file`: an output has a link or a file that is not the child's.
        Transient: The disk is full or not writable.
    """
    options = arguments["options"]
    measuring = getattr(options, "benchmark", options)
    runtimes = [Path(one.python) for one in getattr(measuring, "target_runtimes", ())]
    lock = _lock_file(measuring)
    needed = dict.fromkeys(runtimes, os.R_OK | os.X_OK) | dict.fromkeys(lock, os.R_OK | os.W_OK)
    account = child_account(options.pickle_user, needed)
    if account.problem:
        _log.warning("The code of this model runs as root: %s. %s", account.problem, account.action)
    files = StepFiles(user=account.user, own=scratch / "own")
    files.home.mkdir(parents=True)
    # An environment is two folders above its interpreter.
    files.read += [python.parent.parent.resolve() for python in runtimes]
    files.written += [files.own, *lock]
    moves: list[tuple[Path, Path]] = []

    with ExitStack() as stack:

        def read(path: Path) -> Path:
            files.read.append(path.resolve())
            if files.user is not None:
                files.read[-1] = _copy_for(files.user, path, scratch / f"input-{len(files.read)}")
            return files.read[-1]

        def write(path: Path) -> Path:
            folder = scratch / f"output-{len(moves)}"
            if files.user is None:
                # The output moves to its place by a rename.
                beside = path.resolve().parent
                beside.mkdir(parents=True, exist_ok=True)
                made = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=beside)
                folder = Path(stack.enter_context(made))
            else:
                folder.mkdir()
            files.written.append(folder)
            moves.append((folder / path.name, path))
            return folder / path.name

        files.arguments = _with_paths(arguments, read, write)
        if files.user is not None:
            for folder in (files.home, *files.written):
                if folder not in lock:
                    os.chown(folder, files.user, files.user)
            open_to_group(scratch, files.user)
        yield files
        for made, place in moves:
            _move(made, place, files.user)


def _lock_file(measuring: Any) -> list[Path]:
    lock = getattr(measuring, "lock", None)
    if not lock or not lock.path:
        return []
    from onnx_release.latency.host_lock import create_lock_file

    create_lock_file(Path(lock.path))
    return [Path(lock.path).absolute()]


def _with_paths(
    arguments: Mapping[str, Any], read: Callable[[Path], Path], write: Callable[[Path], Path]
) -> dict[str, Any]:
    """Return the arguments with the paths that a step reads and writes replaced. Texts of a training run name none."""

    def replaced(options: Record) -> Record:
        changes: dict[str, Any] = {
            name: str(place(Path(text)))
            for place, names in (
                (read, ("inputs_path", "evaluation_path", "evaluation")),
                (write, ("reproduction_folder",)),
            )
            for name in names
            if (text := getattr(options, name, None))
        }
        if (champion := getattr(options, "champion", None)) and champion.folder:
            changes["champion"] = champion.replace(folder=str(read(Path(champion.folder))))
        if benchmark := getattr(options, "benchmark", None):
            changes["benchmark"] = replaced(benchmark)
        return options.replace(**changes)

    changed = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, Path):
            changed[name] = (write if name == "out" else read)(value)
    return changed | {"options": replaced(arguments["options"])}


def _copy_for(user: int, path: Path, folder: Path) -> Path:
    """Copy a file or a folder of the worker. The account can read the copy, and cannot change it."""
    folder.mkdir()
    copy = folder / path.name
    if path.is_dir():
        shutil.copytree(path, copy, symlinks=True)
    else:
        shutil.copyfile(path, copy)
    for one in (folder, copy, *copy.rglob("*")):
        if not one.is_symlink():
            os.chown(one, -1, user)
            one.chmod(0o750 if one.is_dir() else 0o640)
    return copy


def _move(made: Path, place: Path, user: int | None) -> None:
    """Put an output folder into its place. A step may have none."""
    if not made.is_dir() or made.is_symlink():
        return
    with fresh_folder(place) as folder:
        if user is None:
            for file in made.iterdir():
                file.rename(folder / file.name)
        else:
            copy_untrusted(made, folder, user)


def copy_untrusted(source: Path, target: Path, user: int) -> None:
    """Copy a folder that another account could change meanwhile.

    Args:
        source: The folder. The account can change neither its name nor the folders above it.
        target: An existing folder.
        user: The account. Each file must be its own.

    Raises:
        ArtifactRefused: `special_file`, for a link, a special file and a file of another account.
    """
    for path, folders, names, place in os.fwalk(source):
        below = target / Path(path).relative_to(source)
        for name in folders:
            # The walk passes over a link to a folder.
            if stat.S_ISLNK(os.lstat(name, dir_fd=place).st_mode):
                raise _special(name)
            (below / name).mkdir()
        for name in names:
            try:
                with _open_plain(name, user, place) as file, (below / name).open("xb") as copy:
                    shutil.copyfileobj(file, copy, 2**20)
            except _NotPlainError as error:
                raise _special(name) from error


class _NotPlainError(OSError):
    """A link, a special file or a file of another account."""


def _open_plain(path: str | Path, user: int | None, folder: int | None = None) -> BinaryIO:
    """Open a plain file. With a user, it must be a file of this account."""
    try:
        # Without waiting for the other end of a pipe.
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:  # A link, or a socket.
        raise _NotPlainError(*error.args) from error
    found = os.fstat(opened)
    # A hard link can lead to a file of another account.
    if not stat.S_ISREG(found.st_mode) or user not in (None, found.st_uid):
        os.close(opened)
        raise _NotPlainError
    return os.fdopen(opened, "rb")


def _special(name: str) -> ArtifactRefused:
    return ArtifactRefused(
        "The output of the step",
        f"contains {name!r:.200}, which is a link, a special file or a file of another account",
        "Find the code of the model that makes it: an artifact consists of plain files.",
        code="special_file",
    )
