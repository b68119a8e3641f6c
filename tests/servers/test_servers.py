"""The stand-in servers and the proxy do to real clients what the tests of storage take for granted."""

from __future__ import annotations

import base64
import io
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boto3
import crc32c
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.oauth2 import service_account

from tests.servers.fixtures import (
    gcs_server,
    make_gs_bucket,
    make_s3_bucket,
    s3_server,
    service_account_file,
)
from tests.servers.proxy import TRICKLE_S, Fault, FaultProxy

MIB = 1024 * 1024
# A slash, a space, letters beyond ASCII, and what has a meaning in URLs.
NAME = "models/größe 7b+%2F?&#/v1.bin"
SCOPES = ["https://www.googleapis.com/auth/devstorage.read_write"]


def crc_of(data: bytes) -> str:
    return base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()


def status_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    response = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


@pytest.fixture(scope="module")
def gcs_url() -> Iterator[str]:
    with gcs_server() as url:
        make_gs_bucket(url, "first")
        yield url


@pytest.fixture(scope="module")
def gcs(gcs_url: str) -> storage.Client:
    return gcs_client(gcs_url)


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with s3_server() as url:
        make_s3_bucket(url, "first")
        yield url


@pytest.fixture(scope="module")
def s3(s3_url: str) -> Any:
    return s3_client(s3_url)


@pytest.fixture
def proxy(gcs_url: str) -> Iterator[FaultProxy]:
    with FaultProxy(gcs_url) as proxy:
        yield proxy


@pytest.fixture
def stored(gcs_url: str) -> bytes:
    """What lies at ``first/stored``: 200 kB that are not the same twice."""
    data = os.urandom(200_000)
    requests.put(f"{gcs_url}/first/stored", data=data).raise_for_status()
    return data


def gcs_client(url: str, credentials: Any = None) -> storage.Client:
    return storage.Client(
        project="tandem-test",
        credentials=credentials or AnonymousCredentials(),
        client_options={"api_endpoint": url},
    )


