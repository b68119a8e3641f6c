"""A folder that behaves like an NFS mount, for tests: a FUSE pass-through over a backing folder, with faults.

NFS-like, no more: it was written from how the Linux NFS client is known to behave, and close-to-open
consistency was not tested on a kernel NFS client. What a test proves here, it proves about the rules below.

The mount is one NFS client; whoever writes into the backing folder directly is another client.

Always so:
    - flock and lockf fail with ENOLCK, as on NFS without a lock service.
    - rename, link, fsync (folders too), truncate and unlink are the backing folder's own, one call each. So
      replacing a file is atomic, and what is open stays readable after its name is gone.
    - open discards what the kernel had cached of the file; O_APPEND writes at the end that this client
      knows, so appends of two clients can overwrite each other.
    - No extended attributes, no fallocate, no renameat2 flags.

Known not to be like NFS: fstat of an open file fails with ESTALE as soon as its name is removed or replaced,
also when this client did it (a kernel NFS client keeps its own as ``.nfs*`` files, which are not here); write
errors come from write and fsync, never only from close.

Faults (``set_fault``) happen ``times`` times, to paths in which ``path_regex`` is found:
    - ``estale_on_open``, ``estale_on_getattr``: the caller gets ESTALE. The kernel itself asks again after
      ESTALE, as on NFS; those questions fail as well and are not counted. A getattr is part of every call
      with a path, not of stat only; fstat, which the kernel does not ask again, can fail 2 x times + 1 times.
    - ``estale_on_read``: one open file becomes stale: it can no more be read; opened anew, it can. What the
      kernel has in its page cache is not asked for and cannot fail.
    - ``slow_getattr``: the answer takes ``duration_s`` longer. One stat is one or two questions.
    - ``stale_getattr``: one path answers for ``duration_s`` what this mount answered last, although another
      client has changed it: the previous size and times, or that it is missing, or that it is still there.
      A change through the mount ends it, and what is read from a file is never stale (fstat is). A folder's
      own times and sizes are never stale. Nothing is stale that this mount was not asked about before.
    - ``rename_replayed`` (ENOENT), ``link_replayed`` (EEXIST), ``create_replayed`` (EEXIST for O_EXCL): it is
      done, but the caller hears what the repetition met, as when the server's first answer was lost.
    - ``enospc_on_write``, ``eio_on_fsync`` (files and folders): nothing is done.

``python -m tests.servers.nfs_like BACKING MOUNTPOINT`` serves in the foreground. It reads requests from
standard input, one JSON object a line. When that closes it unmounts and ends: a killed test leaves nothing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import functools
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from runtime.core.places import cache_root

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0
DOWNLOAD_DEADLINE_S = 120.0
FAULTS = (
    "estale_on_open",
    "estale_on_read",
    "estale_on_getattr",
    "slow_getattr",
    "stale_getattr",
    "rename_replayed",
    "link_replayed",
    "create_replayed",
    "enospc_on_write",
    "eio_on_fsync",
)
PACKAGES = ("libfuse3-4", "libfuse3-3")
"""Debian's, since 13 and until 12."""
OLDEST_LIBFUSE = 311
MNT_DETACH = 2
CAP_SYS_ADMIN = 1 << 21
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
"""utimensat's, in place of nanoseconds."""


class NfsLikeUnavailable(RuntimeError):
    """This machine cannot mount the folder; the message says why and what to do."""


# What a test uses


