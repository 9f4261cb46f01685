"""The cache of fetched folders: entries are complete and verified, also with other processes and killed ones."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from onnx_release.artifact.cache import Cache, CacheRequest
from onnx_release.artifact.digests import content_sha256, describe_folder
from onnx_release.errors import ArtifactRefused, Transient
from tests.refusals import refused

FORK = multiprocessing.get_context("fork")
WAIT_S = 30.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """A file with one line for each fetch in any process."""
    made = tmp_path / "fetched"
    made.touch()
    return made


def filling(fetched: Path, content: str, size_bytes: int = 100) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        with fetched.open("a") as log:
            log.write(f"{content}\n")
        (folder / "data").mkdir()
        (folder / "MLmodel").write_text(content)
        (folder / "data" / "weights").write_bytes(bytes(size_bytes - len(content)))

    return fill


def digest_of(tmp_path: Path, content: str, size_bytes: int = 100) -> str:
    folder = tmp_path / f"plain-{content}-{size_bytes}"
    folder.mkdir()
    filling(Path(os.devnull), content, size_bytes)(folder)
    return content_sha256(describe_folder(folder))


def request_for(fetched: Path, content: str, size_bytes: int = 100, **more: str) -> CacheRequest:
    return CacheRequest(name=content, fill=filling(fetched, content, size_bytes), **more)


def entries(root: Path) -> list[Path]:
    return sorted((root / "entries").iterdir())


def left_behind(root: Path) -> list[str]:
    return sorted(path.name for name in ("work", "fills") for path in (root / name).iterdir() if path.name != "room")


def test_a_second_use_fetches_nothing(root: Path, fetched: Path, tmp_path: Path) -> None:
    cache, sha256 = Cache(root, 1000), digest_of(tmp_path, "a")
    for hit in (False, True):
        with cache.entry(request_for(fetched, "a", sha256=sha256)) as entry:
            assert (entry.hit, entry.sha256, entry.size_bytes) == (hit, sha256, 100)
            assert (entry.folder / "MLmodel").read_text() == "a"
            assert (entry.folder / "data" / "weights").stat().st_nlink == 1, "onnx refuses hard links"
    assert fetched.read_text() == "a\n"
    assert left_behind(root) == []


def test_fetched_files_are_compared_with_the_expected_ones_by_name(root: Path, fetched: Path, tmp_path: Path) -> None:
    digest_of(tmp_path, "b")
    expected = describe_folder(tmp_path / "plain-b-100")
    request = replace(request_for(fetched, "a"), files=expected)
    with refused("changed_files", "MLmodel changed"), Cache(root, 1000).entry(request):
        pytest.fail("the entry was returned")
    assert (entries(root), left_behind(root)) == ([], [])


def test_a_key_maps_to_content_and_content_is_stored_once(root: Path, fetched: Path) -> None:
    cache = Cache(root, 1000)
    for key, hit in (("models:/m-1", False), ("models:/m-2", False), ("models:/m-1", True), ("models:/m-2", True)):
        with cache.entry(request_for(fetched, "a", key=key)) as entry:
            assert entry.hit is hit
    assert len(entries(root)) == 1
    assert fetched.read_text() == "a\na\n"


def test_without_digest_or_key_a_folder_is_fetched_and_kept_for_requests_with_its_digest(
    root: Path, fetched: Path
) -> None:
    cache = Cache(root, 1000)
    for _ in range(2):
        with cache.entry(request_for(fetched, "a")) as entry:
            assert not entry.hit
    with cache.entry(request_for(fetched, "a", sha256=entry.sha256)) as entry:
        assert entry.hit


def test_other_bytes_than_requested_are_refused_and_not_kept(root: Path, fetched: Path) -> None:
    with (
        refused("changed_content", "0" * 64),
        Cache(root, 1000).entry(request_for(fetched, "a", sha256="0" * 64)),
    ):
        pytest.fail("the entry was returned")
    assert (entries(root), left_behind(root)) == ([], [])


def flip(folder: Path) -> None:
    file = folder / "data" / "weights"
    file.write_bytes(b"\1" + file.read_bytes()[1:])


def add(folder: Path) -> None:
    (folder / "data" / "more").write_text("x")


def lose(folder: Path) -> None:
    (folder / "MLmodel").unlink()


def link(folder: Path) -> None:
    (folder / "MLmodel").unlink()
    (folder / "MLmodel").symlink_to("/etc/hostname")


@pytest.mark.parametrize("damage", [flip, add, lose, link])
def test_a_damaged_entry_is_fetched_again(
    damage: Callable[[Path], None], root: Path, fetched: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, sha256 = Cache(root, 1000), digest_of(tmp_path, "a")
    with cache.entry(request_for(fetched, "a", sha256=sha256)) as entry:
        damage(entry.folder)
    with caplog.at_level(logging.WARNING), cache.entry(request_for(fetched, "a", sha256=sha256)) as entry:
        assert not entry.hit
        assert (entry.folder / "MLmodel").read_text() == "a"
    assert "is damaged" in caplog.text
    with cache.entry(request_for(fetched, "a", sha256=sha256)) as entry:
        assert entry.hit
    assert left_behind(root) == []


@pytest.mark.parametrize("text", ["../../etc", "0" * 63, "", "0" * 64])
def test_a_damaged_key_file_is_not_a_hit(text: str, root: Path, fetched: Path) -> None:
    cache = Cache(root, 1000)
    with cache.entry(request_for(fetched, "a", key="k")):
        pass
    (key,) = (root / "keys").iterdir()
    key.write_text(text)
    with cache.entry(request_for(fetched, "a", key="k")) as entry:
        assert not entry.hit


def test_the_least_recently_used_entry_is_evicted_first(root: Path, fetched: Path) -> None:
    cache = Cache(root, 250)
    for content in ("a", "b", "a", "c"):
        with cache.entry(request_for(fetched, content, key=content)):
            time.sleep(0.02)
    kept = {(folder / "MLmodel").read_text() for folder in entries(root)}
    assert kept == {"a", "c"}
    assert len(list((root / "keys").iterdir())) == len(list((root / "leases").iterdir())) == 2


def test_an_entry_in_use_stays_and_the_next_folder_is_not_kept(root: Path, fetched: Path) -> None:
    cache = Cache(root, 150)
    with cache.entry(request_for(fetched, "a", key="a")) as first:
        with cache.entry(request_for(fetched, "b", key="b")) as second:
            assert (second.folder / "MLmodel").read_text() == "b"
            assert (first.folder / "MLmodel").read_text() == "a"
        assert not second.folder.exists()
        assert [folder.name for folder in entries(root)] == [first.sha256]
    with cache.entry(request_for(fetched, "b", key="b")) as second:
        assert [folder.name for folder in entries(root)] == [second.sha256], "the first entry is not in use now"


def test_a_folder_larger_than_the_limit_is_used_and_not_kept(root: Path, fetched: Path) -> None:
    cache = Cache(root, 150)
    with (
        cache.entry(request_for(fetched, "small", key="s")),
        cache.entry(request_for(fetched, "a", 151, key="a")) as entry,
    ):
        assert entry.size_bytes == 151
        assert (entry.folder / "MLmodel").read_text() == "a"
    assert len(entries(root)) == 1, "nothing was evicted for it"
    assert left_behind(root) == []


def test_a_limit_of_0_keeps_nothing_and_does_not_use_the_folder(root: Path, fetched: Path) -> None:
    with Cache(root, 0).entry(request_for(fetched, "a", key="a")) as entry:
        assert (entry.folder / "MLmodel").read_text() == "a"
    assert not entry.folder.exists()
    assert not root.exists()


def made(tmp_path: Path, content: str) -> Path:
    """Return a folder that this process has made."""
    folder = tmp_path / "made"
    folder.mkdir()
    filling(Path(os.devnull), content)(folder)
    return folder


def test_an_added_folder_is_not_fetched(root: Path, fetched: Path, tmp_path: Path) -> None:
    cache, folder = Cache(root, 250), made(tmp_path, "a")
    files = describe_folder(folder)
    cache.add("a", folder, files)
    assert not folder.exists()
    assert left_behind(root) == []
    with cache.entry(request_for(fetched, "a", sha256=content_sha256(files))) as entry:
        assert entry.hit
        cache.add("a", made(tmp_path, "a"), files)
        assert (entry.folder / "MLmodel").read_text() == "a", "the entry in use stays"
    assert fetched.read_text() == ""
    assert len(entries(root)) == 1


def test_an_added_folder_with_other_bytes_than_its_record_is_not_used(
    root: Path, fetched: Path, tmp_path: Path
) -> None:
    cache, folder = Cache(root, 250), made(tmp_path, "a")
    files = describe_folder(folder)
    (folder / "data" / "weights").write_bytes(b"other bytes")
    cache.add("a", folder, files)
    with cache.entry(request_for(fetched, "a", sha256=content_sha256(files))) as entry:
        assert not entry.hit
        assert describe_folder(entry.folder) == files


@pytest.mark.parametrize("max_bytes", [0, 99])
def test_an_added_folder_that_does_not_fit_is_not_kept(root: Path, tmp_path: Path, max_bytes: int) -> None:
    folder = made(tmp_path, "a")
    Cache(root, max_bytes).add("a", folder, describe_folder(folder))
    assert not root.exists()


def test_a_cache_that_cannot_be_written_does_not_fail_the_task_that_adds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    folder = made(tmp_path, "a")
    Cache(tmp_path / "file" / "cache", 1000).add("The artifact", folder, describe_folder(folder))
    assert "The artifact is not kept in the cache" in caplog.text


def test_a_failed_fetch_leaves_nothing(root: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ArtifactRefused("The artifact", "is missing", "Clear 'export'.", code="not_a_folder")

    with refused("not_a_folder"), Cache(root, 1000).entry(CacheRequest(name="a", fill=fail, key="a")):
        pytest.fail("the entry was returned")
    assert (entries(root), left_behind(root)) == ([], [])


def test_an_error_of_the_caller_passes_unchanged(root: Path, fetched: Path) -> None:
    with pytest.raises(FileNotFoundError), Cache(root, 1000).entry(request_for(fetched, "a", key="a")):
        raise FileNotFoundError("mine")


def test_a_full_disk_is_transient_and_evicts_entries_not_in_use(root: Path, fetched: Path) -> None:
    cache = Cache(root, 10**6)

    def full(folder: Path) -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x")

    with cache.entry(request_for(fetched, "b", key="b")):
        pass
    with cache.entry(request_for(fetched, "a", key="a")) as used:
        with (
            pytest.raises(Transient, match=r"cannot be used: .*No space left.*cache_max_bytes"),
            cache.entry(CacheRequest(name="c", fill=full, key="c")),
        ):
            pytest.fail("the entry was returned")
        assert [folder.name for folder in entries(root)] == [used.sha256]


def test_a_folder_that_cannot_be_made_is_transient(tmp_path: Path, fetched: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(Transient, match="cannot be used"),
        Cache(tmp_path / "file" / "cache", 1000).entry(request_for(fetched, "a", key="a")),
    ):
        pytest.fail("the entry was returned")


@contextlib.contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """Run `work` in a forked process, yield its id, and wait for it at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.waitpid(pid, 0)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _use(root: Path, fetched: Path, content: str, max_bytes: int) -> tuple[bool, str]:
    def slow(folder: Path) -> None:
        time.sleep(0.3)
        filling(fetched, content)(folder)

    with Cache(root, max_bytes).entry(CacheRequest(name=content, fill=slow, key=content)) as entry:
        time.sleep(0.05)
        return entry.hit, (entry.folder / "MLmodel").read_text()


