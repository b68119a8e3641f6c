"""Model versions: published once, found by name or address, brought to a node through its cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError, Conflict
from runtime.core.log import get_logger
from runtime.core.lookup import did_you_mean
from storage import last_known
from storage.address import is_address
from storage.cache import node_cache, wanted_below, wanted_of
from storage.cached_folder import CachedFolder
from storage.commit import commit_folder, now, read_manifest
from storage.location import Location, delete_all, locate, side_by_side
from storage.manifest import MANIFEST_NAME, ModelManifest
from storage.names import check_name, next_version, version_key
from storage.transfer import Progress

_log = get_logger(__name__)

LATEST = "latest.json"
_CONFIG_OF: dict[Literal["full", "adapter"], str] = {"full": "config.json", "adapter": "adapter_config.json"}
"""What tells that a folder is a model."""
_REMOVED = "removed.json"
"""Left where a version was: its number never comes back with another content."""


@dataclass(frozen=True)
class ModelVersion:
    """One immutable version of a model, or a plain model folder anywhere."""

    name: str
    version: str | None
    place: Location
    """Where its manifest is; a plain folder: where its files are."""

    manifest: ModelManifest | None
    """None for a plain folder."""

    ref: str
    """``name/version``, or an address: what a spec's ``model`` takes."""

    plain_kind: Literal["full", "adapter"] = "full"
    """What a plain folder holds; of a version its manifest tells."""

    @property
    def uri(self) -> str:
        """Where its files are."""
        return self.files.uri

    @property
    def files(self) -> Location:
        """The folder that holds ``config.json``, weights and tokenizer."""
        prefix = self.manifest.prefix if self.manifest else ""
        return self.place / prefix if prefix else self.place

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA adapter, which is of no use without its base."""
        return (self.manifest.kind if self.manifest else self.plain_kind) == "adapter"

    @property
    def base(self) -> str | None:
        """The version that it was trained from, where that is known."""
        return self.manifest.base if self.manifest else None

    @property
    def revision(self) -> str | None:
        """Hash over all files; None for a plain folder."""
        return self.manifest.revision if self.manifest else None

    def config(self) -> dict[str, Any]:
        """The model's own ``config.json``; empty where there is none (an adapter)."""
        place = self.files / "config.json"
        return dict(last_known.answer(place.uri, place.read_json) or {})

    def fetch(self, *, progress: Progress | None = None) -> CachedFolder:
        """Its files as a folder of this node, for as long as the object that is returned lives.

        A plain folder of this machine is that folder itself; everything else comes through the node cache.

        Raises:
            StorageError: it cannot be had; names the address.
        """
        if self.manifest is not None:
            return node_cache().folder(
                wanted_of(self.manifest.files, self.files), label=self.ref, progress=progress
            )
        path = self.place.local_path() if self.place.backend.scheme == "file" else None
        if path is not None:
            return CachedFolder(path, None)
        return node_cache().folder(wanted_below(self.place), label=self.ref, progress=progress)


