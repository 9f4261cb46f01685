"""Digests of folders, their comparison with a record, and folders that appear as a whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from onnx_release.artifact.digests import (
    describe_folder,
    folder_sha256,
    fresh_folder,
    require_bytes,
    verify_folder,
)
from onnx_release.errors import Transient
from onnx_release.limits import REPORT_FILE
from onnx_release.records import OnnxArtifact, ReleaseReport
from tests.core import records
from tests.refusals import refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "b.txt").write_bytes(b"bee")
    (root / "a.bin").write_bytes(bytes(3_000_000))
    (root / "sub" / "c").write_bytes(b"")
    return root


def described(folder: Path) -> OnnxArtifact:
    files = describe_folder(folder)
    return records.artifact(files=files, sha256=folder_sha256(files))


def test_every_file_is_described_by_its_bytes_sorted_by_path(folder: Path) -> None:
    files = describe_folder(folder)
    assert [(file.path, file.size_bytes) for file in files] == [("a.bin", 3_000_000), ("b.txt", 3), ("sub/c", 0)]
    assert files[0].sha256 == hashlib.sha256(bytes(3_000_000)).hexdigest()


def test_a_known_digest_is_taken_without_reading_the_file(folder: Path) -> None:
    files = describe_folder(folder)
    known = files[0].replace(sha256="0" * 64)
    elsewhere = known.replace(path="elsewhere")
    assert describe_folder(folder, [known, elsewhere]) == (known, *files[1:])


def test_a_folder_with_the_files_of_its_record_is_accepted(folder: Path) -> None:
    artifact = described(folder)
    require_bytes(folder.rename(folder.with_name("elsewhere")), artifact)


@pytest.mark.parametrize("change", ["written in place", "replaced"])
def test_a_changed_file_is_refused_even_with_its_old_times(folder: Path, change: str) -> None:
    artifact = described(folder)
    path, before = folder / "a.bin", (folder / "a.bin").stat()
    if change == "written in place":
        with path.open("r+b") as file:
            file.write(b"\1")
    else:
        (folder.parent / "other").write_bytes(b"\1" + bytes(2_999_999))
        (folder.parent / "other").rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with refused("changed_files", "a.bin changed"):
        require_bytes(folder, artifact)


@pytest.mark.parametrize("digit", "0f")
def test_a_record_whose_sha256_is_not_that_of_its_files_is_refused(folder: Path, digit: str) -> None:
    with refused("wrong_sha256", digit * 64):
        require_bytes(folder, described(folder).replace(sha256=digit * 64))


def test_the_digest_covers_paths_and_bytes_in_any_order(folder: Path) -> None:
    files = describe_folder(folder)
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    assert folder_sha256(files) == hashlib.sha256(lines.encode()).hexdigest() == folder_sha256(reversed(files))


def test_a_renamed_file_gives_another_digest(folder: Path) -> None:
    before = folder_sha256(describe_folder(folder))
    (folder / "b.txt").rename(folder / "bb.txt")
    assert folder_sha256(describe_folder(folder)) != before


def test_the_report_is_ignored_in_the_folder_itself_only(folder: Path) -> None:
    files = describe_folder(folder)
    (folder / REPORT_FILE).write_text("{}")
    verify_folder(folder, files)
    assert folder_sha256(describe_folder(folder)) == folder_sha256(files)
    (folder / "sub" / REPORT_FILE).write_text("{}")
    with refused("changed_files", f"sub/{REPORT_FILE} was not there before"):
        verify_folder(folder, files)


def test_every_link_and_special_file_is_refused_by_name(folder: Path) -> None:
    (folder / "file_link").symlink_to(folder / "b.txt")
    (folder / "sub" / "folder_link").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    names = ("file_link (a symbolic link)", "sub/folder_link (a symbolic link)", "pipe (a special file)")
    with refused("special_file", *names):
        describe_folder(folder)


def test_a_link_to_a_folder_a_file_and_a_missing_path_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "link", tmp_path / "none", folder / "b.txt"):
        with refused("not_a_folder", path.name):
            describe_folder(path)


def test_the_refusal_names_every_missing_extra_and_changed_file(folder: Path) -> None:
    files = describe_folder(folder)
    (folder / "a.bin").write_bytes(b"\1" + bytes(2_999_999))
    (folder / "b.txt").unlink()
    (folder / "extra").write_bytes(b"")
    problems = ("a.bin changed: 3000000 bytes", "b.txt is missing", "extra was not there before")
    with refused("changed_files", *problems) as caught:
        verify_folder(folder, files)
    assert "sub/c" not in caught.value.problem


def test_a_report_never_contains_the_staged_folder() -> None:
    artifact = records.artifact(staging_uri="file:///work/artifact")
    for status in ("accepted", "refused"):
        report = ReleaseReport(status=status, headline="", trained_model=records.TRAINING, artifact=artifact)
        assert report.artifact == artifact.replace(staging_uri=None)
        assert ReleaseReport.from_dict(report.replace(artifact=artifact).to_dict()) == report


def test_a_fresh_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "very" / "deep" / "model"
    with fresh_folder(target) as work:
        (work / "file").write_text("new")
        assert work.parent == target.parent
        assert not target.exists()
    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_fresh_folder_replaces_an_older_one_as_a_whole(folder: Path) -> None:
    with fresh_folder(folder) as work:
        (work / "only").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["only"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_fresh_folder_replaces_a_file_or_a_link_and_not_the_folder_behind_it(folder: Path, tmp_path: Path) -> None:
    before = describe_folder(folder)
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(folder)
    for target in (tmp_path / "file", tmp_path / "link"):
        with fresh_folder(target) as work:
            (work / "new").write_text("new")
        assert [file.path for file in describe_folder(target)] == ["new"]
    verify_folder(folder, before)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "file", "link"}


def test_a_failure_keeps_the_older_folder_and_leaves_nothing_beside_it(folder: Path) -> None:
    before = describe_folder(folder)

    def fail_halfway() -> None:
        with fresh_folder(folder) as work:
            (work / "half").write_text("done")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    verify_folder(folder, before)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_disk_error_is_transient(folder: Path) -> None:
    with (
        pytest.raises(Transient, match="cannot be written: File exists"),
        fresh_folder(folder / "b.txt" / "below_a_file"),
    ):
        pytest.fail("the body must not run")