def test_of_many_processes_with_one_request_one_fetches(root: Path, fetched: Path) -> None:
    with FORK.Pool(6) as pool:
        results = pool.starmap(_use, [(root, fetched, "a", 1000)] * 6)
    assert sorted(results) == [(False, "a")] + [(True, "a")] * 5
    assert fetched.read_text() == "a\n"
    assert left_behind(root) == []


def test_many_processes_in_a_small_cache_all_get_their_content(root: Path, fetched: Path) -> None:
    arguments = [(root, fetched, content, 250) for content in "abcabcabcabc"]
    with FORK.Pool(4) as pool:
        results = pool.starmap(_use, arguments)
    assert [content for _, content in results] == list("abcabcabcabc")
    assert len(entries(root)) <= 2
    assert left_behind(root) == []


def test_two_processes_that_fetch_one_content_by_two_keys_keep_one_entry(root: Path, fetched: Path) -> None:
    def also() -> None:
        with Cache(root, 1000).entry(CacheRequest(name="a", fill=filling(fetched, "a"), key="other")):
            pass

    with Cache(root, 1000).entry(request_for(fetched, "a", key="one")) as entry:
        with child(also):
            pass
        assert (entry.folder / "MLmodel").read_text() == "a"
    assert len(entries(root)) == 1


