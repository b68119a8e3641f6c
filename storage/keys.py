"""API keys: one small record a key in a folder, a salted hash in place of the secret.

The folder is ``keys/`` of a store, or any other address: a mounted Kubernetes Secret holds the same files.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from runtime.core.config import ConfigModel, load_spec, parse_spec
from runtime.core.errors import ConfigError, Conflict, NotFound
from runtime.core.log import get_logger
from runtime.core.lookup import did_you_mean
from storage.backend import Entry
from storage.commit import now
from storage.location import Location, locate, side_by_side

_log = get_logger(__name__)
_SUFFIX = ".json"
_REVOKED = ".revoked"
"""Beside the record of a revoked key, which somebody could write anew who had read it before."""
_KEY = re.compile(r"tdm-([0-9a-f]{12})-([0-9a-f]{64})")

ALL_MODELS = "*"
"""In ``scopes.models``: every model, also those that come later."""


class Scopes(ConfigModel):
    """What a key opens."""

    models: tuple[str, ...] = Field((ALL_MODELS,), min_length=1)
    """Model names that requests may carry; ``*`` is all of them."""

    permissions: Literal["inference", "admin"] = "inference"
    """``admin`` opens the routes that change a replica or an app too."""


class KeyRecord(ConfigModel):
    """All that is kept of a key. It is no secret, but who can write it can let himself in."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    """The middle part of the key, and the name of the file."""

    name: str = Field(min_length=1, max_length=100)
    """For people: whose key it is."""

    salt: str = Field(pattern=r"^[0-9a-f]{32}$", repr=False)
    """16 random bytes, in hex."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    """Hash of salt and secret. The secret is 256 random bits, so a slow hash would protect nothing more."""

    scopes: Scopes = Scopes()
    """What it opens."""

    requests_per_minute: int | None = Field(None, ge=1)
    """Requests in any 60 s, over all apps. Unset: no limit."""

    tokens_per_minute: int | None = Field(None, ge=1)
    """Prompt and completion tokens in any 60 s, over all apps. Unset: no limit."""

    created_at: str
    """When it was created, or got its present secret."""

    revoked_at: str | None = None
    """Since when it opens nothing more."""

    def opens(self, secret: str) -> bool:
        """Whether ``secret`` is this key's; takes the same time whatever differs."""
        return hmac.compare_digest(_hash(self.salt, secret), self.sha256)

    def allows_model(self, model: str) -> bool:
        """Whether its scope has the model name."""
        return self.opens_all_models or model in self.scopes.models

    @property
    def opens_all_models(self) -> bool:
        """Whether the model of a request need not be looked at."""
        return ALL_MODELS in self.scopes.models


@dataclass(frozen=True)
class NewKey:
    """A key that has just been made: the only moment when its text is known."""

    record: KeyRecord
    text: str = field(repr=False)
    """``tdm-<key id>-<secret>``, to be shown once and kept nowhere."""


@dataclass(frozen=True)
class StoredKey:
    """A record, and the version of the object that held it."""

    record: KeyRecord
    version: str | None