def s3_client(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def test_google_client_writes_reads_and_verifies_awkward_names(gcs: storage.Client):
    blob = gcs.bucket("first").blob(NAME)
    blob.upload_from_string(b"0123456789", content_type="text/x-test", if_generation_match=0)
    found = gcs.bucket("first").get_blob(NAME)
    assert found and (found.size, found.content_type, found.crc32c) == (
        10, "text/x-test", crc_of(b"0123456789"),
    )  # fmt: skip
    assert abs(time.time() - found.updated.timestamp()) < 60
    assert found.download_as_bytes() == b"0123456789"
    assert found.download_as_bytes(start=3, end=5) == b"345"
    with pytest.raises(exceptions.PreconditionFailed):
        blob.upload_from_string(b"later", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        blob.delete(if_generation_match=found.generation + 1)
    blob.delete(if_generation_match=found.generation)
    assert gcs.bucket("first").get_blob(NAME) is None


def test_google_client_uploads_in_chunks_and_composes(gcs: storage.Client):
    data, bucket = os.urandom(3 * MIB + 17), gcs.bucket("first")
    chunked = bucket.blob("chunked", chunk_size=MIB)
    chunked.upload_from_file(io.BytesIO(data), if_generation_match=0)
    assert chunked.crc32c == crc_of(data) and chunked.md5_hash
    composed = bucket.blob("composed")
    composed.compose([chunked, chunked])
    composed.reload()
    assert (composed.component_count, composed.md5_hash, composed.crc32c) == (2, None, crc_of(data + data))
    assert composed.download_as_bytes() == data + data
    copied = bucket.copy_blob(composed, bucket, "copied")
    assert copied.generation > composed.generation and copied.crc32c == composed.crc32c


def test_google_client_lists_in_pages_with_folders_and_deletes_in_batches(gcs: storage.Client, gcs_url: str):
    make_gs_bucket(gcs_url, "listed")
    bucket = gcs.bucket("listed")
    for name in ("a/1", "a/2", "a/b/3", "a0", "z/4", "z/5", "zz"):
        bucket.blob(name).upload_from_string(b"")
    fields = "items(name),prefixes,nextPageToken"
    pages = list(gcs.list_blobs("listed", delimiter="/", page_size=2, fields=fields).pages)
    assert [page.num_items for page in pages] == [1, 1]
    assert [page.prefixes for page in pages] == [("a/",), ("z/",)]
    inside = gcs.list_blobs("listed", prefix="a/", delimiter="/", page_size=1)
    assert [blob.name for blob in inside] == ["a/1", "a/2"] and inside.prefixes == {"a/b/"}
    everything = list(gcs.list_blobs("listed", page_size=3))
    with gcs.batch():
        for blob in everything:
            blob.delete()
    assert len(everything) == 7 and list(gcs.list_blobs("listed")) == []


def test_gcs_refuses_what_is_not_what_its_checksum_says(gcs: storage.Client, gcs_url: str):
    blob = gcs.bucket("first").blob("spoilt")
    blob.crc32c = crc_of(b"something else")
    with pytest.raises(exceptions.BadRequest, match="CRC32C"):
        blob.upload_from_string(b"something", checksum=None)
    headers = {"x-goog-hash": f"crc32c={crc_of(b'something else')}"}
    answer = requests.put(f"{gcs_url}/first/spoilt", data=b"something", headers=headers)
    assert answer.status_code == 400 and "<Code>BadDigest</Code>" in answer.text
    assert gcs.bucket("first").get_blob("spoilt") is None


def test_gcs_says_what_is_missing_and_what_is_forbidden(gcs: storage.Client, gcs_url: str):
    with pytest.raises(exceptions.NotFound, match="No such object: first/nothing"):
        gcs.bucket("first").blob("nothing").download_as_bytes()
    with pytest.raises(exceptions.NotFound, match="bucket does not exist"):
        list(gcs.list_blobs("missing-bucket"))
    with pytest.raises(exceptions.Forbidden):
        list(gcs.list_blobs("forbidden"))
    codes = [
        (answer.status_code, re.findall("<Code>(.*)</Code>", answer.text))
        for answer in (
            requests.get(f"{gcs_url}/{place}/x") for place in ("first", "missing-bucket", "forbidden")
        )
    ]
    assert codes == [(404, ["NoSuchKey"]), (404, ["NoSuchBucket"]), (403, ["AccessDenied"])]


def test_a_service_account_gets_a_token_and_others_do_not(tmp_path: Path):
    with gcs_server(require_token=True) as url:
        make_gs_bucket(url, "first")
        good, bad = (
            service_account.Credentials.from_service_account_file(
                str(service_account_file(tmp_path, url, **who)), scopes=SCOPES
            )
            for who in ({}, {"email": "stranger@tandem.test"})
        )
        gcs_client(url, good).bucket("first").blob("x").upload_from_string(b"mine")
        assert AuthorizedSession(good).get(f"{url}/first/x").content == b"mine"
        refused = requests.get(f"{url}/storage/v1/b/first/o/x"), requests.get(f"{url}/first/x")
        assert [answer.status_code for answer in refused] == [401, 401]
        assert refused[0].json()["error"]["errors"][0]["reason"] == "authError"
        assert "<Code>AuthenticationRequired</Code>" in refused[1].text
        with pytest.raises(RefreshError, match="invalid_grant"):
            AuthorizedSession(bad).get(f"{url}/first/x")


def test_gcs_puts_parts_together_by_the_xml_api(gcs: storage.Client, gcs_url: str):
    place, parts = f"{gcs_url}/first/by%20parts", [os.urandom(5 * MIB), b"the end"]
    begun = requests.post(f"{place}?uploads")
    upload_id = ElementTree.fromstring(begun.content).findtext("{*}UploadId")
    at = f"{place}?uploadId={upload_id}"
    sent = [requests.put(f"{at}&partNumber={n}", data=data) for n, data in enumerate(parts, 1)]
    assert all(
        f"crc32c={crc_of(data)},md5=" in s.headers["x-goog-hash"] for s, data in zip(sent, parts, strict=True)
    )
    numbers = ElementTree.fromstring(requests.get(at).content).iterfind("{*}Part/{*}PartNumber")
    assert [number.text for number in numbers] == ["1", "2"]
    listed = ElementTree.fromstring(requests.get(f"{gcs_url}/first?uploads&prefix=by").content)
    assert [found.text for found in listed.iterfind("{*}Upload/{*}UploadId")] == [upload_id]

    body = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>{answer.headers['ETag']}</ETag></Part>"
        for n, answer in enumerate(sent, 1)
    )
    complete = f"<CompleteMultipartUpload>{body}</CompleteMultipartUpload>"
    assert requests.post(at, data=complete).status_code == 200
    found = gcs.bucket("first").get_blob("by parts")
    assert found and (found.md5_hash, found.crc32c) == (None, crc_of(b"".join(parts)))
    again = requests.post(at, data=complete)
    assert again.status_code == 404 and "<Code>NoSuchUpload</Code>" in again.text


def test_gcs_xml_conditions_aborts_and_generations(gcs_url: str):
    place, only_new = f"{gcs_url}/first/conditions", {"x-goog-if-generation-match": "0"}
    first = requests.put(place, data=b"one", headers=only_new)
    assert requests.put(place, data=b"two", headers=only_new).status_code == 412
    begun = requests.post(f"{place}?uploads")
    at = f"{place}?uploadId={ElementTree.fromstring(begun.content).findtext('{*}UploadId')}"
    etag = requests.put(f"{at}&partNumber=1", data=b"three").headers["ETag"]
    part = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
    complete = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>"
    assert requests.post(at, data=complete, headers=only_new).status_code == 412
    assert requests.delete(at).status_code == 204
    assert requests.put(f"{at}&partNumber=2", data=b"late").status_code == 404

    pinned = f"{place}?generation={first.headers['x-goog-generation']}"
    ranged = requests.get(pinned, headers={"Range": "bytes=1-"})
    assert (ranged.status_code, ranged.content, ranged.headers["Content-Range"]) == (
        206,
        b"ne",
        "bytes 1-2/3",
    )
    requests.put(place, data=b"four")
    assert requests.get(pinned).status_code == 404
    assert requests.head(place).headers["x-goog-stored-content-length"] == "4"
    assert requests.get(place, headers={"Range": "bytes=4-"}).status_code == 416


def test_of_many_creators_one_wins(gcs_url: str, s3: Any):
    def create_gs(number: int) -> int:
        headers = {"x-goog-if-generation-match": "0"}
        return requests.put(f"{gcs_url}/first/race", data=f"{number}", headers=headers).status_code

    def create_s3(number: int) -> int:
        try:
            s3.put_object(Bucket="first", Key="race", Body=f"{number}".encode(), IfNoneMatch="*")
            return 200
        except ClientError as error:
            return int(error.response["ResponseMetadata"]["HTTPStatusCode"])

    for create in (create_gs, create_s3):
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(create, range(8))) == [200] + [412] * 7


