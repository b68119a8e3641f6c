"""The store as an fsspec filesystem: pandas, pyarrow, datasets and Ray Data read and write it by address.

``pandas.read_json(store.filesystem().open("runs/r/r-.../metrics.jsonl"), lines=True)``; with Tandem
installed, ``fsspec.open("tandem://datasets/...")`` too. Names are relative to the store.
"""

from __future__ import annotations

import io
from typing import Any

from fsspec import AbstractFileSystem

from storage.backend import Entry
from storage.location import Location
from storage.store import Store, open_store


class TandemFileSystem(AbstractFileSystem):
    """One store, whatever holds it.

    Args:
        store: Its address, or the store itself. Default: as ``open_store``.
    """

    protocol = "tandem"
    root_marker = ""
    # A store may change behind our back; asking again is what the caller expects.
    cachable = False

    def __init__(self, store: str | Store | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._store = store if isinstance(store, Store) else open_store(store)

    def _place(self, path: str) -> Location:
        return self._store.locate(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is directly in the folder ``path``; the file itself where it is one."""
        stem = self._strip_protocol(path).rstrip("/")
        place = self._place(stem)
        folders, files = place.names()
        found = [{"name": _join(stem, name), "size": 0, "type": "directory"} for name in folders]
        found += [_described(_join(stem, entry.key.rpartition("/")[2]), entry) for entry in files]
        if not found:
            entry = place.stat() if stem else None
            if entry is None and stem:
                raise FileNotFoundError(place.uri)
            found = [_described(stem, entry)] if entry else []
        return found if detail else [one["name"] for one in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Size and kind of one file or folder."""
        stem = self._strip_protocol(path).rstrip("/")
        entry = self._place(stem).stat() if stem else None
        if entry:
            return _described(stem, entry)
        if stem and not any(self._place(stem).names()):
            raise FileNotFoundError(self._place(stem).uri)
        return {"name": stem, "size": 0, "type": "directory"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of a file, or of a range of it."""
        place = self._place(path)
        entry = place.stat()
        if entry is None:
            raise FileNotFoundError(place.uri)
        first, last, _ = slice(start, end).indices(entry.size_bytes)
        length = max(0, last - first)
        return place.attempt(lambda: b"".join(place.backend.read(entry, first, length))) if length else b""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file, all at once; ``mode="create"`` refuses to replace one."""
        self._place(path).write_bytes(value, create_only=mode == "create")

    def rm_file(self, path: str) -> None:
        """Remove one file."""
        self._place(path).delete()

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.IOBase:
        if mode in ("rb", "r"):
            # Small files are read whole; large ones belong to storage.transfer and the node cache.
            return io.BytesIO(self.cat_file(path))
        if mode in ("wb", "w", "xb"):
            return _Writer(self._place(path), create_only=mode == "xb")
        raise ValueError(f"mode is {mode!r}. A store's files are written whole: use rb, wb or xb.")


class _Writer(io.BytesIO):
    """Collects a file and puts it in its place when it is closed, unless the block that wrote it failed."""

    def __init__(self, place: Location, *, create_only: bool) -> None:
        super().__init__()
        self._place, self._create_only = place, create_only

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            super().close()
        super().__exit__(kind, *rest)

    def close(self) -> None:
        if not self.closed:
            self._place.write_bytes(self.getvalue(), create_only=self._create_only)
        super().close()


def _join(stem: str, name: str) -> str:
    return f"{stem}/{name}" if stem else name


def _described(name: str, entry: Entry) -> dict[str, Any]:
    return {"name": name, "size": entry.size_bytes, "type": "file", "mtime": entry.modified_s}
