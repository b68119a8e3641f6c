"""``gs://bucket``: Google Cloud Storage, through Google's client; large files through its XML API.

The JSON API uploads a file in one sequence; the XML API's multipart upload sends parts side by side, each
verified by its CRC-32C, and goes on where it was cut. ``STORAGE_EMULATOR_HOST`` is honoured.
Source: https://cloud.google.com/storage/docs/multipart-uploads
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import google.auth
import requests
from google.api_core import exceptions
from google.auth import credentials as google_credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError, TransportError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.oauth2 import service_account

from runtime.core.errors import Corrupt, Denied, StorageError
from storage import backend, crc
from storage.backend import CHUNK_BYTES, Entry, Part, Unfinished, is_folder_marker
from storage.http_faults import body, fault, passing
from storage.patience import Transient, request_timeout_s

_SCOPES = ["https://www.googleapis.com/auth/devstorage.read_write"]
_PUBLIC = "https://storage.googleapis.com"
_CONNECTIONS = 32
_FIELDS = "items(name,size,generation,crc32c,updated),prefixes,nextPageToken"
_LOGIN = (
    "Set GOOGLE_APPLICATION_CREDENTIALS to a key file, run `gcloud auth application-default login`, or use "
    "Workload Identity, where the cluster runs too; the account needs the role Storage Object Admin on the "
    "bucket. For a public bucket set `anonymous: true` for its prefix in the workspace config."
)


class Options(backend.Options):
    """Settings for a ``gs://`` prefix."""

    endpoint_url: str | None = None
    """Another server that speaks Google's API. Default: ``$STORAGE_EMULATOR_HOST``, else Google."""

    credentials_file: str | None = None
    """A service account's key file. Default: Google's own search (Application Default Credentials)."""

    anonymous: bool = False
    """Ask without credentials: for public buckets and for test servers."""

    project: str | None = None
    """The project that pays, where a bucket makes its readers pay."""


def connect(root: str, options: Mapping[str, Any]) -> Gs:
    """The bucket ``root``.

    Raises:
        Denied: there are no credentials, or the key file cannot be read.
    """
    # Google's client would ask for the bucket's metadata beside every request, which the role Storage Object
    # Admin does not allow.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    return Gs(root, Options(**options))


def _credentials(options: Options, bucket: str, endpoint: str) -> google_credentials.Credentials:
    if options.anonymous:
        return google_credentials.AnonymousCredentials()
    try:
        if options.credentials_file:
            file = Path(options.credentials_file).expanduser()
            return service_account.Credentials.from_service_account_file(str(file), scopes=_SCOPES)
        found, _ = google.auth.default(scopes=_SCOPES)
        return found
    except (OSError, ValueError) as error:
        # The message may quote the file: only its kind is told.
        raise Denied(
            f"gs://{bucket}: the key file {options.credentials_file or '$GOOGLE_APPLICATION_CREDENTIALS'} "
            f"cannot be used ({type(error).__name__}). {_LOGIN}"
        ) from None
    except DefaultCredentialsError as error:
        if endpoint != _PUBLIC and not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            # An emulator needs none; Google's own client does the same.
            return google_credentials.AnonymousCredentials()
        raise Denied(
            f"gs://{bucket}: there are no Google credentials ({_first_line(error)}). {_LOGIN}"
        ) from None


def _endpoint(options: Options) -> str:
    """Where Google's API answers, without a slash at the end."""
    found = options.endpoint_url or os.environ.get("STORAGE_EMULATOR_HOST") or _PUBLIC
    return (found if "://" in found else f"http://{found}").rstrip("/")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:120].rstrip(".")


