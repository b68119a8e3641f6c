"""Addresses: what a person may write for a place, and its parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.core.errors import ConfigError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL | re.IGNORECASE)
# A secret may hold slashes (AWS's do), so what stands before the first one need not end in @.
_CREDENTIALS = re.compile(r"://(?:[^/]*@|[^/[]*:[^/]*[^/\d])")
_ALIASES = {"gcs": "gs"}


@dataclass(frozen=True)
class Address:
    """A place: ``gs://bucket/a/b`` is scheme ``gs``, root ``bucket``, key ``a/b``."""

    scheme: str
    root: str
    """The bucket; empty for files."""
    key: str
    """For files the absolute path."""

    @property
    def uri(self) -> str:
        """The address in one spelling; a file's is its path."""
        return self.key if self.scheme == "file" else f"{self.scheme}://{self.root}/{self.key}".rstrip("/")


def is_address(text: str) -> bool:
    """Whether ``text`` is an address by itself: a URI or a path, and not a name within a store."""
    return bool(_SCHEME.match(text)) or text in (".", "..") or text.startswith(("/", "./", "../", "~"))


def holds_credentials(text: str) -> bool:
    """Whether a user or a password is written into a URI."""
    return bool(_CREDENTIALS.search(text))


def parse(text: str, *, field: str = "the address") -> Address:
    """The parts of a URI or a path; a path becomes absolute.

    Raises:
        ConfigError: the bucket is missing, ``..`` is in a URI, or it holds a password. The password is not
            repeated.
    """
    found = _SCHEME.match(text)
    if found is None or found[1].lower() == "file":
        return Address("file", "", _path(found[2] if found else text, text, field))
    scheme, rest = found[1].lower(), found[2]
    scheme = _ALIASES.get(scheme, scheme)
    root, _, key = rest.partition("/")
    if holds_credentials(text):
        raise ConfigError(
            f"{field} {scheme}://*** holds credentials, which would be stored and shown. Leave them out, and "
            "give them the way of the store: environment, profile or key file."
        )
    if "?" in rest.partition("#")[0] and scheme != "hf":
        raise ConfigError(f"{field} {scheme}://{root}/... ends in a query (?...). Give the plain address.")
    if not root:
        raise ConfigError(f"{field} is {text!r}, which names no bucket. Write {scheme}://BUCKET/FOLDER.")
    parts = [part for part in key.split("/") if part]
    if ".." in parts or "." in parts:
        raise ConfigError(
            f"{field} is {text!r}: '.' and '..' mean nothing in a store. Write the plain address."
        )
    return Address(scheme, root, "/".join(parts))


def _path(path: str, text: str, field: str) -> str:
    if not path:
        raise ConfigError(f"{field} is {text!r}, which names no folder.")
    return str(Path(path).expanduser().absolute())
