"""Folders as bytes: their digests, their check, and their coming into being."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from onnx_release.artifact import digests
from onnx_release.artifact.digests import Digests, describe_folder, etag_of, folder_sha256, fresh_folder, verify_folder
from onnx_release.errors import Refused, Transient
from onnx_release.limits import REPORT_FILE
from onnx_release.records import OnnxArtifact
from tests.core import records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "b.txt").write_bytes(b"bee")
    (root / "a.bin").write_bytes(bytes(3_000_000))
    (root / "sub" / "c").write_bytes(b"")
    return root


def test_every_file_is_described_by_its_bytes_sorted_by_path(folder: Path) -> None:
    files = describe_folder(folder)
    assert [(file.path, file.size_bytes) for file in files] == [("a.bin", 3_000_000), ("b.txt", 3), ("sub/c", 0)]
    assert files[0].sha256 == hashlib.sha256(bytes(3_000_000)).hexdigest()


def test_a_digest_that_was_taken_is_not_taken_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, digests, read = describe_folder(folder), Digests(), []
    digests.take(folder / "a.bin")
    sha256 = digests._file_sha256
    monkeypatch.setattr(digests, "_file_sha256", lambda path: read.append(path.name) or sha256(path))
    assert describe_folder(folder, digests) == expected
    assert read == ["b.txt", "c"]


def test_a_digest_that_was_taken_is_not_that_of_other_bytes(folder: Path) -> None:
    digests = Digests()
    digests.take(folder / "a.bin")
    digests.take(folder / "b.txt")
    (folder / "a.bin").write_bytes(bytes(2_999_999) + b"1")
    os.utime(folder / "a.bin", (0, 0))
    (folder / "b.txt").unlink()
    (folder / "b.txt").write_bytes(b"fly")
    assert describe_folder(folder, digests) == describe_folder(folder)


def test_an_etag_goes_with_its_file_until_that_is_written_to(folder: Path) -> None:
    digests, path = Digests(), folder / "a.bin"
    digests.take_etag(path)
    part = hashlib.md5(bytes(3_000_000)).digest()
    expected = f"{hashlib.md5(part).hexdigest()}-1"
    assert {file.path: file.etag for file in describe_folder(folder, digests)} == {
        "a.bin": expected,
        "b.txt": "",
        "sub/c": "",
    }
    path.write_bytes(bytes(3_000_000))
    assert describe_folder(folder, digests)[0].etag == ""


def test_an_etag_is_over_the_digests_of_its_parts(folder: Path) -> None:
    parts = [hashlib.md5(bytes(size)).digest() for size in (2_000_000, 1_000_000)]
    assert etag_of(folder / "a.bin", 2_000_000) == f"{hashlib.md5(b''.join(parts)).hexdigest()}-2"


def described(folder: Path) -> OnnxArtifact:
    digests = Digests()
    files = describe_folder(folder, digests)
    return records.artifact(files=files, stamps=digests.stamps(folder, files))


def test_a_file_with_its_stamp_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = described(folder)
    assert record.stamps.keys() == {"a.bin", "b.txt", "sub/c"}
    folder = folder.rename(folder.with_name("elsewhere"))
    monkeypatch.setattr("onnx_release.artifact.digests._file_sha256", lambda path: pytest.fail(f"{path} was read"))
    verify_folder(folder, record.files, Digests.known(record))


@pytest.mark.parametrize("by", ["writing into it", "putting another in its place"])
def test_a_file_that_was_written_to_is_read_whatever_its_times_say(folder: Path, by: str) -> None:
    record = described(folder)
    path, before = folder / "a.bin", (folder / "a.bin").stat()
    if by == "writing into it":
        with path.open("r+b") as file:
            file.write(b"\1")
    else:
        (folder.parent / "other").write_bytes(b"\1" + bytes(2_999_999))
        (folder.parent / "other").rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Refused, match=r"a\.bin changed"):
        verify_folder(folder, record.files, Digests.known(record))


def test_a_clock_too_coarse_to_tell_two_writes_apart_gives_no_stamp(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = digests._stamp
    monkeypatch.setattr(digests, "_stamp", lambda path: (*stamp(path)[:-1], 1_700_000_000_010_000_000))
    assert described(folder).stamps == {}


def test_the_digest_is_over_paths_and_bytes_in_whatever_order(folder: Path) -> None:
    files = describe_folder(folder)
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    assert folder_sha256(files) == hashlib.sha256(lines.encode()).hexdigest() == folder_sha256(reversed(files))


def test_a_renamed_file_makes_another_digest(folder: Path) -> None:
    before = folder_sha256(describe_folder(folder))
    (folder / "b.txt").rename(folder / "bb.txt")
    assert folder_sha256(describe_folder(folder)) != before


def test_the_report_changes_neither_digest_nor_verdict_and_other_reports_do(folder: Path) -> None:
    files = describe_folder(folder)
    (folder / REPORT_FILE).write_text("{}")
    verify_folder(folder, files)
    assert folder_sha256(describe_folder(folder)) == folder_sha256(files)
    (folder / "sub" / REPORT_FILE).write_text("{}")
    with pytest.raises(Refused, match=rf"sub/{REPORT_FILE} was not there before"):
        verify_folder(folder, files)


def test_every_link_and_special_file_is_refused_by_name(folder: Path) -> None:
    (folder / "file_link").symlink_to(folder / "b.txt")
    (folder / "sub" / "folder_link").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    with pytest.raises(Refused) as caught:
        describe_folder(folder)
    for words in ("file_link (a symbolic link)", "sub/folder_link (a symbolic link)", "pipe (a special file)"):
        assert words in str(caught.value)


def test_a_link_to_the_folder_or_no_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "link", tmp_path / "none", folder / "b.txt"):
        with pytest.raises(Refused, match="is not a folder"):
            describe_folder(path)


def test_verify_names_all_that_is_missing_extra_and_changed(folder: Path) -> None:
    files = describe_folder(folder)
    (folder / "a.bin").write_bytes(b"\1" + bytes(2_999_999))
    (folder / "b.txt").unlink()
    (folder / "extra").write_bytes(b"")
    with pytest.raises(Refused) as caught:
        verify_folder(folder, files)
    for words in ("a.bin changed: 3000000 bytes", "b.txt is missing", "extra was not there before"):
        assert words in caught.value.problem
    assert "sub/c" not in caught.value.problem


def test_a_fresh_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with fresh_folder(target) as work:
        (work / "file").write_text("new")
        assert work.parent == target.parent
        assert not target.exists()
    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_fresh_folder_replaces_the_one_before_as_a_whole(folder: Path) -> None:
    with fresh_folder(folder) as work:
        (work / "only").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["only"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failure_leaves_what_was_there_and_nothing_beside_it(folder: Path) -> None:
    before = describe_folder(folder)

    def fail_halfway() -> None:
        with fresh_folder(folder) as work:
            (work / "half").write_text("done")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    verify_folder(folder, before)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_disk_that_refuses_may_be_tried_again(folder: Path) -> None:
    with pytest.raises(Transient, match="cannot be written"), fresh_folder(folder / "b.txt" / "below_a_file"):
        pytest.fail("the body must not run")
