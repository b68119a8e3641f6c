"""``s3://bucket``: Amazon S3 and whatever speaks its protocol (MinIO, Ceph), through boto3.

Credentials come from the AWS chain: environment, profiles, web identity, instance metadata.
``AWS_ENDPOINT_URL`` is honoured. Parts carry their CRC-32C, which S3 verifies; where a server ignores it, the
part's ETag is compared with its MD5.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from runtime.core.errors import Denied, StorageError
from storage import backend, crc
from storage.backend import CHUNK_BYTES, Entry, Part, Unfinished, is_folder_marker
from storage.http_faults import GARBLED, body, fault, in_words, passing
from storage.patience import Transient, request_timeout_s

_CONNECTIONS = 32
_LOGIN = (
    "Give credentials the AWS way, where the cluster runs too: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE, or a role; they need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket. For a "
    "public bucket set `anonymous: true` for its prefix in the workspace config."
)


class Options(backend.Options):
    """Settings for an ``s3://`` prefix."""

    endpoint_url: str | None = None
    """Another server that speaks S3, such as MinIO. Default: ``$AWS_ENDPOINT_URL``, else Amazon."""

    region: str | None = None
    """The bucket's region. Default: the AWS configuration, else ``us-east-1``."""

    profile: str | None = None
    """A profile of the AWS configuration files: whose credentials to use."""

    anonymous: bool = False
    """Ask without credentials: for public buckets."""

    path_style: bool = False
    """Put the bucket into the path, not the host name. On by itself for an ``endpoint_url`` that is an
    IP address."""


def connect(root: str, options: Mapping[str, Any]) -> S3:
    """The bucket ``root``.

    Raises:
        Denied: the profile does not exist.
    """
    return S3(root, Options(**options))


