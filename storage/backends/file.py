"""``file://`` and plain paths: a folder of this machine, or a mount that every node has at the same path."""

from __future__ import annotations

from pathlib import Path

from runtime.core.errors import StorageError


def root_folder(address: str) -> Path:
    """The folder at ``address`` (a path, ``~`` allowed, or ``file:///...``), absolute, made if missing.

    Raises:
        StorageError: it cannot be made.
    """
    folder = Path(address.removeprefix("file://")).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the store {address!r} cannot be used: {error.strerror}. Choose a folder that you may write, "
            "with --store or TANDEM_STORE."
        ) from None
    return folder