def test_s3_verifies_and_keeps_the_checksums_it_is_given(s3: Any):
    kept = s3.put_object(Bucket="first", Key=NAME, Body=b"body", ChecksumCRC32C=crc_of(b"body"))
    assert kept["ChecksumCRC32C"] == crc_of(b"body")
    found = s3.get_object(Bucket="first", Key=NAME, ChecksumMode="ENABLED")
    assert (found["Body"].read(), found["ChecksumCRC32C"]) == (b"body", crc_of(b"body"))
    md5_of_nothing = "1B2M2Y8AsgTpgAmY7PhCfg=="
    for wrong in ({"ChecksumCRC32C": crc_of(b"else")}, {"ContentMD5": md5_of_nothing}):
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket="first", Key="spoilt", Body=b"body", **wrong)
        assert status_of(error) == (400, "BadDigest")
    assert s3.list_objects_v2(Bucket="first", Prefix="spoilt")["KeyCount"] == 0


def test_s3_puts_parts_together_once_and_only_if_they_are_right(s3: Any):
    parts, where = [os.urandom(5 * MIB), b"the end"], {"Bucket": "first", "Key": "by parts"}
    whole = crc_of(b"".join(parts))

    def begin() -> dict[str, Any]:
        begun = s3.create_multipart_upload(**where, ChecksumAlgorithm="CRC32C", ChecksumType="FULL_OBJECT")
        upload, sent = {**where, "UploadId": begun["UploadId"]}, []
        for number, data in enumerate(parts, 1):
            one = {"PartNumber": number, "ChecksumCRC32C": crc_of(data)}
            sent.append({**one, "ETag": s3.upload_part(**upload, **one, Body=data)["ETag"]})
        return {**upload, "MultipartUpload": {"Parts": sent}, "ChecksumType": "FULL_OBJECT"}

    first, second = begin(), begin()
    uploads = s3.list_multipart_uploads(Bucket="first", Prefix="by")["Uploads"]
    assert {upload["UploadId"] for upload in uploads} == {first["UploadId"], second["UploadId"]}
    assert all(abs(time.time() - upload["Initiated"].timestamp()) < 60 for upload in uploads)
    with pytest.raises(ClientError) as error:
        s3.complete_multipart_upload(**first, ChecksumCRC32C=crc_of(b"else"), IfNoneMatch="*")
    assert status_of(error) == (400, "BadDigest")
    s3.complete_multipart_upload(**first, ChecksumCRC32C=whole, IfNoneMatch="*")
    assert s3.head_object(**where, ChecksumMode="ENABLED")["ChecksumCRC32C"] == whole
    with pytest.raises(ClientError) as error:
        s3.complete_multipart_upload(**second, ChecksumCRC32C=whole, IfNoneMatch="*")
    assert status_of(error) == (412, "PreconditionFailed")
    with pytest.raises(ClientError) as error:
        s3.upload_part(**where, UploadId="unknown", PartNumber=1, Body=b"")
    assert status_of(error) == (404, "NoSuchUpload")