class S3(backend.Backend):
    """One bucket."""

    scheme = "s3"
    stat_tells_more = True

    def __init__(self, bucket: str, options: Options) -> None:
        self._name = bucket
        self._options = options
        self._clients: dict[float, Any] = {}
        self._making = threading.Lock()
        try:
            self._session = boto3.session.Session(profile_name=options.profile)
            _ = self._client
        except ProfileNotFound:
            raise Denied(
                f"s3://{bucket}: the AWS configuration has no profile {options.profile!r}. Correct `profile` "
                "for this prefix in the workspace config, or add it with: aws configure --profile NAME."
            ) from None
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"s3://{bucket}: {error}. Correct the settings of this prefix.") from None

    @property
    def _client(self) -> Any:
        """The client whose time-outs fit our patience: boto3 has them by client, and makes those slowly."""
        timeout_s = request_timeout_s()
        with self._making:
            if timeout_s not in self._clients:
                self._clients[timeout_s] = self._new_client(timeout_s)
            return self._clients[timeout_s]

    def _new_client(self, timeout_s: float) -> Any:
        options = self._options
        config = Config(
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            max_pool_connections=_CONNECTIONS,
            # One attempt: see patience.py.
            retries={"total_max_attempts": 1, "mode": "standard"},
            # We send CRC-32C ourselves and compare what we read with it.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            signature_version=UNSIGNED if options.anonymous else None,
            s3={"addressing_style": "path"} if options.path_style else None,
        )
        region = options.region or self._session.region_name or "us-east-1"
        return self._session.client(
            "s3", endpoint_url=options.endpoint_url, region_name=region, config=config
        )

    def uri(self, key: str) -> str:
        return f"s3://{self._name}/{key}".rstrip("/")

    def find(self, key: str) -> Iterator[Entry]:
        with self._translated(key):
            for page in self._pages(key, {}):
                yield from _entries(page)

    def names(self, key: str) -> tuple[list[str], list[Entry]]:
        folders: list[str] = []
        files: list[Entry] = []
        with self._translated(key):
            for page in self._pages(key, {"Delimiter": "/"}):
                files += _entries(page)
                folders += [
                    p["Prefix"].rstrip("/").rpartition("/")[2] for p in page.get("CommonPrefixes", [])
                ]
        return sorted(folders), files

    def _pages(self, key: str, more: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2")
        yield from pages.paginate(Bucket=self._name, Prefix=f"{key}/" if key else "", **more)

    def stat(self, key: str) -> Entry | None:
        with self._translated(key):
            try:
                found = self._client.head_object(Bucket=self._name, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
                # HEAD has no body that tells a missing bucket from a missing object.
                self._client.list_objects_v2(Bucket=self._name, MaxKeys=1)
                return None
        modified_s = found["LastModified"].timestamp()
        return Entry(key, found["ContentLength"], found["ETag"], _crc32c(found), modified_s)

    def read(self, entry: Entry, start: int, size_bytes: int) -> Iterator[bytes]:
        is_whole = size_bytes == entry.size_bytes
        # With the whole object S3 sends its checksum, which listings lack: that saves a request.
        asked = (
            {"ChecksumMode": "ENABLED"} if is_whole else {"Range": f"bytes={start}-{start + size_bytes - 1}"}
        )
        if entry.version:
            asked["IfMatch"] = entry.version
        with self._translated(entry.key):
            answer = self._client.get_object(Bucket=self._name, Key=entry.key, **asked)
        with closing(answer["Body"]) as stream:
            # The raw stream, since StreamingBody.read waits until a whole chunk is there: a connection that
            # trickles would never be found out.
            chunks = body(stream._raw_stream.read1, size_bytes)
            yield from Part(1, start, size_bytes, chunks, _crc32c(answer) if is_whole else None)

    def write(self, key: str, part: Part, *, create_only: bool) -> None:
        data = _Body(part)
        condition = {"IfNoneMatch": "*"} if create_only else {}
        with self._translated(key):
            answer = self._client.put_object(
                Bucket=self._name,
                Key=key,
                Body=data,
                ChecksumCRC32C=crc.to_base64(part.crc32c),
                **condition,
            )
        self._check(data, part, answer)

    def begin(self, key: str, size_bytes: int) -> str:
        with self._translated(key):
            answer = self._client.create_multipart_upload(
                Bucket=self._name, Key=key, ChecksumAlgorithm="CRC32C", ChecksumType="FULL_OBJECT"
            )
        return str(answer["UploadId"])

    def send(self, key: str, upload_id: str, part: Part) -> str:
        data = _Body(part)
        with self._translated(key):
            answer = self._client.upload_part(
                Bucket=self._name,
                Key=key,
                UploadId=upload_id,
                PartNumber=part.number,
                Body=data,
                ChecksumCRC32C=crc.to_base64(part.crc32c),
            )
        self._check(data, part, answer)
        return f"{answer['ETag']} {crc.to_base64(part.crc32c)}"

    def _check(self, data: _Body, part: Part, answer: Mapping[str, Any]) -> None:
        """S3 has verified the CRC-32C that it repeats; of a server that does not, look at the MD5."""
        if answer.get("ChecksumCRC32C") == crc.to_base64(part.crc32c):
            return
        etag = str(answer.get("ETag", "")).strip('"')
        is_md5 = len(etag) == 32 and "SSEKMSKeyId" not in answer
        if is_md5 and hashlib.md5(data.getbuffer(), usedforsecurity=False).hexdigest() != etag:
            raise Transient("what the store got is not what was sent (its MD5 differs)")

    def knows(self, key: str, upload_id: str) -> bool:
        with self._translated(key):
            try:
                self._client.list_parts(Bucket=self._name, Key=key, UploadId=upload_id, MaxParts=1)
            except self._client.exceptions.NoSuchUpload:
                return False
        return True

    def finish(self, key: str, upload_id: str, tags: dict[int, str], *, size_bytes: int, crc32c: int) -> None:
        parts = []
        for number, tag in sorted(tags.items()):
            etag, _, part_crc = tag.partition(" ")
            parts.append({"PartNumber": number, "ETag": etag, "ChecksumCRC32C": part_crc})
        with self._translated(key):
            self._client.complete_multipart_upload(
                Bucket=self._name,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
                ChecksumCRC32C=crc.to_base64(crc32c),
                ChecksumType="FULL_OBJECT",
            )

    def give_up(self, key: str, upload_id: str) -> None:
        with self._translated(key):
            try:
                self._client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)
            except self._client.exceptions.NoSuchUpload:
                return

    def unfinished(self, key: str) -> Iterator[Unfinished]:
        with self._translated(key):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self._name, Prefix=f"{key}/" if key else ""):
                for upload in page.get("Uploads", []):
                    yield Unfinished(upload["Key"], upload["UploadId"], upload["Initiated"].timestamp())

    def delete(self, key: str) -> None:
        with self._translated(key):
            self._client.delete_object(Bucket=self._name, Key=key)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            with passing():
                yield
        except ClientError as error:
            answer, said = error.response.get("ResponseMetadata", {}), error.response.get("Error", {})
            raise fault(
                int(answer.get("HTTPStatusCode", 0)),
                str(said.get("Code", "")),
                str(said.get("Message", "")),
                uri=self.uri(key),
                login=_LOGIN,
                headers=answer.get("HTTPHeaders", {}),
            ) from None
        except (NoCredentialsError, PartialCredentialsError, TokenRetrievalError) as error:
            raise Denied(f"{self.uri(key)}: {error}. {_LOGIN}") from None
        except (HTTPClientError, ConnectionError) as error:
            # botocore's own text is the address; what happened is the error below.
            raise Transient(in_words(error.kwargs.get("error") or error)) from None
        except ResponseParserError:
            raise Transient(GARBLED) from None
        except BotoCoreError as error:
            raise StorageError(f"{self.uri(key)}: {error}. Correct the settings of this prefix.") from None


class _Body(io.BytesIO):
    """A request's body that leaves in slices: a socket's time-out is then for each, not for all of it."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.writelines(part)
        self.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        # urllib3 asks for 16 KiB, each of which would cost a call of the system.
        return super().read(size if size is None or size < 0 else max(size, CHUNK_BYTES))


def _crc32c(answer: Mapping[str, Any]) -> int | None:
    """The checksum of the whole. One of the parts' checksums, which ends in their count, is no use."""
    known = answer.get("ChecksumCRC32C")
    return crc.from_base64(known) if known and "-" not in known else None


def _entries(page: Mapping[str, Any]) -> list[Entry]:
    return [_entry(item) for item in page.get("Contents", []) if not is_folder_marker(item["Key"])]


def _entry(item: Mapping[str, Any]) -> Entry:
    return Entry(item["Key"], item["Size"], item["ETag"], None, item["LastModified"].timestamp())