class Models:
    """The ``models/`` of a store."""

    def __init__(self, root: Location) -> None:
        self._root = root

    def all(self, name: str | None = None) -> list[ModelVersion]:
        """Every committed version, of one name or all, by name, then oldest first."""
        names = [name] if name else self._root.folders()
        places = [(one, version) for one in names for version in self._folders(one)]
        found = side_by_side(lambda pair: self._listed(*pair), places)
        return [version for version in found if version]

    def _folders(self, name: str) -> list[str]:
        return sorted((self._root / name).folders(), key=version_key)

    def _listed(self, name: str, version: str) -> ModelVersion | None:
        place = self._root / name / version
        manifest = read_manifest(place, ModelManifest)
        return ModelVersion(name, version, place, manifest, f"{name}/{version}") if manifest else None

    def _taken(self, name: str) -> list[str]:
        """Versions whose numbers are used up: committed ones, and removed ones."""
        marks = (MANIFEST_NAME, _REMOVED)
        folders = [self._root / name / version for version in self._folders(name)]
        used = side_by_side(lambda place: any((place / mark).stat() for mark in marks), folders)
        return [place.name for place, is_used in zip(folders, used, strict=True) if is_used]

    def get(self, ref: str, *, field: str) -> ModelVersion:
        """The version that ``ref`` means: a name, ``name/version``, a path or a URI.

        A store that cannot be reached is answered for by this node's cache, with a warning.

        Raises:
            ConfigError: there is none; names what exists.
        """
        if is_address(ref):
            return _by_address(ref, field)
        name, _, version = ref.partition("/")
        if not version:
            version = last_known.answer((self._root / name / LATEST).uri, lambda: self._latest(name))
        found = self._read(name, version) if version else None
        return found or self._refuse(ref, name, version, field)

    def _refuse(self, ref: str, name: str, version: str | None, field: str) -> ModelVersion:
        store, known = self._root.uri.removesuffix("/models"), self._root.folders()
        versions = [str(found.version) for found in self.all(name)] if name in known else []
        if not versions:
            named = [one for one in known if one != name]
            raise ConfigError(
                f"{field} is {ref!r}, but {store} has no model {name!r}. {did_you_mean(name, named)} "
                "A folder is given by its path, beginning with / or ./."
            )
        raise ConfigError(
            f"{field} is {ref!r}, but {name} has no version {version!r}. "
            f"{did_you_mean(version or '', versions)}"
        )

    def publish(
        self,
        folder: Path,
        name: str,
        *,
        version: str | None,
        draft: ModelManifest,
        progress: Progress | None = None,
    ) -> ModelVersion:
        """Commit ``folder`` as a version of ``name``, and let ``latest`` point to it.

        Raises:
            Conflict: the version exists; says who made it.
            ConfigError: the name cannot be one, or the folder holds no model.
        """
        check_name(name, field="publish.name")
        if not any((folder / file).is_file() for file in _CONFIG_OF.values()):
            raise ConfigError(
                f"{folder} holds no model: neither config.json nor adapter_config.json is there."
            )
        if version is not None:
            check_name(version, field="publish.version")
            return self._commit(folder, name, version, draft, progress)
        while True:
            candidate = next_version(self._taken(name))
            try:
                return self._commit(folder, name, candidate, draft, progress)
            except Conflict:
                # Somebody published the same number meanwhile: theirs stands, ours is the next.
                _log.info("%s/%s is taken; taking the next number", name, candidate)

    def _commit(
        self, folder: Path, name: str, version: str, draft: ModelManifest, progress: Progress | None
    ) -> ModelVersion:
        place = self._root / name / version
        if (place / _REMOVED).stat():
            raise Conflict(
                f"{name}/{version} existed and was removed; its number is not used again. Choose another "
                "version."
            )
        manifest = commit_folder(
            folder, place, draft.model_copy(update={"created_at": now()}), progress=progress
        )
        self._move_latest(name)
        return ModelVersion(name, version, place, manifest, f"{name}/{version}")

    def remove(self, ref: str) -> ModelVersion:
        """Remove one version; ``latest`` then points to the newest that is left.

        Raises:
            ConfigError: ``ref`` is not ``name/version``, or there is none.
        """
        name, _, version = ref.partition("/")
        if not version or is_address(ref):
            raise ConfigError(f"MODEL is {ref!r}. Name one version to remove, such as {name or 'name'}/v1.")
        found = self.get(ref, field="MODEL")
        (found.place / _REMOVED).write_json({"removed_at": now()})
        (found.place / MANIFEST_NAME).delete()
        self._move_latest(name)
        # One of the first layout has its files beside its manifest; the mark stays in either case.
        places = (found.place.at(entry) for entry in found.place.find())
        delete_all([place for place in places if place != found.place / _REMOVED])
        found.place.attempt(lambda: found.place.backend.remove_empty_folders(found.place.key))
        return found

    def _read(self, name: str, version: str) -> ModelVersion | None:
        place = self._root / name / version
        manifest = _manifest(place)
        return ModelVersion(name, version, place, manifest, f"{name}/{version}") if manifest else None

    def _latest(self, name: str) -> str | None:
        pointer = (self._root / name / LATEST).read_json()
        if pointer is not None:
            return str(pointer["version"])
        versions = self.all(name)
        return versions[-1].version if versions else None

    def _move_latest(self, name: str) -> None:
        """Point ``latest`` to the version committed last.

        Looks again after writing: of two publishers, the slower may have pointed back to its own.
        """
        pointed: str | None = ""
        while pointed != (newest := self._newest(name)):
            if newest is None:
                (self._root / name / LATEST).delete()
            else:
                (self._root / name / LATEST).write_json({"version": newest})
            pointed = newest

    def _newest(self, name: str) -> str | None:
        versions = self.all(name)
        # Versions come in counting order, and max keeps the first of equals: ask from the end.
        newest = max(
            reversed(versions), key=lambda v: v.manifest.created_at if v.manifest else "", default=None
        )
        return newest.version if newest else None


def _manifest(place: Location) -> ModelManifest | None:
    """The manifest at ``place``, or the one that was there when the store last answered."""
    found = last_known.answer(
        (place / MANIFEST_NAME).uri, lambda: _plain(read_manifest(place, ModelManifest))
    )
    return load_spec(ModelManifest, found) if found else None


def _plain(manifest: ModelManifest | None) -> dict[str, Any] | None:
    return manifest.model_dump(mode="json") if manifest else None


def _by_address(ref: str, field: str) -> ModelVersion:
    """A version, a model's name in any store, or a plain folder, by path or URI."""
    place = locate(ref, field=field)
    found = last_known.answer(place.uri, lambda: _described(place))
    if found is None:
        raise ConfigError(
            f"{field} is {ref!r}, but no config.json is there. Give the folder of a model, or a "
            "name that `tandem models` lists."
        )
    if "manifest" not in found:
        return ModelVersion(_name_from(place.key), None, place, None, place.uri, found["kind"])
    manifest = load_spec(ModelManifest, found["manifest"])
    if found["version"] is None:
        return ModelVersion(_name_from(place.key.rpartition("/")[0]), place.name, place, manifest, place.uri)
    version = place / found["version"]
    return ModelVersion(_name_from(place.key), version.name, version, manifest, version.uri)


def _described(place: Location) -> dict[str, Any] | None:
    """What is at an address, as plain data: a version, the latest version of a name, or a plain folder."""
    # Known by name is known by address too, also while the store is silent.
    if (manifest := _manifest(place)) is not None:
        return {"version": None, "manifest": _plain(manifest)}
    version = str(((place / LATEST).read_json() or {}).get("version", ""))
    if version and (manifest := _manifest(place / version)) is not None:
        return {"version": version, "manifest": _plain(manifest)}
    kinds = (kind for kind, name in _CONFIG_OF.items() if (place / name).stat())
    return next(({"kind": kind} for kind in kinds), None)


def _name_from(key: str) -> str:
    last = key.rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9._-]", "-", last).strip("._-") or "model"