class NfsLike:
    """A mounted NFS-like folder: ``path`` is the mount, ``backing`` what another client would see."""

    def __init__(self, path: Path, backing: Path, pid: int, control: socket.socket) -> None:
        self.path = path
        self.backing = backing
        self.pid = pid
        self._answers = control.makefile("r")
        self._control = control
        self._lock = threading.Lock()

    def set_fault(self, name: str, times: int = 1, path_regex: str = "", duration_s: float = 1.0) -> None:
        """Let the next ``times`` occasions fail; replaces what was set under this name, 0 switches it off.

        Args:
            name: One of ``FAULTS``.
            times: How often. ``estale_on_read`` counts open files, ``stale_getattr`` counts paths.
            path_regex: Searched for in the path below the mount, such as ``/models/m``; of rename and link,
                in either of the two paths.
            duration_s: How much slower, or how long stale; ``slow_getattr`` and ``stale_getattr`` only.

        Raises:
            ValueError: there is no such fault, or ``path_regex`` is none.
        """
        fault = {"times": times, "path_regex": path_regex, "duration_s": duration_s}
        self._ask({"set": name, "fault": fault})

    def fired(self, name: str) -> int:
        """How often this fault has happened since the mount."""
        return int(self._ask({"fired": name})["fired"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            try:
                self._control.sendall(json.dumps(request).encode() + b"\n")
                line = self._answers.readline()
            except ConnectionError:
                line = ""
        if not line:
            raise RuntimeError(
                f"process {self.pid}, which serves {self.path}, has ended. Mount the folder anew."
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


@contextmanager
def nfs_like(backing: Path, mountpoint: Path, **faults: int | Mapping[str, Any]) -> Iterator[NfsLike]:
    """Mount ``backing`` at ``mountpoint`` (both made if missing); at exit, unmount and end the process.

    Args:
        backing: The folder behind the mount. Writing into it is what another client does.
        mountpoint: Where to mount it, outside ``backing``. Two mounts of one backing folder are two clients.
        faults: Set from the start: ``times``, or the arguments of ``set_fault``, such as
            ``slow_getattr={"times": 3, "duration_s": 0.2}``.

    Raises:
        NfsLikeUnavailable: see ``unavailable_reason``.
        ValueError: one of the folders lies in the other, or the mountpoint is in use.
        RuntimeError: it was not mounted in 20 s; the message has what the process wrote.
    """
    if reason := unavailable_reason():
        raise NfsLikeUnavailable(reason)
    for folder in (backing, mountpoint):
        folder.mkdir(parents=True, exist_ok=True)
    backing, mountpoint = backing.resolve(), mountpoint.resolve()
    if backing.is_relative_to(mountpoint) or mountpoint.is_relative_to(backing):
        raise ValueError(f"{mountpoint} over {backing} would ask itself for ever. Take folders side by side.")
    if is_mounted(mountpoint):
        raise ValueError(f"something is mounted at {mountpoint} already. Take another folder, or unmount it.")
    ours, its = socket.socketpair()
    command = [sys.executable, "-m", "tests.servers.nfs_like", str(backing), str(mountpoint)]
    environment = os.environ | {"FUSE_LIBRARY_PATH": str(ensure_libfuse()), "PYTHONPATH": str(ROOT)}
    with ours, tempfile.TemporaryFile() as log:
        with its:
            process = subprocess.Popen(command, stdin=its, stdout=its, stderr=log, env=environment)
        try:
            _wait_until_mounted(mountpoint, process, log)
            ours.settimeout(DEADLINE_S)
            mount = NfsLike(mountpoint, backing, process.pid, ours)
            for name, fault in faults.items():
                mount.set_fault(name, **(fault if isinstance(fault, Mapping) else {"times": fault}))
            yield mount
        finally:
            # Not close(): the reader of answers holds the socket open.
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            _end(process, mountpoint)


def _wait_until_mounted(mountpoint: Path, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_mounted(mountpoint):
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise RuntimeError(
                f"{mountpoint} was not mounted within {DEADLINE_S:.0f} s (exit status {process.returncode}). "
                f"The process wrote: {log.read().decode(errors='replace').strip() or 'nothing'}"
            )
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """Wait for the process, which unmounts when its input is closed; by force when it does not."""
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Killed, by us or by the test, it could not unmount; nobody answers there any more, so lazily.
    if is_mounted(mountpoint):
        _unmount(mountpoint, lazily=True)


# What the machine must have


@functools.cache
def unavailable_reason() -> str:
    """Why this machine cannot mount such a folder, with what to do; empty when it can.

    The first call may download libfuse 3 (0.1 MB).
    """
    if not sys.platform.startswith("linux"):
        return f"FUSE is used on Linux only, this is {sys.platform}. Run these tests on Linux."
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or closed to this user. Load the kernel module fuse, or run as root."
    if not importlib.util.find_spec("mfusepy"):
        return "mfusepy is not installed. Run the tests with the dev environment: make setup-dev."
    status = Path("/proc/self/status").read_text()
    may_mount = int(re.findall(r"CapEff:\s*(\w+)", status)[0], 16) & CAP_SYS_ADMIN
    if not may_mount and not shutil.which("fusermount3"):
        return (
            "this user may not mount, and there is no fusermount3. Run as root, or install the package fuse3."
        )
    found = _libfuse()
    return found if isinstance(found, str) else ""


def ensure_libfuse() -> Path | None:
    """libfuse 3: the system's (the library's name), else Debian's, unpacked into the cache folder.

    Nothing is installed. None when there is none to be had; ``unavailable_reason`` then says why. mfusepy
    would load libfuse 2 as well, but there (and before 3.11) a file opened at the moment at which it is
    replaced is not found: the library answers ENOENT, where with ESTALE the kernel would look again.
    """
    found = _libfuse()
    return None if isinstance(found, str) else found


@functools.cache
def _libfuse() -> Path | str:
    """Where libfuse 3 is, or why it is not."""
    advice = f"Install libfuse 3.11 or newer (Debian: {' or '.join(PACKAGES)})."
    name = ctypes.util.find_library("fuse3")
    if name and _is_recent(name):
        return Path(name)
    unpacked = cache_root() / "libfuse3"
    if not unpacked.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            return f"libfuse 3 is missing or too old, and without apt-get it cannot be fetched. {advice}"
        cache_root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_root(), prefix="libfuse3-") as scratch:
            try:
                fetch_libfuse(Path(scratch))
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
                why = f"{error} {' '.join(said[-1:])}"
                return f"libfuse 3 is missing or too old and was not fetched: {why} {advice}"
            # Fails when another process was faster; then its copy is used.
            with suppress(OSError):
                Path(scratch, "unpacked").rename(unpacked)
    libraries = [path for path in sorted(unpacked.rglob("libfuse3.so.*")) if _is_recent(str(path))]
    return libraries[0] if libraries else f"{unpacked} holds no libfuse 3.11 for this machine. {advice}"


def _is_recent(library: str) -> bool:
    try:
        return int(ctypes.CDLL(library).fuse_version()) >= OLDEST_LIBFUSE
    except (OSError, AttributeError):
        return False


def fetch_libfuse(scratch: Path, *options: str) -> None:
    """Download Debian's libfuse 3 and unpack it into ``scratch/unpacked``, without installing anything.

    Args:
        scratch: An empty folder, to be thrown away.
        options: More options of apt-get for the attempt with the system's own package lists.

    Raises:
        subprocess.SubprocessError: no such package, or no network.
    """
    own = ["-o", f"Dir::State::lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch / 'cache'}"]
    for folder in ("lists/partial", "cache/archives/partial", "unpacked"):
        (scratch / folder).mkdir(parents=True)
    run = functools.partial(
        subprocess.run, cwd=scratch, check=True, capture_output=True, timeout=DOWNLOAD_DEADLINE_S
    )
    try:
        _download(run, list(options))
    except subprocess.CalledProcessError:
        # The system's lists are empty (usual in container images) or older than the archive.
        run(["apt-get", "-qq", *own, "update"])
        _download(run, own)
    package = next(scratch.glob("libfuse3*.deb"))
    run(["dpkg-deb", "-x", str(package), "unpacked"])


def _download(run: Callable[[list[str]], Any], options: list[str]) -> None:
    newer, older = PACKAGES
    try:
        run(["apt-get", "-qq", *options, "download", newer])
    except subprocess.CalledProcessError:
        run(["apt-get", "-qq", *options, "download", older])


# Mounts


def is_mounted(mountpoint: Path) -> bool:
    """Whether something is mounted there, also when nobody serves it any more."""
    # os.path.ismount asks the server, and says no when that is dead.
    wanted = os.fsencode(mountpoint).replace(b" ", rb"\040")
    return any(
        line.split(b" ")[4] == wanted for line in Path("/proc/self/mountinfo").read_bytes().splitlines()
    )


def _unmount(mountpoint: Path, lazily: bool = False) -> None:
    """Unmount; lazily means at once for the name, and for the rest when the last open file is closed.

    Raises:
        OSError: EBUSY when files are open there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), MNT_DETACH if lazily else 0) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EPERM and (fusermount := shutil.which("fusermount3")):
        command = [fusermount, "-u", *(["-z"] if lazily else []), str(mountpoint)]
        number = errno.EBUSY if subprocess.run(command, capture_output=True).returncode else 0
    if number:
        raise OSError(number, os.strerror(number), str(mountpoint))


# The process that serves


@dataclass
class _Fault:
    times: int
    paths: re.Pattern[str]
    duration_s: float
    kernel_retries: Counter[tuple[int, str]] = field(default_factory=Counter)
    """By caller and path, the questions still to fail that belong to a call already counted."""
    hit: set[tuple[int, str]] = field(default_factory=set)
    stale_until: dict[str, float] = field(default_factory=dict)
    """By path, the moment (monotonic clock) from which on it is seen as it is."""


class _Faults:
    """The faults that are set, and how often each has happened. Safe to use from several threads."""

    def __init__(self, caller_id: Callable[[], int]) -> None:
        self._caller_id = caller_id
        self._lock = threading.Lock()
        self._set: dict[str, _Fault] = {}
        self.fired: Counter[str] = Counter()

    def set(self, name: str, times: int = 1, path_regex: str = "", duration_s: float = 1.0) -> None:
        """See ``NfsLike.set_fault``."""
        if name not in FAULTS:
            raise ValueError(f"there is no fault {name!r}. Choose one of: {', '.join(FAULTS)}.")
        try:
            pattern = re.compile(path_regex)
        except re.error as error:
            raise ValueError(f"path_regex {path_regex!r} is no regular expression: {error}.") from None
        with self._lock:
            self._set[name] = _Fault(times, pattern, duration_s)

    def happens(self, name: str, *paths: str) -> bool:
        """Whether this call is to fail; counts it."""
        with self._lock:
            fault = self._applicable(name, paths)
            return fault is not None and self._count(name, fault)

    def happens_to_caller(self, name: str, path: str, *, first_retries: int, retries: int) -> bool:
        """The same for ESTALE, after which the kernel asks again before its caller hears of it.

        ``first_retries`` times after the first call for this path, ``retries`` times after later ones.
        """
        with self._lock:
            fault = self._applicable(name, (path,))
            if fault is None:
                return False
            call = (self._caller_id(), path)
            if fault.kernel_retries[call] > 0:
                fault.kernel_retries[call] -= 1
                return True
            if not self._count(name, fault):
                return False
            fault.kernel_retries[call] = retries if call in fault.hit else first_retries
            fault.hit.add(call)
            return True

    def stays_stale(self, path: str) -> bool:
        """Whether ``stale_getattr`` hides a change of this path now."""
        with self._lock:
            fault = self._applicable("stale_getattr", (path,))
            if fault is None:
                return False
            if path not in fault.stale_until and self._count("stale_getattr", fault):
                fault.stale_until[path] = time.monotonic() + fault.duration_s
            return time.monotonic() < fault.stale_until.get(path, 0.0)

    def delay_s(self, path: str) -> float:
        with self._lock:
            fault = self._applicable("slow_getattr", (path,))
            return fault.duration_s if fault and self._count("slow_getattr", fault) else 0.0

    def _applicable(self, name: str, paths: tuple[str, ...]) -> _Fault | None:
        fault = self._set.get(name)
        return fault if fault and any(fault.paths.search(path) for path in paths) else None

    def _count(self, name: str, fault: _Fault) -> bool:
        if fault.times <= 0:
            return False
        fault.times -= 1
        self.fired[name] += 1
        return True


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


class _PassThrough:
    """FUSE's operations on the backing folder. Paths are those below the mount and begin with a slash.

    Operations on open files get no path when the name is gone meanwhile; we keep the one it was opened by.
    """

    use_ns = True
    """Times are whole nanoseconds."""

    def __init__(self, backing: Path, faults: _Faults) -> None:
        self._backing = str(backing)
        self._faults = faults
        self._opened_as: dict[int, str] = {}
        self._stale_handles: set[int] = set()
        self._last_seen: dict[str, os.stat_result | None] = {}
        """What each path was answered last; None: that it is missing."""

    def _local(self, path: str | None) -> Path:
        if path is None:
            _fail(errno.ESTALE)
        return Path(self._backing + path)

    def _changed(self, *paths: str) -> None:
        """This client changed these: its own changes it knows, so nothing of them is stale."""
        for path in paths:
            self._last_seen.pop(path, None)

    def _changed_below(self, *folders: str) -> None:
        below = tuple(f"{folder}/" for folder in folders)
        self._changed(*folders, *(path for path in list(self._last_seen) if path.startswith(below)))

    # Attributes

    def getattr(self, path: str | None, handle: int | None = None) -> dict[str, Any]:
        name = path if path is not None else self._opened_as[handle or 0]
        if delay_s := self._faults.delay_s(name):
            time.sleep(delay_s)
        # A name the kernel knew is asked for three times (to confirm it, to find it anew, and once more
        # because of ESTALE), a name it did not know twice; after ESTALE it knows the name no more. Three for
        # the first call leaves at most one over, which the kernel's own second try then hides.
        if self._faults.happens_to_caller("estale_on_getattr", name, first_retries=2, retries=1):
            _fail(errno.ESTALE)
        found = self._look_up(name) if handle is None else os.fstat(handle)
        if found is None:
            _fail(errno.ENOENT)
        times = {key: getattr(found, f"{key}_ns") for key in ("st_atime", "st_mtime", "st_ctime")}
        keys = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blocks")
        return times | {key: getattr(found, key) for key in keys}

    def _look_up(self, path: str) -> os.stat_result | None:
        try:
            now = os.lstat(self._local(path))
        except (FileNotFoundError, NotADirectoryError):
            now = None
        if path in self._last_seen:
            before = self._last_seen[path]
            if _differs(before, now) and self._faults.stays_stale(path):
                return before
        self._last_seen[path] = now
        return now

    def chmod(self, path: str, mode: int) -> int:
        self._local(path).chmod(mode)
        self._changed(path)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.lchown(self._local(path), uid, gid)
        self._changed(path)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        before = os.lstat(self._local(path))
        unchanged = (before.st_atime_ns, before.st_mtime_ns)
        wanted = times or (UTIME_NOW, UTIME_NOW)
        stands_for = [{UTIME_NOW: time.time_ns(), UTIME_OMIT: old} for old in unchanged]
        atime, mtime = (table.get(value, value) for table, value in zip(stands_for, wanted, strict=True))
        os.utime(self._local(path), ns=(atime, mtime), follow_symlinks=False)
        self._changed(path)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._local(path))
        return {key: getattr(found, key) for key in dir(found) if key.startswith("f_") and key != "f_fsid"}

    # Names

    def readdir(self, path: str, handle: int) -> Iterator[tuple[str, dict[str, int], int]]:
        folder = os.lstat(self._local(path))
        for name in (".", ".."):
            yield name, {"st_mode": folder.st_mode, "st_ino": folder.st_ino}, 0
        with os.scandir(self._local(path)) as entries:
            for entry in entries:
                kind = (
                    stat.S_IFLNK if entry.is_symlink() else stat.S_IFDIR if entry.is_dir() else stat.S_IFREG
                )
                yield entry.name, {"st_mode": kind, "st_ino": entry.inode()}, 0

    def mkdir(self, path: str, mode: int) -> int:
        self._local(path).mkdir(mode)
        self._changed(path)
        return 0

    def rmdir(self, path: str) -> int:
        self._local(path).rmdir()
        self._changed_below(path)
        return 0

    def unlink(self, path: str) -> int:
        self._local(path).unlink()
        self._changed(path)
        return 0

    def symlink(self, path: str, target: str) -> int:
        self._local(path).symlink_to(target)
        self._changed(path)
        return 0

    def readlink(self, path: str) -> str:
        # Path.readlink would normalise what was stored.
        return os.readlink(self._local(path))  # noqa: PTH115

    def rename(self, old: str, new: str) -> int:
        self._local(old).rename(self._local(new))
        self._changed_below(old, new)
        if self._faults.happens("rename_replayed", old, new):
            _fail(errno.ENOENT)
        return 0

    def link(self, path: str, existing: str) -> int:
        os.link(self._local(existing), self._local(path), follow_symlinks=False)
        self._changed(path, existing)
        if self._faults.happens("link_replayed", path, existing):
            _fail(errno.EEXIST)
        return 0

    def fsyncdir(self, path: str | None, datasync: int, handle: int) -> int:
        # Without a path the folder is gone, and nothing is left to make durable.
        if path is None:
            return 0
        if self._faults.happens("eio_on_fsync", path):
            _fail(errno.EIO)
        folder = os.open(self._local(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return 0

    # Files

    def create(self, path: str, mode: int, flags: int) -> int:
        handle = self._opened(path, flags | os.O_CREAT, mode)
        self._changed(path)
        if flags & os.O_EXCL and self._faults.happens("create_replayed", path):
            self.release(path, handle)
            _fail(errno.EEXIST)
        return handle

    def open(self, path: str, flags: int) -> int:
        # The kernel opens once more after ESTALE, whatever it knew.
        if self._faults.happens_to_caller("estale_on_open", path, first_retries=1, retries=1):
            _fail(errno.ESTALE)
        handle = self._opened(path, flags)
        if flags & os.O_TRUNC:
            self._changed(path)
        return handle

    def _opened(self, path: str, flags: int, mode: int = 0) -> int:
        # O_APPEND: an NFS client sends the offset. O_DIRECT: the kernel's affair; ours are plain buffers.
        handle = os.open(self._local(path), flags & ~(os.O_APPEND | os.O_DIRECT), mode)
        self._opened_as[handle] = path
        return handle

    def read(self, path: str | None, size: int, offset: int, handle: int) -> bytes:
        if handle in self._stale_handles:
            _fail(errno.ESTALE)
        if self._faults.happens("estale_on_read", self._opened_as[handle]):
            self._stale_handles.add(handle)
            _fail(errno.ESTALE)
        return os.pread(handle, size, offset)

    def write(self, path: str | None, data: bytes, offset: int, handle: int) -> int:
        if self._faults.happens("enospc_on_write", self._opened_as[handle]):
            _fail(errno.ENOSPC)
        written = os.pwrite(handle, data, offset)
        self._changed(self._opened_as[handle])
        return written

    def truncate(self, path: str | None, length: int, handle: int | None = None) -> int:
        if handle is not None:
            os.ftruncate(handle, length)
            self._changed(self._opened_as[handle])
        else:
            os.truncate(self._local(path), length)
            self._changed(path or "")
        return 0

    def fsync(self, path: str | None, datasync: int, handle: int) -> int:
        if self._faults.happens("eio_on_fsync", self._opened_as[handle]):
            _fail(errno.EIO)
        os.fdatasync(handle) if datasync else os.fsync(handle)
        return 0

    def release(self, path: str | None, handle: int) -> int:
        # Forget first: once closed, the number may be another file's.
        self._stale_handles.discard(handle)
        self._opened_as.pop(handle, None)
        os.close(handle)
        return 0

    # Defined, so that the kernel asks us instead of locking by itself.

    def flock(self, path: str | None, handle: int, operation: int) -> NoReturn:
        _fail(errno.ENOLCK)

    def lock(self, path: str | None, handle: int, command: int, lock: Any) -> NoReturn:
        _fail(errno.ENOLCK)


def _differs(before: os.stat_result | None, now: os.stat_result | None) -> bool:
    """Whether a stale answer would be another one."""
    if before is None or now is None:
        return before is not now
    if stat.S_ISDIR(before.st_mode) and stat.S_ISDIR(now.st_mode):
        return False
    keys = ("st_ino", "st_mode", "st_size", "st_mtime_ns")
    return any(getattr(before, key) != getattr(now, key) for key in keys)


def _answer_requests(faults: _Faults, mountpoint: Path) -> None:
    """Answer on standard output what is asked on standard input; unmount and end when that is closed.

    Requests: ``{"set": "estale_on_open", "fault": {"times": 2}}`` and ``{"fired": "estale_on_open"}``.
    """
    with suppress(ConnectionError):
        for line in sys.stdin:
            try:
                answer = _answer(faults, json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    _unmount_soon(mountpoint)
    os._exit(0)


def _answer(faults: _Faults, request: dict[str, Any]) -> dict[str, Any]:
    if "set" in request:
        faults.set(request["set"], **request["fault"])
        return {}
    return {"fired": faults.fired[request["fired"]]}


def _unmount_soon(mountpoint: Path, patience_s: float = 1.0) -> None:
    """Unmount; while files are open there, wait a moment, then cut them off."""
    deadline = time.monotonic() + patience_s
    while is_mounted(mountpoint):
        try:
            _unmount(mountpoint, lazily=time.monotonic() > deadline)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # A file just closed is released a moment later.
            time.sleep(0.02)


def main() -> None:
    """Serve: ``python -m tests.servers.nfs_like BACKING MOUNTPOINT``."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tests.servers.nfs_like BACKING MOUNTPOINT")
    backing, mountpoint = (Path(argument).resolve(strict=True) for argument in sys.argv[1:])
    if "FUSE_LIBRARY_PATH" not in os.environ:
        if reason := unavailable_reason():
            sys.exit(reason)
        os.environ["FUSE_LIBRARY_PATH"] = str(ensure_libfuse())
    # Loads libfuse when imported, so not before we know where it is.
    import mfusepy

    class Fuse(mfusepy.FUSE):
        """mfusepy's, with what it drops: rename's flags, truncate's handle, and locks on nameless files."""

        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
            # Without its flags, "do not replace" would replace.
            return -errno.EINVAL if flags else super().rename_fuse_3(old, new, flags)

        def truncate_fuse_3(self, path: bytes | None, length: int, info: Any) -> int:
            name = None if path is None else os.fsdecode(path)
            return self.operations.truncate(name, length, info.contents.fh if info else None)

        def flock(self, path: bytes | None, info: Any, operation: int) -> int:
            return -errno.ENOLCK

    faults = _Faults(caller_id=lambda: mfusepy.fuse_get_context()[2])
    threading.Thread(target=_answer_requests, args=(faults, mountpoint), daemon=True).start()
    # What a caller's umask takes off a mode, the kernel has taken off already.
    os.umask(0)
    Fuse(
        _PassThrough(backing, faults),
        str(mountpoint),
        foreground=True,
        fsname="nfs_like",
        # The kernel caches no names and no attributes: what is stale is decided here.
        entry_timeout=0,
        attr_timeout=0,
        negative_timeout=0,
        # No .fuse_hidden files, and a rename over an open file stays one call, without a moment of no file.
        hard_remove=True,
        # A file's links are then one file, as their numbers say.
        use_ino=True,
    )


if __name__ == "__main__":
    main()
