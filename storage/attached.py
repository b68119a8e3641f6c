"""Adapters attached to an app while it runs, and what each replica says it has loaded: small records in the
store, below ``serving/<app>/``.

An attachment stands above the spec's ``adapters`` of the same served name, until it is taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.core.config import ConfigModel, load_spec
from storage.commit import now
from storage.location import Location, delete_all, side_by_side
from storage.names import check_name
from storage.store import Store


class Attachment(ConfigModel):
    """What somebody wanted of one served name since the app was deployed."""

    model: str | None = None
    """Reference of the adapter, as a spec's ``adapters`` take it; None where it was removed."""

    at: str
    """UTC, ISO 8601: when it was wanted."""


def attach(store: Store, app: str, name: str, ref: str) -> Attachment:
    """Let the app's replicas serve the adapter ``ref`` under ``name``.

    Raises:
        ConfigError: ``name`` cannot be a name.
    """
    attachment = Attachment(model=ref, at=now())
    put_back(store, app, name, attachment)
    return attachment


def detach(store: Store, app: str, name: str) -> Attachment:
    """Let the app's replicas serve ``name`` no more, whether it was attached or the spec has it."""
    attachment = Attachment(at=now())
    put_back(store, app, name, attachment)
    return attachment


def put_back(store: Store, app: str, name: str, attachment: Attachment | None) -> None:
    """Write an attachment as it was; None leaves ``name`` to the spec again."""
    place = _adapters(store, app) / f"{check_name(name, field='the adapter')}.json"
    if attachment is None:
        place.delete()
    else:
        place.write_json(attachment.model_dump(mode="json"))


def listing(store: Store, app: str) -> dict[str, Attachment]:
    """The attachments of an app by served name, oldest first."""
    place = _adapters(store, app)
    found = side_by_side(lambda entry: (_stem(entry.key), place.at(entry).read_json()), place.names()[1])
    read = {name: load_spec(Attachment, plain) for name, plain in found if plain is not None}
    return dict(sorted(read.items(), key=lambda item: item[1].at))


def report(store: Store, app: str, replica_id: str, state: Mapping[str, Any]) -> None:
    """Say what a replica has loaded, and why not the rest."""
    (_replicas(store, app) / f"{replica_id}.json").write_json(dict(state))


def withdraw(store: Store, app: str, replica_id: str) -> None:
    """Forget a replica that ends."""
    (_replicas(store, app) / f"{replica_id}.json").delete()


def reports(store: Store, app: str) -> dict[str, dict[str, Any]]:
    """What replicas said last, by replica id; one that was killed leaves its own behind."""
    place = _replicas(store, app)
    found = side_by_side(lambda entry: (_stem(entry.key), place.at(entry).read_json()), place.names()[1])
    return {replica_id: dict(state) for replica_id, state in found if state is not None}


def clear(store: Store, app: str) -> None:
    """Forget all of an app that is gone."""
    places = (_adapters(store, app), _replicas(store, app))
    delete_all([place.at(entry) for place in places for entry in place.find()])


def _adapters(store: Store, app: str) -> Location:
    return store.root / "serving" / app / "adapters"


def _replicas(store: Store, app: str) -> Location:
    return store.root / "serving" / app / "replicas"


def _stem(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