def test_a_process_killed_while_it_fetches_leaves_no_entry(root: Path, fetched: Path) -> None:
    def hang() -> None:
        def fill(folder: Path) -> None:
            (folder / "MLmodel").write_text("half")
            (root / "begun").touch()
            time.sleep(WAIT_S)

        with Cache(root, 1000).entry(CacheRequest(name="a", fill=fill, key="a")):
            pass

    with child(hang) as pid:
        until((root / "begun").exists)
        # While its owner runs, no other process removes the folder.
        with Cache(root, 1000).entry(request_for(fetched, "b", key="b")):
            assert any((root / "work").rglob("MLmodel"))
        os.kill(pid, signal.SIGKILL)
    assert any((root / "work").rglob("MLmodel"))
    with Cache(root, 1000).entry(request_for(fetched, "a", key="a")) as entry:
        assert not entry.hit
        assert (entry.folder / "MLmodel").read_text() == "a"
    assert left_behind(root) == []


def test_an_entry_in_use_by_another_process_is_not_evicted_until_that_process_ends(root: Path, fetched: Path) -> None:
    used: list[Path] = []

    def hold() -> None:
        with Cache(root, 150).entry(request_for(fetched, "a", key="a")):
            (root / "held").touch()
            time.sleep(WAIT_S)

    with child(hold) as pid:
        until((root / "held").exists)
        with Cache(root, 150).entry(request_for(fetched, "b", key="b")):
            used += entries(root)
        os.kill(pid, signal.SIGKILL)
    (one,) = used
    assert (one / "MLmodel").read_text() == "a"
    with Cache(root, 150).entry(request_for(fetched, "b", key="b")):
        assert not one.exists(), "the kernel released the lock"


def test_locks_of_a_killed_process_are_removed(root: Path, fetched: Path) -> None:
    cache = Cache(root, 1000)
    with cache.entry(request_for(fetched, "a", key="a")) as entry:
        for name in ("fills", "leases"):
            (root / name / ("0" * 64)).touch()
        (root / "work" / "0123456789abcdef").mkdir()
        with cache.entry(request_for(fetched, "b", key="b")):
            assert (root / "leases" / entry.sha256).exists(), "in use"
    assert left_behind(root) == []
    assert not (root / "leases" / ("0" * 64)).exists()
