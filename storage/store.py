"""The store: one root address that holds ``models/``, ``datasets/`` and ``runs/``."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from runtime.core.config import load_spec
from runtime.core.errors import ConfigError, StorageError
from runtime.core.lookup import did_you_mean, load
from storage import backends
from storage.commit import new_folder, write_json
from storage.datasets import Dataset, write_dataset
from storage.manifest import MANIFEST_NAME, Manifest, entries_of
from storage.names import check_name, next_version, version_key
from storage.runs import RunFolder, list_runs, new_run

_LATEST = "latest.json"


@dataclass(frozen=True)
class ModelVersion:
    """One immutable version of a model, or a plain model folder that is in no store."""

    name: str
    version: str | None
    path: Path
    """Holds ``config.json``, weights and tokenizer."""

    manifest: Manifest | None
    """None for a plain folder."""

    @property
    def ref(self) -> str:
        """``name/version``, or the folder's path: what a spec's ``model`` takes."""
        return f"{self.name}/{self.version}" if self.version else str(self.path)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA adapter, which is of no use without its base."""
        return self.manifest is not None and self.manifest.kind == "adapter"

    @property
    def base(self) -> str | None:
        """The version that it was trained from, where that is known."""
        return self.manifest.base if self.manifest else None

    def config(self) -> dict[str, Any]:
        """The model's own ``config.json``; empty where there is none (an adapter)."""
        file = self.path / "config.json"
        return dict(json.loads(file.read_text())) if file.is_file() else {}


