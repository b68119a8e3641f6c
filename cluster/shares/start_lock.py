"""One engine at a time starts on a card: each measures its memory while it does.

Two vLLM engines that start at once on one GPU take each other's bytes for their own (vllm#55827, #56830).
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from runtime.core.errors import ClusterError
from runtime.core.log import get_logger

_log = get_logger(__name__)

VARIABLE = "TANDEM_CARD_LOCKS"
"""Another folder for the locks: for those who do not share this machine's ``/tmp`` (containers), and for
tests."""

# Not $TMPDIR, which is another one for each user and job: a card is the same for all.
_FOLDER = "/tmp/tandem-cards"
_FOR_ALL = 0o1777
"""Everybody may add a lock, and nobody remove another's."""


@contextmanager
def alone_on(cards: Sequence[str], *, node_id: str) -> Iterator[None]:
    """Wait until no other process starts on any of the cards, and keep the others waiting.

    The kernel drops the locks when the process dies. They hold for all processes that see the same ``/tmp``,
    whichever user's and cluster's they are: all of a machine, but not those of other containers or pods,
    unless ``TANDEM_CARD_LOCKS`` names a folder that they share.

    Args:
        cards: Ids of the cards: UUIDs where there are, which are the same for every cluster.
        node_id: Tells the cards of several nodes on one machine apart that have no UUIDs.

    Raises:
        ClusterError: the folder of the locks is not there, and cannot be made or used.
    """
    names = [card if card.startswith(("GPU-", "MIG-")) else f"{node_id}-{card}" for card in cards]
    folder = Path(os.environ.get(VARIABLE) or _FOLDER)
    with ExitStack() as stack:
        # In one order for all, or two that want the same two cards could wait for each other.
        for name in sorted(set(names)):
            descriptor = _locked(folder, f"{name}.lock")
            stack.callback(os.close, descriptor)
            # Children that were forked meanwhile hold the descriptor open, and must not hold the lock.
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        yield


def _locked(folder: Path, name: str) -> int:
    """A descriptor that holds the lock."""
    try:
        directory = _open_folder(folder)
        try:
            while True:
                descriptor = _open(directory, name)
                _wait_for(descriptor)
                if _is_still(directory, name, descriptor):
                    return descriptor
                os.close(descriptor)
        finally:
            os.close(directory)
    except OSError as error:
        raise ClusterError(
            f"the lock of a card cannot be taken: {folder / name}: {error.strerror}. Engines start one at a "
            "time on a card, by locks in a folder of this machine that every user may write to. Remove what "
            f"stands in its way, or name another folder with {VARIABLE}, the same for all clusters here."
        ) from None


def _open_folder(folder: Path) -> int:
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
    # What is no folder itself but leads to one is somebody's trap.
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    found = os.fstat(directory)
    if found.st_uid == os.getuid() and found.st_mode & _FOR_ALL != _FOR_ALL:
        os.fchmod(directory, _FOR_ALL)  # a umask may have taken from it
    return directory


def _open(directory: int, name: str) -> int:
    """The lock's file, made when missing. It is opened for reading only, which is enough to lock it: another
    user's may not be written to."""
    while True:
        with suppress(FileNotFoundError):
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        # It comes with its mode, whatever the umask: nobody finds one that is not for all yet.
        new = f".{name}.{secrets.token_hex(4)}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory)
        try:
            os.fchmod(descriptor, 0o644)
            with suppress(FileExistsError):
                os.link(new, name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(descriptor)
            os.unlink(new, dir_fd=directory)


def _wait_for(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("waiting for another process, which starts on the same card")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_still(directory: int, name: str, descriptor: int) -> bool:
    """Whether the locked file is the one that others find: old files of ``/tmp`` may be tidied away."""
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))
