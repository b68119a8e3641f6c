"""``hf://org/name[@revision]``: models of the Hugging Face Hub, read through huggingface_hub.

Files lie in the Hub's own cache (``HF_HOME``); without a network, what is there is used. Read-only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from runtime.core.errors import Denied, NotFound, StorageError, Unreachable
from storage import backend
from storage.backend import Entry, Part, Unfinished
from storage.backends.file import File
from storage.patience import Transient, request_timeout_s

# huggingface_hub 2 speaks through httpx2, 1 (which the train environment has) through httpx.
_NO_ANSWER: tuple[type[Exception], ...] = tuple(
    importlib.import_module(name).TransportError
    for name in ("httpx", "httpx2")
    if importlib.util.find_spec(name)
)
_LOGIN = "Set HF_TOKEN (or run `hf auth login`), and accept the model's licence on its page."


class Options(backend.Options):
    """The Hub is configured by its own variables: ``HF_TOKEN``, ``HF_HOME``, ``HF_ENDPOINT``."""


def connect(root: str, options: Mapping[str, Any]) -> Hf:
    """The Hub. ``root`` is the organisation or user, the first part of a model's name."""
    return Hf(root)


class Hf(backend.Backend):
    """Models of one organisation or user; a key is ``name[@revision]/file``."""

    scheme = "hf"

    def __init__(self, organisation: str) -> None:
        self._organisation = organisation
        self._files = File()

    def uri(self, key: str) -> str:
        return f"hf://{self._organisation}/{key}".rstrip("/")

    def find(self, key: str) -> Iterator[Entry]:
        model, _, below = key.partition("/")
        return (entry for entry in self._listed(model) if not below or entry.key.startswith(f"{key}/"))

    def names(self, key: str) -> tuple[list[str], list[Entry]]:
        below = [(entry.key[len(key) + 1 :], entry) for entry in self.find(key)]
        folders = {name.partition("/")[0] for name, _ in below if "/" in name}
        return sorted(folders), [entry for name, entry in below if "/" not in name]

    def stat(self, key: str) -> Entry | None:
        model = key.partition("/")[0]
        return next((entry for entry in self._listed(model) if entry.key == key), None)

    def read(self, entry: Entry, start: int, size_bytes: int) -> Iterator[bytes]:
        path = str(self.local_path(entry.key))
        found = self._files.stat(path)
        if found is None:
            raise NotFound(f"{self.uri(entry.key)}: the Hub's cache lost {path}. Try again.")
        return self._files.read(found, start, size_bytes)

    def local_path(self, key: str) -> Path:
        model, _, file = key.partition("/")
        repository, revision = self._repository(model)
        with self._translated(model):
            return Path(hf_hub_download(repository, file, revision=revision)).resolve()

    def _repository(self, model: str) -> tuple[str, str | None]:
        name, _, revision = model.partition("@")
        return f"{self._organisation}/{name}", revision or None

    def _listed(self, model: str) -> list[Entry]:
        repository, revision = self._repository(model)
        with self._translated(model):
            try:
                # Without a time-out it would wait for ever.
                info = HfApi().model_info(
                    repository, revision=revision, files_metadata=True, timeout=request_timeout_s()
                )
            except (OfflineModeIsEnabled, *_NO_ANSWER):
                # What an earlier download left is a whole snapshot or it raises.
                folder = snapshot_download(repository, revision=revision, local_files_only=True)
                return [self._cached(model, Path(folder), file) for file in _files_below(Path(folder))]
        modified_s = info.last_modified.timestamp() if info.last_modified else 0.0
        files = sorted(info.siblings or [], key=lambda file: file.rfilename)
        return [
            Entry(f"{model}/{file.rfilename}", int(file.size or 0), _version(file), None, modified_s)
            for file in files
        ]

    def _cached(self, model: str, folder: Path, file: Path) -> Entry:
        # The Hub's cache links a snapshot's names to blobs, which are named by what they hold.
        found = file.stat()
        return Entry(
            f"{model}/{file.relative_to(folder)}", found.st_size, file.resolve().name, None, found.st_mtime
        )

    def write(self, key: str, part: Part, *, create_only: bool) -> None:
        self._refuse(key)

    def begin(self, key: str, size_bytes: int) -> str:
        self._refuse(key)

    def send(self, key: str, upload_id: str, part: Part) -> str:
        self._refuse(key)

    def knows(self, key: str, upload_id: str) -> bool:
        return False

    def finish(self, key: str, upload_id: str, tags: dict[int, str], *, size_bytes: int, crc32c: int) -> None:
        self._refuse(key)

    def give_up(self, key: str, upload_id: str) -> None:
        self._refuse(key)

    def unfinished(self, key: str) -> Iterator[Unfinished]:
        return iter(())

    def delete(self, key: str) -> None:
        self._refuse(key)

    def _refuse(self, key: str) -> NoReturn:
        raise StorageError(
            f"{self.uri(key)}: the Hub is only read here. To publish there, use `hf upload`; "
            "to keep the model, give a store's address."
        )

    @contextlib.contextmanager
    def _translated(self, model: str) -> Iterator[None]:
        uri = self.uri(model)
        try:
            yield
        except LocalEntryNotFoundError:
            raise Unreachable(
                f"{uri}: the Hub cannot be reached (or HF_HUB_OFFLINE is set), and its cache lacks the "
                "model. Download it once where there is a network, or copy it into the store and name it "
                "from there."
            ) from None
        except GatedRepoError:
            raise Denied(f"{uri}: the model is gated. {_LOGIN}") from None
        except RevisionNotFoundError:
            raise NotFound(
                f"{uri}: the Hub has the model, but no such revision. Correct what follows @."
            ) from None
        except RepositoryNotFoundError:
            raise NotFound(
                f"{uri}: the Hub has no such model, or it is private. Correct the name. {_LOGIN}"
            ) from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise Denied(f"{uri}: the Hub refuses us ({status}). {_LOGIN}") from None
            raise Transient(f"the Hub answered {status}") from None
        except _NO_ANSWER as error:
            raise Transient(f"the Hub did not answer ({type(error).__name__})") from None


def _version(file: Any) -> str | None:
    """What the Hub's cache names the file's blob by: the same with and without a network."""
    return str(file.lfs.sha256) if file.lfs else file.blob_id


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