class Gs(backend.Backend):
    """One bucket."""

    scheme = "gs"

    def __init__(self, bucket: str, options: Options) -> None:
        self._name = bucket
        self._endpoint = _endpoint(options)
        credentials = _credentials(options, bucket, self._endpoint)
        self._session = AuthorizedSession(credentials)
        self._session.mount(self._endpoint, requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))
        if options.project:
            self._session.headers["x-goog-user-project"] = options.project
        client = storage.Client(
            project=options.project or "none",
            credentials=credentials,
            client_options={"api_endpoint": self._endpoint},
        )
        self._bucket = client.bucket(bucket, user_project=options.project)

    def uri(self, key: str) -> str:
        return f"gs://{self._name}/{key}".rstrip("/")

    def find(self, key: str) -> Iterator[Entry]:
        with self._translated(key):
            for blob in self._list(key, delimiter=None):
                if not is_folder_marker(blob.name):
                    yield _entry(blob)

    def names(self, key: str) -> tuple[list[str], list[Entry]]:
        with self._translated(key):
            listed = self._list(key, delimiter="/")
            files = [_entry(blob) for blob in listed if not is_folder_marker(blob.name)]
            folders = sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in listed.prefixes)
        return folders, files

    def _list(self, key: str, *, delimiter: str | None) -> Any:
        return self._bucket.client.list_blobs(
            self._bucket,
            prefix=f"{key}/" if key else None,
            delimiter=delimiter,
            fields=_FIELDS,
            retry=None,
            timeout=request_timeout_s(),
        )

    def stat(self, key: str) -> Entry | None:
        with self._translated(key):
            blob = self._bucket.get_blob(key, retry=None, timeout=request_timeout_s())
            if blob is None:
                # A missing bucket must not look like a missing object.
                next(iter(self._list(key, delimiter=None)), None)
            return _entry(blob) if blob else None

    def read(self, entry: Entry, start: int, size_bytes: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-{start + size_bytes - 1}", "Accept-Encoding": "identity"}
        answer = self._ask("GET", entry.key, {"generation": entry.version}, headers=headers, stream=True)
        with closing(answer):
            yield from body(answer.raw.read1, size_bytes)

    def write(self, key: str, part: Part, *, create_only: bool) -> None:
        data = part.read()
        # With the sum the store refuses what was spoilt: what only may be created must not be there spoilt.
        headers = {"x-goog-hash": f"crc32c={crc.to_base64(part.crc32c)}"}
        if create_only:
            headers["x-goog-if-generation-match"] = "0"
        answer = self._ask("PUT", key, {}, data=_sliced(data), headers=headers)
        self._check(key, part, answer)

    def begin(self, key: str, size_bytes: int) -> str:
        answer = self._ask("POST", key, {"uploads": None})
        return str(_text(_tree(answer), "UploadId"))

    def send(self, key: str, upload_id: str, part: Part) -> str:
        where = {"partNumber": str(part.number), "uploadId": upload_id}
        answer = self._ask("PUT", key, where, data=_Leaving(part))
        self._check(key, part, answer)
        return str(answer.headers["ETag"])

    def knows(self, key: str, upload_id: str) -> bool:
        answer = self._ask("GET", key, {"uploadId": upload_id, "max-parts": "1"}, fine=(404,))
        return answer.status_code != 404

    def finish(self, key: str, upload_id: str, tags: dict[int, str], *, size_bytes: int, crc32c: int) -> None:
        root = ElementTree.Element("CompleteMultipartUpload")
        for number, tag in sorted(tags.items()):
            part = ElementTree.SubElement(root, "Part")
            ElementTree.SubElement(part, "PartNumber").text = str(number)
            ElementTree.SubElement(part, "ETag").text = tag
        self._ask("POST", key, {"uploadId": upload_id}, data=ElementTree.tostring(root))
        found = self.stat(key)
        if found is None or (found.size_bytes, found.crc32c) != (size_bytes, crc32c):
            raise Corrupt(f"{self.uri(key)}: what the store put together is not what was sent.")

    def give_up(self, key: str, upload_id: str) -> None:
        self._ask("DELETE", key, {"uploadId": upload_id}, fine=(404,))

    def unfinished(self, key: str) -> Iterator[Unfinished]:
        marker: dict[str, str | None] = {}
        while True:
            answer = self._ask("GET", "", {"uploads": None, "prefix": f"{key}/" if key else "", **marker})
            root = _tree(answer)
            for upload in _all(root, "Upload"):
                began_s = datetime.fromisoformat(str(_text(upload, "Initiated"))).timestamp()
                yield Unfinished(str(_text(upload, "Key")), str(_text(upload, "UploadId")), began_s)
            if _text(root, "IsTruncated") != "true":
                return
            marker = {
                "key-marker": _text(root, "NextKeyMarker"),
                "upload-id-marker": _text(root, "NextUploadIdMarker"),
            }

    def delete(self, key: str) -> None:
        with self._translated(key):
            try:
                self._bucket.blob(key).delete(retry=None, timeout=request_timeout_s())
            except exceptions.NotFound:
                return

    def _ask(
        self,
        method: str,
        key: str,
        query: Mapping[str, str | None],
        *,
        fine: tuple[int, ...] = (),
        **more: Any,
    ) -> requests.Response:
        """One request of the XML API."""
        words = [name if value is None else urlencode({name: value}) for name, value in query.items()]
        url = f"{self._endpoint}/{self._name}/{quote(key, safe='/~')}" + (
            "?" + "&".join(words) if words else ""
        )
        with self._translated(key):
            answer = self._session.request(
                method, url, timeout=request_timeout_s(), max_allowed_time=None, **more
            )
            if answer.status_code >= 300 and answer.status_code not in fine:
                with closing(answer):
                    raise self._fault(key, answer)
        return answer

    def _fault(self, key: str, answer: requests.Response) -> Exception:
        text = answer.text
        code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("Code", "Message"))
        return fault(
            answer.status_code,
            code[1] if code else "",
            message[1] if message else "",
            uri=self.uri(key),
            login=_LOGIN,
            headers=answer.headers,
        )

    def _check(self, key: str, part: Part, answer: requests.Response) -> None:
        """Compare the sum that the store made of what arrived with ours of what we sent."""
        theirs = re.search(r"crc32c=([^,\s]+)", answer.headers.get("x-goog-hash", ""))
        if theirs is None:
            raise StorageError(
                f"{self.uri(key)}: the store gave no checksum of what it got. Is it Google's API?"
            )
        if crc.from_base64(theirs[1]) != part.crc32c:
            raise Transient("what the store got is not what was sent (its CRC-32C differs)")

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            with passing():
                yield
        except exceptions.GoogleAPICallError as error:
            first = error.errors[0] if error.errors and isinstance(error.errors[0], dict) else {}
            headers = error.response.headers if error.response is not None else {}
            reason, message = str(first.get("reason", "")), str(first.get("message") or error.message)
            raise fault(
                int(error.code or 0), reason, message, uri=self.uri(key), login=_LOGIN, headers=headers
            ) from None
        except RefreshError as error:
            if error.retryable or isinstance(error.args[0], TransportError):
                raise Transient("Google's sign-in has a fault") from None
            raise Denied(
                f"{self.uri(key)}: Google gives these credentials no token ({_first_line(error)}). {_LOGIN}"
            ) from None
        except (TransportError, exceptions.RetryError) as error:
            raise Transient(f"Google's sign-in did not answer ({type(error).__name__})") from None
        except GoogleAuthError as error:
            raise Denied(f"{self.uri(key)}: {_first_line(error)}. {_LOGIN}") from None


def _entry(blob: Any) -> Entry:
    known = crc.from_base64(blob.crc32c) if blob.crc32c else None
    return Entry(blob.name, int(blob.size), str(blob.generation), known, blob.updated.timestamp())


class _Leaving:
    """A part as a request's body, read while it leaves: nothing shows it before ``finish``."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __len__(self) -> int:
        return self._part.size_bytes

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._part)


class _Slices:
    """A request's body that leaves in slices: a socket's time-out is then for each, not for all of it."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, len(self._data), CHUNK_BYTES):
            yield self._data[start : start + CHUNK_BYTES]


def _sliced(data: bytes) -> bytes | _Slices:
    return _Slices(data) if len(data) > CHUNK_BYTES else data


def _tree(answer: requests.Response) -> ElementTree.Element:
    with passing():
        return ElementTree.fromstring(answer.content)


def _all(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == tag]


def _text(root: ElementTree.Element, tag: str) -> str | None:
    return next((element.text for element in _all(root, tag)), None)