def split_key(text: str) -> tuple[str, str] | None:
    """Key id and secret of a key's text; None where it is none."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


class Keys:
    """The keys in one folder."""

    def __init__(self, place: Location) -> None:
        self._place = place

    @property
    def uri(self) -> str:
        """Address of the folder."""
        return self._place.uri

    def create(
        self,
        name: str,
        *,
        scopes: Scopes = Scopes(),  # noqa: B008  frozen
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> NewKey:
        """Make a key and keep its record.

        Raises:
            ConfigError: the name or a limit cannot be one.
            StorageError: the folder cannot be written (a mounted Secret).
        """
        while True:
            key_id = secrets.token_hex(6)
            salt, secret = _fresh()
            fields = {
                "id": key_id,
                "name": name,
                "salt": salt,
                "sha256": _hash(salt, secret),
                "scopes": scopes,
                "requests_per_minute": requests_per_minute,
                "tokens_per_minute": tokens_per_minute,
                "created_at": now(),
            }
            record = load_spec(KeyRecord, fields)
            try:
                self._at(key_id).write_bytes(record.to_json().encode(), create_only=True)
            except Conflict:
                continue
            return NewKey(record, f"tdm-{key_id}-{secret}")

    def all(self) -> list[KeyRecord]:
        """Every key, revoked ones too, oldest first."""
        return sorted((stored.record for stored in self.read().values()), key=lambda key: key.created_at)

    def get(self, key_id: str) -> KeyRecord:
        """The record of a key id. A whole key is taken for its id.

        Raises:
            ConfigError: there is none; names those that are.
        """
        known = self.read()
        wanted = (split_key(key_id) or (key_id, ""))[0]
        if wanted not in known:
            # Not what was typed: it may be most of a key.
            shown = wanted if len(wanted) <= 16 else f"{wanted[:8]}..."
            raise ConfigError(
                f"ID is {shown!r}, but {self.uri} has no such key. {did_you_mean(wanted, known)} "
                "All of them: tandem keys ls"
            )
        return known[wanted].record

    def revoke(self, key_id: str) -> KeyRecord:
        """Let a key open nothing more; one that is revoked already stays as it is."""
        record = self.get(key_id)
        if record.revoked_at:
            return record
        # An object of its own first: somebody who rotates the key meanwhile writes the record after us.
        revoked_at = now()
        (self._place / (record.id + _REVOKED)).write_json({"revoked_at": revoked_at})
        return self._replace(record, revoked_at=revoked_at)

    def rotate(self, key_id: str) -> NewKey:
        """Give a key a new secret; the old one opens nothing more. Id, name, scopes and limits stay.

        Raises:
            ConfigError: it was revoked.
        """
        record = self.get(key_id)
        if record.revoked_at:
            raise ConfigError(
                f"ID is {record.id!r}, which was revoked at {record.revoked_at}. Create a new key instead: "
                f"tandem keys create {record.name}"
            )
        salt, secret = _fresh()
        changed = self._replace(record, salt=salt, sha256=_hash(salt, secret), created_at=now())
        return NewKey(changed, f"tdm-{record.id}-{secret}")

    def read(self, known: Mapping[str, StoredKey] | None = None) -> dict[str, StoredKey]:
        """Every key by its id.

        Args:
            known: What an earlier call returned: records that did not change since are not read again.

        Raises:
            StorageError: the folder or a record cannot be read now.
        """
        _, entries = self._place.names()
        before = known or {}
        found = side_by_side(lambda entry: self._stored(entry, before), filter(_is_record, entries))
        read = {stored.record.id: stored for stored in found if stored}
        marks = (self._place.at(entry) for entry in entries if entry.key.endswith(_REVOKED))
        for mark in marks:
            key_id = mark.name.removesuffix(_REVOKED)
            if key_id in read and not read[key_id].record.revoked_at:
                at = str((mark.read_json() or {}).get("revoked_at", "an unknown time"))
                read[key_id] = StoredKey(read[key_id].record.model_copy(update={"revoked_at": at}), None)
        return read

    def _stored(self, entry: Entry, known: Mapping[str, StoredKey]) -> StoredKey | None:
        place = self._place.at(entry)
        old = known.get(place.name.removesuffix(_SUFFIX))
        if old and old.version is not None and old.version == entry.version:
            return old
        try:
            record = parse_spec(KeyRecord, place.read_bytes().decode(), origin=place.uri)
        except NotFound:
            return None
        except (ConfigError, UnicodeDecodeError) as error:
            # One bad file must not shut all others out.
            _log.warning("%s is no key record and is left out: %s", place.uri, error)
            return None
        if place.name != record.id + _SUFFIX:
            _log.warning("%s holds the key %s and is left out: its name must be the id", place.uri, record.id)
            return None
        return StoredKey(record, entry.version)

    def _replace(self, record: KeyRecord, **changes: str) -> KeyRecord:
        changed = record.model_copy(update=changes)
        self._at(record.id).write_bytes(changed.to_json().encode())
        return changed

    def _at(self, key_id: str) -> Location:
        return self._place / (key_id + _SUFFIX)


def keys_in(root: Location, folder: str | None = None) -> Keys:
    """The keys of the store at ``root``, or those in ``folder``, a path or an address.

    Raises:
        ConfigError: the address is malformed.
    """
    return Keys(root / "keys" if folder is None else locate(folder, field="keys"))


def _is_record(entry: Entry) -> bool:
    return entry.key.endswith(_SUFFIX)


def _fresh() -> tuple[str, str]:
    return secrets.token_hex(16), secrets.token_hex(32)


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest()