def test_the_proxy_passes_everything_on_as_it_is(proxy: FaultProxy, s3_url: str):
    client = gcs_client(proxy.url)
    data = os.urandom(2 * MIB)
    blob = client.bucket("first").blob(NAME, chunk_size=MIB)
    blob.upload_from_file(io.BytesIO(data))
    assert blob.download_as_bytes() == data
    assert {status for _, _, status in proxy.requests} == {200, 206, 308}
    assert proxy.bytes_up >= 2 * MIB and proxy.bytes_down >= 2 * MIB
    with FaultProxy(s3_url) as before_s3:
        through = s3_client(before_s3.url)
        through.put_object(Bucket="first", Key=NAME, Body=data, ChecksumCRC32C=crc_of(data))
        assert through.get_object(Bucket="first", Key=NAME, Range="bytes=7-8")["Body"].read() == data[7:9]


def test_the_proxy_cuts_answers(proxy: FaultProxy, stored: bytes):
    at = f"{proxy.url}/first/stored"
    for fault in (Fault("reset"), Fault("reset", after_bytes=100_000), Fault("truncate_lying")):
        proxy.add(fault)
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            _ = requests.get(at).content
        assert fault.times == 0
    proxy.add(Fault("truncate_short"))
    short = requests.get(at, headers={"Range": "bytes=0-99999"})
    assert (short.content, short.headers["Content-Range"]) == (stored[:50_000], "bytes 0-99999/200000")
    assert requests.get(at).content == stored
    assert [what for _, _, what in proxy.requests] == [
        "reset", "reset", "truncate_lying", "truncate_short", 200,
    ]  # fmt: skip


def test_the_proxy_turns_over_one_bit_on_either_way(proxy: FaultProxy, stored: bytes, gcs_url: str):
    proxy.add(Fault("flip", path="/stored", min_body_bytes=1000))
    at = f"{proxy.url}/first/stored"
    assert requests.get(at, headers={"Range": "bytes=0-99"}).content == stored[:100]
    spoilt = requests.get(at).content
    proxy.add(Fault("flip_up", method="PUT", min_body_bytes=1000))
    requests.put(f"{proxy.url}/first/sent", data=b"small")
    requests.put(f"{proxy.url}/first/sent", data=stored)
    assert requests.get(at).content == stored
    for wrong in (spoilt, requests.get(f"{gcs_url}/first/sent").content):
        turned = int.from_bytes(wrong, "big") ^ int.from_bytes(stored, "big")
        assert turned.bit_count() == 1


def test_the_proxy_refuses_uploads_and_cuts_them(proxy: FaultProxy, stored: bytes, gcs_url: str):
    proxy.add(Fault("status", times=2, status=503, code="SlowDown", retry_after_s=3, method="PUT"))
    proxy.add(Fault("reset", direction="up", after_bytes=70_000, method="PUT"))
    at = f"{proxy.url}/first/never"
    for _ in range(2):
        refused = requests.put(at, data=stored)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3")
        assert "<Code>SlowDown</Code>" in refused.text
    with pytest.raises(requests.ConnectionError):
        requests.put(at, data=stored)
    assert proxy.bytes_up == 0 and requests.get(f"{gcs_url}/first/never").status_code == 404
    # Google's client also asks for the bucket's metadata, in a thread of its own.
    proxy.add(Fault("status", status=429, code="rateLimitExceeded", path="/o/stored"))
    with pytest.raises(exceptions.TooManyRequests, match="rateLimitExceeded"):
        gcs_client(proxy.url).bucket("first").get_blob("stored", retry=None)


def test_the_proxy_makes_clients_wait(proxy: FaultProxy, stored: bytes):
    at = f"{proxy.url}/first/stored"
    proxy.add(Fault("trickle"), Fault("stall", times=None))
    began_s = time.monotonic()
    assert requests.get(at, headers={"Range": "bytes=0-30"}).content == stored[:31]
    assert time.monotonic() - began_s > 3 * TRICKLE_S
    for _ in range(2):
        with pytest.raises(requests.ReadTimeout):
            requests.get(at, timeout=0.2)


def test_a_server_ends_with_whoever_started_it():
    with gcs_server() as url:
        assert requests.get(f"{url}/storage/v1/b").json()["items"] == []
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/storage/v1/b")