class Store:
    """Models, datasets and runs below one root. Get one from :func:`open_store`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    # models

    def models(self) -> list[ModelVersion]:
        """Every committed version, by name, then oldest version first."""
        return [self._version(name, v) for name in self._names("models") for v in self._versions(name)]

    def model(self, ref: str, *, field: str = "model") -> ModelVersion:
        """The version that ``ref`` means: ``name`` (the latest), ``name/version``, or a folder's path.

        Raises:
            ConfigError: there is none; names what exists.
        """
        if ref.startswith(("/", "./", "../", "~")):
            return _plain_folder(Path(ref).expanduser().absolute(), field)
        name, _, version = ref.partition("/")
        known = self._names("models")
        if name not in known:
            raise ConfigError(
                f"{field} is {ref!r}, but {self.uri} has no model {name!r}. {did_you_mean(name, known)} "
                "A folder is given by its path, beginning with / or ./."
            )
        versions = self._versions(name)
        if not version:
            return self._version(name, self._latest(name))
        if version not in versions:
            raise ConfigError(
                f"{field} is {ref!r}, but {name} has no version {version!r}. "
                f"{did_you_mean(version, versions)}"
            )
        return self._version(name, version)

    def publish_model(
        self,
        folder: Path,
        name: str,
        *,
        kind: Literal["full", "adapter"] = "full",
        base: str | None = None,
        template: str | None = None,
        run: str | None = None,
        version: str | None = None,
    ) -> ModelVersion:
        """Copy ``folder`` into the store as a new version and let ``latest`` point to it.

        Args:
            folder: Weights, config and tokenizer. Copied, not moved.
            name: The model's name.
            version: Default: ``v1``, ``v2``, and so on.

        Raises:
            ConfigError: ``name`` or ``version`` cannot be a name, or ``folder`` holds no model.
            StorageError: the version exists already, or could not be written; nothing is half-written.
        """
        check_name(name, field="publish.name")
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ConfigError(
                f"{folder} holds no model: neither config.json nor adapter_config.json is there."
            )
        if version is not None:
            check_name(version, field="publish.version")
            return self._commit(folder, name, version, kind, base, template, run)
        while True:
            candidate = next_version(self._versions(name))
            try:
                return self._commit(folder, name, candidate, kind, base, template, run)
            except StorageError:
                # Somebody published the same number meanwhile: theirs stands, ours is the next.
                if candidate not in self._versions(name):
                    raise

    # datasets

    def datasets(self) -> list[Dataset]:
        """Every dataset, by name."""
        return [Dataset(name, self.root / "datasets" / name) for name in self._names("datasets")]

    def dataset(self, name: str, *, field: str = "dataset") -> Dataset:
        """The dataset ``name``.

        Raises:
            ConfigError: it is not registered; names what is.
        """
        known = self._names("datasets")
        if name not in known:
            raise ConfigError(
                f"{field} is {name!r}, but {self.uri} has no such dataset. {did_you_mean(name, known)}"
            )
        return Dataset(name, self.root / "datasets" / name)

    def add_dataset(
        self, name: str, rows: Iterable[Mapping[str, Any]], *, info: Mapping[str, Any] | None = None
    ) -> Dataset:
        """Register ``rows`` (alpaca, or what ``info`` says in LLaMA-Factory's words) under ``name``."""
        check_name(name, field="dataset name")
        return write_dataset(self.root / "datasets" / name, rows, info)

    # runs

    def new_run(self, name: str, spec_json: str) -> RunFolder:
        """A fresh run folder that holds the resolved spec."""
        return new_run(self.root / "runs", check_name(name, field="name"), spec_json)

    def runs(self, name: str | None = None) -> list[RunFolder]:
        """Runs of ``name``, or all, oldest first."""
        return list_runs(self.root / "runs", name)

    def run(self, run_id: str) -> RunFolder:
        """The run with this id, or the newest run of a name.

        Raises:
            ConfigError: there is none; names what exists.
        """
        runs = self.runs()
        chosen = [run for run in runs if run_id in (run.run_id, run.name)]
        if not chosen:
            known = [run.run_id for run in runs]
            raise ConfigError(f"run {run_id!r} is not in {self.uri}. {did_you_mean(run_id, known)}")
        return chosen[-1]

    def _names(self, kind: str) -> list[str]:
        folder = self.root / kind
        if not folder.is_dir():
            return []
        return sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))

    def _versions(self, name: str) -> list[str]:
        manifests = (self.root / "models" / name).glob(f"*/{MANIFEST_NAME}")
        return sorted((m.parent.name for m in manifests if m.parent.name[0] != "."), key=version_key)

    def _latest(self, name: str) -> str:
        try:
            return str(json.loads((self.root / "models" / name / _LATEST).read_text())["version"])
        except FileNotFoundError:
            versions = self._versions(name)
            if not versions:
                raise ConfigError(f"model {name!r} has no committed version in {self.uri}.") from None
            return versions[-1]

    def _commit(
        self,
        folder: Path,
        name: str,
        version: str,
        kind: Literal["full", "adapter"],
        base: str | None,
        template: str | None,
        run: str | None,
    ) -> ModelVersion:
        with new_folder(self.root / "models" / name / version) as scratch:
            shutil.copytree(folder, scratch, dirs_exist_ok=True)
            manifest = Manifest(
                kind=kind,
                base=base,
                template=template,
                run=run,
                created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
                files=entries_of(scratch),
            )
            (scratch / MANIFEST_NAME).write_text(manifest.to_json())
        self._move_latest(name)
        return self._version(name, version)

    def _move_latest(self, name: str) -> None:
        """Point ``latest`` to the version committed last.

        Looks again after writing: of two publishers, the slower may have pointed back to its own.
        """
        pointed = None
        while pointed != (newest := self._newest(name)):
            write_json(self.root / "models" / name / _LATEST, {"version": newest})
            pointed = newest

    def _newest(self, name: str) -> str:
        versions = [self._version(name, version) for version in self._versions(name)]
        # Versions come in counting order, and max keeps the first of equals: ask from the end.
        return str(max(reversed(versions), key=lambda v: v.manifest.created_at if v.manifest else "").version)

    def _version(self, name: str, version: str) -> ModelVersion:
        path = self.root / "models" / name / version
        return ModelVersion(name, version, path, load_spec(Manifest, path / MANIFEST_NAME))


def _plain_folder(path: Path, field: str) -> ModelVersion:
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{field} is {str(path)!r}, but no config.json is there. Give the folder of a model, or a "
            "name that `tandem models` lists."
        )
    name = re.sub(r"[^a-z0-9._-]", "-", path.name.lower()).strip("._-") or "model"
    return ModelVersion(name, None, path, None)


def open_store(uri: str | None = None) -> Store:
    """The store at ``uri``, else at ``$TANDEM_STORE``, else ``~/.tandem/store``.

    Raises:
        ConfigError: no backend knows the scheme of the address.
    """
    address = uri or os.environ.get("TANDEM_STORE") or "~/.tandem/store"
    scheme = address.partition("://")[0] if "://" in address else "file"
    backend = load(backends, scheme, field=f"the store {address!r}: its scheme")
    root: Path = backend.root_folder(address)
    return Store(root)
