"""A path that the operating system refuses, in words: one that an option names, or Tandem's own."""

from __future__ import annotations

from pathlib import Path

from runtime.core.places import cache_root, file_cache, home


def path_in_words(error: OSError) -> str:
    """The path, why it cannot be used, and what to do. For errors that have a filename."""
    path = Path(str(error.filename))
    return (
        f"{path} cannot be used ({error.strerror}). {_named_by(path)}Choose another path, or see that this "
        "account may read and write there. Where it happened: tandem -v"
    )


def _named_by(path: Path) -> str:
    own = {"TANDEM_HOME": home(), "TANDEM_CACHE": cache_root(), "TANDEM_FILE_CACHE": file_cache()}
    for name, folder in own.items():
        # A folder that cannot be made is blamed on the one that it would lie in.
        if path.is_relative_to(folder) or folder.is_relative_to(path):
            return f"{name} says where: {folder}. "
    return ""
