"""The raw clients that Tandem's transfers are measured against, each as its own documentation advises.

    python -m benchmarks.storage_raw --installed         which of them this interpreter has
    python -m benchmarks.storage_raw STORE/CLIENT JOB    one measurement

Servers are found by STORAGE_EMULATOR_HOST and AWS_ENDPOINT_URL. Where a client can be told, it moves 8 MiB at
a time, 8 at a time.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.storage_child import BLOCK_BYTES, STREAMS, Client, Job, main

Action = Callable[[], object]


def with_cp(job: Job) -> Action:
    """``cp`` of coreutils; its memory is not seen."""
    if job.is_folder:
        return partial(subprocess.run, ["cp", "-r", f"{job.folder}/.", job.prefix], check=True)
    (name,) = job.names
    return partial(subprocess.run, ["cp", job.path(name), job.key(name)], check=True)


def with_gcsfs(job: Job) -> Action:
    """gcsfs, through fsspec's put and get."""
    # Else every first touch asks the bucket's kind over gRPC, and waits a minute for a server that has none.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    import gcsfs

    store = gcsfs.GCSFileSystem(token="anon")
    paths, keys = _paths(job), [f"{job.bucket}/{key}" for key in _keys(job)]
    if job.direction == "up":
        return lambda: store.put(paths, keys, chunksize=BLOCK_BYTES, batch_size=STREAMS)
    return lambda: store.get(
        keys, paths, chunk_size=BLOCK_BYTES, concurrency=STREAMS, max_prefetch_size=STREAMS * BLOCK_BYTES
    )


def with_google(job: Job) -> Action:
    """Google's own client and its transfer manager, in threads."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage
    from google.cloud.storage import transfer_manager

    endpoint = {"api_endpoint": os.environ["STORAGE_EMULATOR_HOST"]}
    client = storage.Client(project="none", credentials=AnonymousCredentials(), client_options=endpoint)
    bucket = client.bucket(job.bucket)
    how = {"worker_type": transfer_manager.THREAD, "max_workers": STREAMS}
    if job.is_folder and job.direction == "up":
        pairs = [(job.path(name), bucket.blob(job.key(name))) for name in job.names]
        return lambda: transfer_manager.upload_many(pairs, raise_exception=True, **how)
    if job.is_folder:
        prefix = f"{job.prefix}/"
        return lambda: transfer_manager.download_many_to_path(
            bucket, job.names, job.folder, blob_name_prefix=prefix, raise_exception=True, **how
        )
    (name,) = job.names
    path, blob = job.path(name), bucket.blob(job.key(name))
    if job.direction == "up":
        upload = transfer_manager.upload_chunks_concurrently
        return lambda: upload(path, blob, chunk_size=BLOCK_BYTES, **how)
    download = transfer_manager.download_chunks_concurrently
    return lambda: download(blob, path, chunk_size=BLOCK_BYTES, **how)


def with_requests(job: Job) -> Action:
    """The floor: ranged GETs and pwrite, no checksum, nothing tried again. It only downloads."""
    import requests

    session, url = requests.Session(), f"{os.environ['STORAGE_EMULATOR_HOST']}/{job.bucket}"

    def fetch(key: str, start: int, length: int) -> bytes:
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        with session.get(f"{url}/{key}", headers=headers, stream=True) as answer:
            answer.raise_for_status()
            return answer.raw.read()

    return lambda: _download(job, fetch)


def with_obstore_gs(job: Job) -> Action:
    """obstore's store for Google, which takes another server from a key file only."""
    from obstore.store import GCSStore

    key = {"gcs_base_url": os.environ["STORAGE_EMULATOR_HOST"], "disable_oauth": True}
    key |= {"client_email": "", "private_key": "", "private_key_id": ""}
    options = {"allow_http": True}
    return _obstore(job, GCSStore(job.bucket, service_account_key=json.dumps(key), client_options=options))


