"""The objects of the Kubernetes stand-in: kept, changed, deleted, and told to who watches."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.servers import kubernetes_fields as fields
from tests.servers import kubernetes_status as status
from tests.servers.kubernetes_kinds import KINDS, Kind

Json = dict[str, Any]
Key = tuple[str, str | None, str]
"""Kind, namespace, name."""


@dataclass
class Stored:
    """An object and who owns which of its fields."""

    kind: Kind
    body: Json
    owners: fields.Owners = field(default_factory=dict)

    def shown(self) -> Json:
        """As a GET gives it."""
        body = copy.deepcopy(self.body)
        body["metadata"]["managedFields"] = fields.managed_fields(self.owners, self.kind.api_version)
        return body


@dataclass(frozen=True)
class Event:
    """A change, for watches."""

    version: int
    type: str
    key: Key
    body: Json


class State:
    """All objects; every method may be called from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.kinds: list[Kind] = list(KINDS)
        self.objects: dict[Key, Stored] = {}
        self.events: list[Event] = []
        self.listeners: list[Callable[[], None]] = []
        self.refusals: dict[tuple[str, str], str] = {}
        """What an admission webhook says of (kind, name)."""
        self._version = 100

    def kind(self, api_version: str, plural: str) -> Kind:
        """The kind of a path."""
        for kind in self.kinds:
            if (kind.api_version, kind.plural) == (api_version, plural):
                return kind
        raise status.no_page()

    def named(self, name: str) -> Kind:
        """The kind of this name."""
        return next(kind for kind in self.kinds if kind.name == name)

    def get(self, kind: Kind, namespace: str | None, name: str) -> Stored:
        """The object; a refusal where there is none."""
        found = self.objects.get((kind.name, namespace if kind.namespaced else None, name))
        if found is None:
            raise status.not_found(kind.plural, name)
        return found

    def all(self, kind: Kind, namespace: str | None) -> Iterator[Stored]:
        """Objects of a kind."""
        for (name, place, _), stored in sorted(self.objects.items(), key=lambda one: str(one[0])):
            if name == kind.name and (namespace is None or place == namespace):
                yield stored

    def create(self, kind: Kind, namespace: str | None, body: Json, manager: str, *, dry_run: bool) -> Json:
        """POST."""
        name = body["metadata"]["name"]
        if (kind.name, namespace if kind.namespaced else None, name) in self.objects:
            raise status.already_exists(kind.plural, name)
        return self._keep(kind, namespace, body, fields.updated({}, body, {}, manager), dry_run=dry_run)

    def apply(
        self, kind: Kind, namespace: str | None, body: Json, manager: str, *, force: bool, dry_run: bool
    ) -> Json:
        """Server-side apply."""
        key = (kind.name, namespace if kind.namespaced else None, body["metadata"]["name"])
        old = self.objects.get(key)
        new, owners = fields.applied(
            old.body if old else None, old.owners if old else {}, body, manager, force=force
        )
        return self._keep(kind, namespace, new, owners, dry_run=dry_run)

    def patch(
        self,
        stored: Stored,
        change: Callable[[Json], Json],
        manager: str,
        *,
        dry_run: bool = False,
        subresource: str = "",
    ) -> Json:
        """Merge patch or JSON patch."""
        new = change(stored.body)
        wanted = new["metadata"].get("resourceVersion")
        if wanted not in (None, stored.body["metadata"]["resourceVersion"]):
            raise status.modified(stored.kind.plural, stored.body["metadata"]["name"])
        owners = fields.updated(stored.body, new, stored.owners, manager, subresource)
        return self._keep(stored.kind, stored.body["metadata"].get("namespace"), new, owners, dry_run=dry_run)

    def delete(self, stored: Stored, *, propagation: str = "Background") -> None:
        """DELETE: now, or once its finalizers are gone; its dependents and a namespace's objects with it."""
        metadata = stored.body["metadata"]
        if metadata.get("finalizers"):
            metadata.setdefault("deletionTimestamp", _now())
            self._tell("MODIFIED", stored)
            return
        self.objects.pop(_key(stored), None)
        self._tell("DELETED", stored)
        for other in list(self.objects.values()):
            of = [one["uid"] for one in other.body["metadata"].get("ownerReferences", [])]
            inside = (
                stored.kind.name == "Namespace"
                and other.body["metadata"].get("namespace") == metadata["name"]
            )
            if inside or (metadata["uid"] in of and propagation != "Orphan"):
                self.delete(other)

    def _keep(
        self, kind: Kind, namespace: str | None, body: Json, owners: fields.Owners, *, dry_run: bool
    ) -> Json:
        name = body["metadata"]["name"]
        self._check(kind, namespace, body)
        old = self.objects.get((kind.name, namespace if kind.namespaced else None, name))
        stored = Stored(kind, _with_metadata(kind, namespace, body, old.body if old else None), owners)
        if old and _same(old, stored):
            return old.shown()
        if not dry_run:
            self._store(stored, old)
        return stored.shown()

    def _store(self, stored: Stored, old: Stored | None) -> None:
        self.objects[_key(stored)] = stored
        self._tell("MODIFIED" if old else "ADDED", stored)
        metadata = stored.body["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self.delete(stored)

    def _check(self, kind: Kind, namespace: str | None, body: Json) -> None:
        name = body["metadata"]["name"]
        if kind.namespaced and ("Namespace", None, namespace) not in self.objects:
            raise status.not_found("namespaces", str(namespace))
        if not name.replace("-", "").replace(".", "").isalnum() or name != name.lower():
            raise status.invalid(
                kind.name, name, "metadata.name", "a lowercase RFC 1123 subdomain must consist of"
            )
        if (kind.name, name) in self.refusals:
            message = f'admission webhook "tests.local" denied the request: {self.refusals[kind.name, name]}'
            raise status.Refusal(400, "BadRequest", message)
        old = self.objects.get((kind.name, namespace if kind.namespaced else None, name))
        if kind.name == "PersistentVolumeClaim" and old and old.body.get("spec") != body.get("spec"):
            raise status.invalid(kind.name, name, "spec", "Forbidden: spec is immutable after creation")

    def _tell(self, type_: str, stored: Stored) -> None:
        self._version += 1
        stored.body["metadata"]["resourceVersion"] = str(self._version)
        self.events.append(Event(self._version, type_, _key(stored), stored.shown()))
        for listener in list(self.listeners):
            listener()

    @property
    def version(self) -> int:
        """The newest resourceVersion."""
        return self._version


def _key(stored: Stored) -> Key:
    metadata = stored.body["metadata"]
    return stored.kind.name, metadata.get("namespace") if stored.kind.namespaced else None, metadata["name"]


def _with_metadata(kind: Kind, namespace: str | None, body: Json, old: Json | None) -> Json:
    """What the server adds: a uid, a generation that counts changes of the spec."""
    body = copy.deepcopy(body)
    was = old["metadata"] if old else {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "generation": 0}
    body["metadata"].pop("managedFields", None)
    body["metadata"] |= {key: was[key] for key in ("uid", "creationTimestamp", "generation")}
    if "resourceVersion" in was:
        body["metadata"]["resourceVersion"] = was["resourceVersion"]
    if kind.namespaced:
        body["metadata"]["namespace"] = namespace
    if old is None or old.get("spec") != body.get("spec"):
        body["metadata"]["generation"] += 1
    return {"apiVersion": kind.api_version, "kind": kind.name, **body}


def _same(old: Stored, new: Stored) -> bool:
    return old.body == new.body and old.owners == new.owners


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
