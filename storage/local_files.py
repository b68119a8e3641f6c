"""Files and folders of this machine's disk that appear all at once. The store's own are in ``commit``."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.core.errors import StorageError

_BLOCK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` to ``path`` in one step: no reader ever sees a part of it."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with scratch.open("w") as file:
            json.dump(data, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A scratch folder beside ``final`` that becomes ``final`` when the block ends well.

    Raises:
        StorageError: ``final`` exists already, also when somebody else made it meanwhile.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    scratch.mkdir()
    try:
        yield scratch
        # rename(2) would replace an existing folder that is empty, so ours is never empty: callers
        # write at least a manifest before this line.
        scratch.rename(final)
    except FileExistsError:
        raise StorageError(f"{final} exists already and is immutable. Choose another name.") from None
    except OSError as error:
        if final.exists():
            raise StorageError(f"{final} exists already and is immutable. Choose another name.") from None
        raise StorageError(f"{final} could not be written: {error}. Check space and rights.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