def with_obstore_s3(job: Job) -> Action:
    """obstore's store for S3."""
    from obstore.store import S3Store

    return _obstore(
        job,
        S3Store(
            job.bucket,
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            region=os.environ["AWS_DEFAULT_REGION"],
            client_options={"allow_http": True},
        ),
    )


def _obstore(job: Job, store: object) -> Action:
    import obstore

    def send(name: str) -> None:
        path = Path(job.path(name))
        obstore.put(store, job.key(name), path, chunk_size=BLOCK_BYTES, max_concurrency=STREAMS)

    def fetch(key: str, start: int, length: int) -> obstore.Bytes:
        return obstore.get_range(store, key, start=start, length=length)

    if job.direction == "up":
        return lambda: _in_threads(send, job.names)
    return lambda: _download(job, fetch)


def with_boto3(job: Job) -> Action:
    """boto3's managed transfers (s3transfer)."""
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=STREAMS * 2))
    # A folder's files go side by side, each in one stream; a single file in several.
    per_file = 1 if job.is_folder else STREAMS
    config = TransferConfig(
        multipart_threshold=BLOCK_BYTES, multipart_chunksize=BLOCK_BYTES, max_concurrency=per_file
    )

    def move(name: str) -> None:
        if job.direction == "up":
            client.upload_file(job.path(name), job.bucket, job.key(name), Config=config)
        else:
            client.download_file(job.bucket, job.key(name), job.path(name), Config=config)

    return lambda: _in_threads(move, job.names)


def with_s3fs(job: Job) -> Action:
    """s3fs, through fsspec's put and get."""
    import s3fs

    store = s3fs.S3FileSystem()
    paths, keys = _paths(job), [f"{job.bucket}/{key}" for key in _keys(job)]
    how = {"chunksize": BLOCK_BYTES, "max_concurrency": STREAMS, "batch_size": STREAMS}
    if job.direction == "up":
        return lambda: store.put(paths, keys, **how)
    return lambda: store.get(keys, paths, **how)


CLIENTS: dict[str, Client] = {
    "local/cp": with_cp,
    "gs/gcsfs": with_gcsfs,
    "gs/google-cloud-storage": with_google,
    "gs/obstore": with_obstore_gs,
    "gs/requests": with_requests,
    "s3/boto3": with_boto3,
    "s3/obstore": with_obstore_s3,
    "s3/s3fs": with_s3fs,
}
_MODULE_OF = {"google-cloud-storage": "google.cloud.storage"}


def _paths(job: Job) -> list[str]:
    return [job.path(name) for name in job.names]


def _keys(job: Job) -> list[str]:
    return [job.key(name) for name in job.names]


def _in_threads(action: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(STREAMS) as pool:
        for _ in pool.map(action, names):
            pass


def _download(job: Job, fetch: Callable[[str, int, int], object]) -> None:
    """Every file in blocks, written where they belong."""

    def move(block: tuple[str, int, int]) -> None:
        name, start, length = block
        content = fetch(job.key(name), start, length)
        descriptor = os.open(job.path(name), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, content, start)
        finally:
            os.close(descriptor)

    blocks = [
        (name, start, min(BLOCK_BYTES, size - start))
        for name, size in job.sizes_bytes.items()
        for start in range(0, size, BLOCK_BYTES)
    ]
    with ThreadPoolExecutor(STREAMS) as pool:
        for _ in pool.map(move, blocks):
            pass


def installed() -> dict[str, str | None]:
    """The version of each client that is here; None for one that is not."""
    return {client: _version(client.partition("/")[2]) for client in CLIENTS}


def _version(name: str) -> str | None:
    if name == "cp":
        return "of this machine"
    try:
        if importlib.util.find_spec(_MODULE_OF.get(name, name)) is None:
            return None
    except ModuleNotFoundError:
        return None
    return importlib.metadata.version(name)


if __name__ == "__main__":
    if sys.argv[1:] == ["--installed"]:
        print(json.dumps(installed()))
    else:
        main(CLIENTS)
