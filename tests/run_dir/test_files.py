"""Atomic writes, appends, reads of regular files and locks of run directories."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from genexp.errors import DataError, RunDirInUseError
from genexp.run_dir import files
from genexp.run_dir.files import (
    KILL_VARIABLE,
    append_file,
    is_locked,
    lock_run_dir,
    read_file,
    read_json,
    remove_temporary_files,
    sync_files,
    sync_tree,
    write_file,
)

WRITE_AND_APPEND = """
import sys
from pathlib import Path
from genexp.run_dir.files import append_file, write_file

folder = Path(sys.argv[1])
write_file(folder / "whole", "new!", should_sync=True)
append_file(folder / "log", "5678")
"""


def test_written_and_appended_content_is_read_back(tmp_path: Path) -> None:
    write_file(tmp_path / "file", "é")
    append_file(tmp_path / "file", b"\x00")
    assert read_file(tmp_path / "file") == "é".encode() + b"\x00"
    write_file(tmp_path / "file", b"", should_sync=True)
    assert read_file(tmp_path / "file") == b""
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "file", "old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_all", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    ("boundary", "whole", "log"),
    [
        (1, "old", "1234"),
        (2, "old", "1234"),
        (3, "new!", "1234"),
        (4, "new!", "123456"),
        (5, "new!", "12345678"),
    ],
)
def test_process_kills_itself_at_the_chosen_boundary(boundary: int, whole: str, log: str, tmp_path: Path) -> None:
    (tmp_path / "whole").write_text("old")
    (tmp_path / "log").write_text("1234")
    process = subprocess.run(
        [sys.executable, "-c", WRITE_AND_APPEND, str(tmp_path)],
        env={**os.environ, KILL_VARIABLE: str(boundary)},
        check=False,
    )
    assert process.returncode == -9
    assert (tmp_path / "whole").read_text() == whole
    assert (tmp_path / "log").read_text() == log
    remove_temporary_files(tmp_path, is_recursive=True)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "log"}


def test_links_and_special_files_are_neither_read_nor_written(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("safe")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("link", "a link"), ("pipe", "not a regular file")):
        with pytest.raises(OSError, match=reason):
            read_file(tmp_path / name)
    with pytest.raises(OSError, match="a link"):
        append_file(tmp_path / "link", "x")
    write_file(tmp_path / "link", "own")  # replaces the link
    assert (tmp_path / "target").read_text() == "safe"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"9" * 5000, b"[" * 100_000, b'{"a": ' * 100_000])
def test_damaged_json_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(DataError, match=r"status\.json: damaged") as caught:
        read_json(tmp_path / "status.json")
    assert "\n" not in str(caught.value)


def test_lock_excludes_other_holders_until_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
    assert not is_locked(tmp_path)
    with lock_run_dir(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(RunDirInUseError, match="in use by another process"), lock_run_dir(tmp_path):
            pass
    assert not is_locked(tmp_path)


def test_checks_of_a_lock_do_not_make_a_start_fail(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    has_ended = threading.Event()

    def check() -> None:
        while not has_ended.is_set():
            is_locked(tmp_path)

    thread = threading.Thread(target=check)
    thread.start()
    try:
        for _ in range(50):
            with lock_run_dir(tmp_path):
                pass
    finally:
        has_ended.set()
        thread.join()


def test_a_tree_is_flushed_without_following_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    for path in (outside, tree / "1", tree / "a" / "2", tree / "a" / "b" / "3"):
        path.write_text("content")
    (tree / "link").symlink_to(outside)
    flushed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(_identify(os.fstat(descriptor))))
    sync_tree(tree)
    expected = [tree, *(path for path in tree.rglob("*") if not path.is_symlink())]
    assert sorted(flushed) == sorted(_identify(path.stat()) for path in expected)


def _identify(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def test_a_file_that_cannot_be_flushed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "present").touch()
    with pytest.raises(FileNotFoundError, match="absent"):
        sync_files([tmp_path / "present", tmp_path / "absent"])
