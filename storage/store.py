"""The store: one root address that holds ``models/``, ``datasets/`` and ``runs/``, wherever it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.core.errors import ConfigError, StorageError
from storage.address import is_address
from storage.datasets import Dataset, Datasets
from storage.location import Location, locate
from storage.manifest import ModelManifest
from storage.models import Models, ModelVersion
from storage.names import check_name
from storage.runs import RunFolder, Runs
from storage.transfer import Progress
from storage.workspace import default_store

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class Store:
    """Models, datasets and runs below one root. Get one from :func:`open_store`."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self.uri = root.uri
        self._models = Models(root / "models")
        self._datasets = Datasets(root / "datasets")
        self._runs = Runs(root / "runs")

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def locate(self, text: str) -> Location:
        """The place of a name in this store (``models/m/v1``), or of an address anywhere."""
        if is_address(text):
            return locate(text)
        parts = [part for part in text.split("/") if part]
        if ".." in parts:
            raise ConfigError(f"{text!r} leads out of the store. Write a name in it, or a full address.")
        return Location(self.root.backend, "/".join([*([self.root.key] if self.root.key else []), *parts]))

    def filesystem(self) -> AbstractFileSystem:
        """This store as an fsspec filesystem, for pandas, pyarrow, datasets and Ray Data."""
        from storage.fsspec_door import TandemFileSystem

        return TandemFileSystem(self)

    # models

    def models(self, name: str | None = None) -> list[ModelVersion]:
        """Every committed version, of one name or all, by name, then oldest version first."""
        return self._models.all(name)

    def model(self, ref: str, *, field: str = "model") -> ModelVersion:
        """The version that ``ref`` means: ``name`` (the latest), ``name/version``, a path, or any URI.

        Raises:
            ConfigError: there is none; names what exists.
        """
        return self._models.get(ref, field=field)

    def publish_model(
        self,
        folder: Path,
        name: str,
        *,
        kind: Literal["full", "adapter"] = "full",
        base: str | None = None,
        base_revision: str | None = None,
        template: str | None = None,
        run: str | None = None,
        version: str | None = None,
        llamafactory: Mapping[str, Any] | None = None,
        stage: str | None = None,
        finetuning_type: str | None = None,
        merged: bool = False,
        metrics: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> ModelVersion:
        """Copy ``folder`` into the store as a new version and let ``latest`` point to it.

        Args:
            folder: Weights, config and tokenizer. Copied, not moved.
            name: The model's name.
            version: Default: ``v1``, ``v2``, and so on.

        Raises:
            ConfigError: ``name`` or ``version`` cannot be a name, or ``folder`` holds no model.
            Conflict: the version exists already; says who committed it.
            StorageError: it could not be written; nothing is half-written.
        """
        draft = ModelManifest(
            created_at="",
            kind=kind,
            base=base,
            base_revision=base_revision,
            template=template,
            run=run,
            llamafactory=dict(llamafactory or {}),
            stage=stage,
            finetuning_type=finetuning_type,
            merged=merged,
            metrics=dict(metrics or {}),
        )
        return self._models.publish(folder, name, version=version, draft=draft, progress=progress)

    def publish_from(self, source: str, name: str, **manifest: Any) -> ModelVersion:
        """Commit the model at a path or an address (``gs://``, ``s3://``, ``hf://``), through the node cache.

        Args:
            manifest: As ``publish_model`` has them; ``kind`` and ``base`` follow the source.

        Raises:
            ConfigError: no model is there.
        """
        if not is_address(source):
            raise ConfigError(
                f"SOURCE is {source!r}. Give a folder by its path, beginning with / or ./, or an address."
            )
        model = self.model(source, field="SOURCE")
        manifest = {"kind": "adapter" if model.is_adapter else "full", "base": model.base} | manifest
        with model.fetch(progress=manifest.get("progress")) as folder:
            return self.publish_model(folder.path, name, **manifest)

    def remove_model(self, ref: str) -> ModelVersion:
        """Remove one version, ``name/version``. Whether somebody serves it is the caller's to look at."""
        return self._models.remove(ref)

    # datasets

    def datasets(self) -> list[Dataset]:
        """Every dataset, by name."""
        return self._datasets.all()

    def dataset(self, name: str, *, field: str = "dataset") -> Dataset:
        """The dataset ``name``.

        Raises:
            ConfigError: it is not registered; names what is.
        """
        return self._datasets.get(name, field=field)

    def add_dataset(
        self,
        name: str,
        source: Iterable[Mapping[str, Any]] | str | Path | Sequence[str],
        *,
        info: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Dataset:
        """Register rows, or files and folders by path or address, under ``name``; every row is checked.

        Args:
            source: Rows (alpaca, or what ``info`` says); or one or several of: a json, jsonl, csv or parquet
                file, a folder of them, a ``gs://`` or ``s3://`` address of either.
            info: The entry in LLaMA-Factory's ``dataset_info.json``, where the rows alone do not tell.

        Raises:
            ConfigError: names the first bad row, its value and the remedy.
            Conflict: the dataset exists already.
        """
        check_name(name, field="dataset name")
        if isinstance(source, str | Path):
            return self._datasets.add(name, [str(source)], info=info, progress=progress)
        items = list(source)
        if items and all(isinstance(item, str) for item in items):
            return self._datasets.add(name, [str(item) for item in items], info=info, progress=progress)
        return self._datasets.add_rows(name, items, info)  # type: ignore[arg-type]

    def remove_dataset(self, name: str) -> None:
        """Remove a dataset."""
        self._datasets.remove(name)

    # runs

    def new_run(self, name: str, spec_json: str, *, run_id: str | None = None) -> RunFolder:
        """A fresh run folder that holds the resolved spec.

        Args:
            run_id: ``<name>-<8 hex digits>``. Default: a new one.
        """
        return self._runs.new(check_name(name, field="name"), spec_json, run_id=run_id)

    def runs(self, name: str | None = None) -> list[RunFolder]:
        """Runs of ``name``, or all, oldest first."""
        return self._runs.all(name)

    def run(self, run_id: str) -> RunFolder:
        """The run with this id, or the newest run of a name.

        Raises:
            ConfigError: there is none; names what exists.
        """
        return self._runs.get(run_id)


def open_store(uri: str | None = None) -> Store:
    """The store at ``uri``, else at ``$TANDEM_STORE``, else the workspace config's, else ``~/.tandem/store``.

    Raises:
        ConfigError: no backend knows the scheme of the address, or the address cannot be a store.
        StorageError: a local folder cannot be made; an object store has no credentials.
    """
    text = uri or default_store()
    root = locate(text, field="the store")
    if root.backend.scheme == "hf":
        raise ConfigError(
            f"the store is {text!r}, but the Hub is only read here. Give a folder, gs:// or s3://."
        )
    path = root.local_path() if root.backend.scheme == "file" else None
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the store {text!r} cannot be used: {error.strerror}. Choose a folder that you may write, "
                "with --store or TANDEM_STORE."
            ) from None
    return Store(root)
