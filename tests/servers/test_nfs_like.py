"""The NFS-like folder: each fault does what it says, all else passes through, nothing is left behind."""

import ctypes
import ctypes.util
import errno
import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import wait_for
from tests.servers.nfs_like import ROOT, NfsLike, is_mounted, nfs_like, unavailable_reason


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A backing folder and a mountpoint, not yet mounted; skips where nothing can be mounted."""
    if reason := unavailable_reason():
        pytest.skip(reason)
    return tmp_path / "backing", tmp_path / "mount"


@pytest.fixture
def nfs(places: tuple[Path, Path]) -> Iterator[NfsLike]:
    with nfs_like(*places) as mount:
        yield mount


def errors_of(call: Callable[[], Any], times: int) -> list[str]:
    """The error's name, or ok, of each of so many calls."""
    heard = []
    for _ in range(times):
        try:
            call()
            heard.append("ok")
        except OSError as error:
            heard.append(errno.errorcode[error.errno or 0])
    return heard


def is_running(pid: int) -> bool:
    """Whether the process is at work; one that ended and was not yet collected by its parent is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def create_exclusively(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# The backing folder's own


def test_twenty_megabytes_pass_unchanged_both_ways(nfs: NfsLike):
    content = os.urandom(20_000_003)
    (nfs.path / "written").write_bytes(content)
    assert (nfs.backing / "written").read_bytes() == content
    (nfs.backing / "found").write_bytes(content[::-1])
    assert (nfs.path / "found").read_bytes() == content[::-1]


def test_rename_replaces_files_but_not_folders_with_something_in_them(nfs: NfsLike):
    (nfs.path / "old").write_text("old")
    (nfs.path / "new").write_text("new")
    (nfs.path / "new").rename(nfs.path / "old")
    assert (nfs.path / "old").read_text() == "new"
    (nfs.path / "empty").mkdir()
    (nfs.path / "full" / "sub").mkdir(parents=True)
    assert errors_of(lambda: (nfs.path / "empty").rename(nfs.path / "full"), 1) == ["ENOTEMPTY"]
    (nfs.path / "full").rename(nfs.path / "empty")
    assert sorted(os.listdir(nfs.path)) == ["empty", "old"] and os.listdir(nfs.path / "empty") == ["sub"]


def test_a_link_is_the_same_file_and_never_replaces_one(nfs: NfsLike):
    (nfs.path / "a").write_text("content")
    (nfs.path / "b").hardlink_to(nfs.path / "a")
    assert (nfs.path / "a").stat().st_nlink == 2 and (nfs.path / "a").samefile(nfs.path / "b")
    assert errors_of(lambda: (nfs.path / "b").hardlink_to(nfs.path / "a"), 1) == ["EEXIST"]


def test_an_exclusive_create_has_one_winner_and_the_mode_it_asked_for(nfs: NfsLike):
    assert errors_of(lambda: create_exclusively(nfs.path / "manifest"), 2) == ["ok", "EEXIST"]
    assert (nfs.backing / "manifest").stat().st_mode & 0o777 == 0o640


def test_fsync_truncate_times_and_symlinks_reach_the_backing_folder(nfs: NfsLike):
    (nfs.path / "file").write_text("0123456789")
    os.truncate(nfs.path / "file", 4)
    os.utime(nfs.path / "file", ns=(1_700_000_000_123_456_789, 1_600_000_000_987_654_321))
    (nfs.path / "link").symlink_to("file")
    fsync(nfs.path / "file")
    fsync(nfs.path)
    assert (nfs.path / "link").read_text() == "0123"
    assert (nfs.backing / "file").stat().st_mtime_ns == 1_600_000_000_987_654_321


def test_an_open_file_stays_readable_and_writable_when_its_name_is_gone(nfs: NfsLike):
    (nfs.path / "folder").mkdir()
    with (nfs.path / "folder" / "file").open("w+b", buffering=0) as file:
        file.write(b"content")
        (nfs.path / "folder" / "file").unlink()
        (nfs.path / "folder").rmdir()
        assert os.pread(file.fileno(), 7, 0) == b"content"
        assert os.pwrite(file.fileno(), b"C", 0) == 1
        os.ftruncate(file.fileno(), 3)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 7, 0) == b"Con"


def test_a_reader_always_finds_a_file_that_is_being_replaced(nfs: NfsLike):
    latest, new = nfs.path / "latest", nfs.path / "new"
    latest.write_text("0")
    changes: queue.SimpleQueue[str] = queue.SimpleQueue()
    stop = threading.Event()

    def read() -> None:
        before = "0"
        while not stop.is_set():
            if (now := latest.read_text()) != before:
                changes.put(before := now)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for number in range(1, 201):
                new.write_text(str(number))
                new.rename(latest)
                assert changes.get(timeout=30) == str(number)
        finally:
            stop.set()
        reading.result()


def test_rename_flags_are_refused_not_dropped(nfs: NfsLike):
    for name in ("a", "b"):
        (nfs.path / name).write_text(name)
    libc = ctypes.CDLL(None, use_errno=True)
    here, no_replace = -100, 1
    paths = [os.fsencode(nfs.path / name) for name in ("a", "b")]
    assert libc.renameat2(here, paths[0], here, paths[1], no_replace) == -1
    assert ctypes.get_errno() in (errno.EEXIST, errno.EINVAL)
    assert (nfs.path / "b").read_text() == "b"


def test_opening_shows_what_another_client_wrote(nfs: NfsLike):
    (nfs.path / "file").write_text("mine")
    assert (nfs.path / "file").read_text() == "mine"
    # As long as before, so that nothing but opening can tell the kernel.
    (nfs.backing / "file").write_text("hers")
    assert (nfs.path / "file").read_text() == "hers"


def test_locks_are_refused(nfs: NfsLike):
    with (nfs.path / "lock").open("w") as file:
        assert errors_of(lambda: fcntl.flock(file, fcntl.LOCK_EX), 1) == ["ENOLCK"]
        assert errors_of(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB), 1) == ["ENOLCK"]


# Faults


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("known", [True, False], ids=["known to the kernel", "new to the kernel"])
def test_estale_on_getattr_is_heard_so_many_times(nfs: NfsLike, times: int, known: bool):
    (nfs.backing / "file").write_text("x")
    if known:
        (nfs.path / "file").stat()
    nfs.set_fault("estale_on_getattr", times, path_regex="/file$")
    assert errors_of((nfs.path / "file").stat, times + 2) == ["ESTALE"] * times + ["ok", "ok"]
    assert nfs.fired("estale_on_getattr") == times


@pytest.mark.parametrize("times", [1, 3])
def test_estale_on_open_is_heard_so_many_times(nfs: NfsLike, times: int):
    (nfs.backing / "file").write_text("x")
    nfs.set_fault("estale_on_open", times)
    assert errors_of((nfs.path / "file").read_text, times + 2) == ["ESTALE"] * times + ["ok", "ok"]
    assert nfs.fired("estale_on_open") == times


def test_estale_on_read_stays_with_the_open_file_until_it_is_opened_anew(nfs: NfsLike):
    content = os.urandom(3_000_000)
    (nfs.backing / "file").write_bytes(content)
    with (nfs.path / "file").open("rb", buffering=0) as file:
        nfs.set_fault("estale_on_read")
        assert errors_of(lambda: os.pread(file.fileno(), 1_000_000, 1_000_000), 3) == ["ESTALE"] * 3
        assert (nfs.path / "file").read_bytes() == content
    assert nfs.fired("estale_on_read") == 1


def test_slow_getattr_takes_its_time_and_holds_up_no_other_folder(nfs: NfsLike):
    for folder in ("slow", "quick"):
        (nfs.backing / folder).mkdir()
        (nfs.backing / folder / "file").write_text("x")
    nfs.set_fault("slow_getattr", 1, path_regex="/slow/file", duration_s=4.0)
    began = time.monotonic()
    with subprocess.Popen(["stat", str(nfs.path / "slow" / "file")], stdout=subprocess.DEVNULL) as caller:
        wait_for(lambda: nfs.fired("slow_getattr"), "the slow question was asked")
        assert (nfs.path / "quick" / "file").read_text() == "x"
        assert caller.poll() is None
    assert caller.returncode == 0 and time.monotonic() - began >= 4.0


def test_stale_getattr_shows_the_previous_size_and_time_until_it_expires(nfs: NfsLike):
    file, others_view = nfs.path / "file", nfs.backing / "file"
    others_view.write_text("old")
    before = file.stat()
    nfs.set_fault("stale_getattr", path_regex="file", duration_s=2.0)
    others_view.write_text("much longer")
    stale = file.stat()
    assert (stale.st_size, stale.st_mtime_ns) == (3, before.st_mtime_ns)
    # Close-to-open: who opens it sees all of it.
    assert file.read_text() == "much longer"
    wait_for(lambda: file.stat().st_size == 11, "the true size is seen", timeout_s=30)
    assert nfs.fired("stale_getattr") == 1


def test_stale_getattr_shows_the_previous_absence_until_it_expires(nfs: NfsLike):
    assert not (nfs.path / "file").exists()
    nfs.set_fault("stale_getattr", duration_s=2.0)
    (nfs.backing / "file").write_text("x")
    assert errors_of((nfs.path / "file").read_text, 2) == ["ENOENT"] * 2
    assert os.listdir(nfs.path) == ["file"]
    # What is not seen cannot be made either: the server decides.
    assert errors_of(lambda: create_exclusively(nfs.path / "file"), 1) == ["EEXIST"]
    wait_for((nfs.path / "file").exists, "the file is seen", timeout_s=30)


def test_stale_getattr_shows_the_previous_presence_but_opens_nothing(nfs: NfsLike):
    (nfs.path / "file").write_text("x")
    assert (nfs.path / "file").exists()
    nfs.set_fault("stale_getattr", duration_s=60)
    (nfs.backing / "file").unlink()
    assert (nfs.path / "file").exists()
    assert errors_of((nfs.path / "file").read_text, 1) == ["ENOENT"]
    nfs.set_fault("stale_getattr", times=0)
    assert not (nfs.path / "file").exists()


def test_two_mounts_are_two_clients(nfs: NfsLike, tmp_path: Path):
    with nfs_like(nfs.backing, tmp_path / "second") as second:
        assert not (second.path / "file").exists()
        second.set_fault("stale_getattr", duration_s=60)
        (nfs.path / "file").write_text("x")
        assert (nfs.path / "file").exists() and not (second.path / "file").exists()


def test_stale_getattr_never_hides_what_this_client_did(nfs: NfsLike):
    assert not (nfs.path / "file").exists()
    nfs.set_fault("stale_getattr", times=9, duration_s=60)
    (nfs.path / "file").write_text("four")
    assert (nfs.path / "file").stat().st_size == 4
    (nfs.path / "file").rename(nfs.path / "moved")
    assert not (nfs.path / "file").exists() and (nfs.path / "moved").exists()
    assert nfs.fired("stale_getattr") == 0


def test_rename_replayed_is_done_but_says_enoent(nfs: NfsLike):
    (nfs.path / "scratch").mkdir()
    (nfs.path / "scratch" / "file").write_text("x")
    nfs.set_fault("rename_replayed")
    assert errors_of(lambda: (nfs.path / "scratch").rename(nfs.path / "final"), 1) == ["ENOENT"]
    assert os.listdir(nfs.path) == ["final"] and (nfs.path / "final" / "file").read_text() == "x"
    (nfs.path / "final").rename(nfs.path / "again")


def test_link_replayed_is_done_but_says_eexist(nfs: NfsLike):
    (nfs.path / "scratch").write_text("x")
    nfs.set_fault("link_replayed")
    assert errors_of(lambda: (nfs.path / "final").hardlink_to(nfs.path / "scratch"), 1) == ["EEXIST"]
    assert (nfs.path / "final").samefile(nfs.path / "scratch")
    assert (nfs.path / "scratch").stat().st_nlink == 2
    (nfs.path / "again").hardlink_to(nfs.path / "scratch")


def test_create_replayed_is_done_but_says_eexist(nfs: NfsLike):
    nfs.set_fault("create_replayed")
    # Not exclusive: the repetition meets its own file and is content.
    (nfs.path / "plain").write_text("x")
    assert errors_of(lambda: create_exclusively(nfs.path / "a"), 1) == ["EEXIST"]
    assert (nfs.path / "a").stat().st_size == 0
    create_exclusively(nfs.path / "b")


def test_enospc_on_write_writes_nothing(nfs: NfsLike):
    nfs.set_fault("enospc_on_write", times=2, path_regex=r"\.bin$")
    (nfs.path / "file.json").write_text("{}")
    assert errors_of(lambda: (nfs.path / "file.bin").write_bytes(b"x" * 500_000), 3) == [
        "ENOSPC",
        "ENOSPC",
        "ok",
    ]
    assert (nfs.backing / "file.bin").stat().st_size == 500_000


def test_eio_on_fsync_fails_for_files_and_folders(nfs: NfsLike):
    (nfs.path / "folder").mkdir()
    (nfs.path / "folder" / "file").write_text("x")
    nfs.set_fault("eio_on_fsync", path_regex="/file$")
    assert errors_of(lambda: fsync(nfs.path / "folder"), 1) == ["ok"]
    assert errors_of(lambda: fsync(nfs.path / "folder" / "file"), 2) == ["EIO", "ok"]
    nfs.set_fault("eio_on_fsync", path_regex="/folder$")
    assert errors_of(lambda: fsync(nfs.path / "folder"), 2) == ["EIO", "ok"]


def test_faults_can_be_set_from_the_start_and_are_checked(places: tuple[Path, Path]):
    with nfs_like(*places, estale_on_open=1, enospc_on_write={"times": 1, "path_regex": "full"}) as nfs:
        (nfs.path / "file").write_text("x")
        assert errors_of((nfs.path / "file").read_text, 2) == ["ESTALE", "ok"]
        assert errors_of(lambda: (nfs.path / "full").write_text("x"), 2) == ["ENOSPC", "ok"]
        with pytest.raises(ValueError, match="there is no fault 'estale'. Choose one of: estale_on_open, "):
            nfs.set_fault("estale")
        with pytest.raises(ValueError, match=r"path_regex '\(' is no regular expression"):
            nfs.set_fault("estale_on_open", path_regex="(")


# Nothing is left


def test_mount_and_process_are_gone_after_a_test_that_failed(places: tuple[Path, Path]):
    with pytest.raises(ZeroDivisionError), nfs_like(*places) as nfs:
        assert is_mounted(nfs.path) and is_running(nfs.pid)
        (nfs.path / "file").write_text("kept")
        raise ZeroDivisionError
    assert not is_mounted(nfs.path) and not is_running(nfs.pid)
    assert os.listdir(nfs.path) == [] and (nfs.backing / "file").read_text() == "kept"


def test_a_file_left_open_does_not_keep_the_mount(places: tuple[Path, Path]):
    with nfs_like(*places) as nfs:
        left_open = (nfs.path / "file").open("wb", buffering=0)
    assert not is_mounted(nfs.path) and not is_running(nfs.pid)
    assert errors_of(lambda: left_open.write(b"x"), 1) == ["ENOTCONN"]
    assert errors_of(left_open.close, 1) == ["ENOTCONN"]


def test_a_server_that_was_killed_is_unmounted_too(places: tuple[Path, Path]):
    with nfs_like(*places) as nfs:
        os.kill(nfs.pid, signal.SIGKILL)
        assert wait_for(lambda: errors_of(lambda: os.listdir(nfs.path), 1) == ["ENOTCONN"], "it is dead")
        with pytest.raises(RuntimeError, match="has ended"):
            nfs.fired("estale_on_open")
        assert is_mounted(nfs.path)
    assert not is_mounted(nfs.path)


def test_a_test_that_was_killed_leaves_nothing(places: tuple[Path, Path]):
    script = (
        "import pathlib, sys\n"
        "from tests.servers.nfs_like import nfs_like\n"
        "with nfs_like(*map(pathlib.Path, sys.argv[1:])) as nfs:\n"
        "    print(nfs.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, *map(str, places)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as test:  # type: ignore[call-overload]
        pid = int(test.stdout.readline())
        assert is_mounted(places[1])
        test.kill()
    wait_for(lambda: not is_mounted(places[1]) and not is_running(pid), "unmounted and ended", timeout_s=30)


def test_a_process_that_ends_before_it_has_mounted_is_an_error(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    interpreter = places[0].parent / "interpreter"
    interpreter.write_text("#!/bin/sh\necho no such module >&2\nexit 7\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(RuntimeError, match="not mounted .*exit status 7.*no such module"), nfs_like(*places):
        pass


def test_a_mount_over_itself_or_over_a_mount_is_refused(nfs: NfsLike):
    with pytest.raises(ValueError, match="side by side"), nfs_like(nfs.backing, nfs.backing / "mount"):
        pass
    with pytest.raises(ValueError, match="mounted at .* already"), nfs_like(nfs.backing, nfs.path):
        pass


@pytest.mark.skipif(bool(ctypes.util.find_library("fuse3")), reason="libfuse 3 is installed on this machine")
def test_without_libfuse_and_without_apt_the_reason_says_what_to_install(tmp_path: Path):
    script = "from tests.servers.nfs_like import _libfuse; print(_libfuse())"
    nowhere = os.environ | {"PATH": str(tmp_path), "TANDEM_CACHE": str(tmp_path / "cache")}
    said = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=nowhere, text=True)
    assert "without apt-get it cannot be fetched. Install libfuse 3.11 or newer (Debian: libfuse3-4" in said
