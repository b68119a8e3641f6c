"""The store of a cluster spec: where it lies, how pods reach it, and with which credentials, by reference."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from pydantic import ByteSize, Field, ValidationError, model_validator

from cluster.host_and_port import HTTP_PORTS, host_and_port
from cluster.spec_words import INT32, Annotations, DataKey, ObjectName
from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from storage.address import parse
from storage.workspace import Workspace

MOUNT = "/mnt/tandem"
"""Where a volume with the store is mounted in every pod."""


_BUCKETS = ("gs", "s3")
"""Schemes of a store that all pods share. ``memory`` is one process's, ``hf`` is only read."""


class SecretKey(ConfigModel):
    """A value in a Kubernetes Secret, by reference: values never enter a spec or a manifest."""

    secret: ObjectName
    key: DataKey


class NfsVolume(ConfigModel):
    """An NFS export, or a storage class that makes volumes which many nodes mount."""

    server: str | None = None
    path: str | None = None
    """The export. With ``server``: a PersistentVolume of its own."""

    storage_class: ObjectName | None = None
    """Instead of server and path: a class whose volumes are ReadWriteMany."""

    claim: ObjectName | None = None
    """Instead of both: a PersistentVolumeClaim that is there already."""

    size: ByteSize = Field(ByteSize(500 * 2**30), gt=0)
    fs_group: int = Field(1000, ge=0, le=INT32)
    """Group that owns the export: the pods' processes belong to it."""

    mount_options: tuple[str, ...] = ("nfsvers=4.1", "hard")

    @model_validator(mode="after")
    def _one_source(self) -> NfsVolume:
        given = [name for name in ("server", "storage_class", "claim") if getattr(self, name)]
        if len(given) != 1 or bool(self.server) != bool(self.path):
            raise ValueError(
                f"names {', '.join(given) or 'no source'}. Give server and path of an export, or "
                "storage_class, or claim."
            )
        if self.path and not self.path.startswith("/"):
            raise ValueError(f"path is {self.path!r}. An export's path begins with /.")
        return self


class ClusterStore(ConfigModel):
    """Where models, datasets and runs lie, and how pods may reach it."""

    uri: str | None = None
    """``gs://bucket/prefix``, ``s3://bucket/prefix``, or a folder in every pod. Default: with ``nfs`` a
    folder of the volume, else one of the node's disk."""

    nfs: NfsVolume | None = None
    """The volume for a folder that all nodes share."""

    host_path: str | None = None
    """A folder of the node itself, for clusters of one node."""

    service_account: str | None = None
    """GKE: the Google service account that pods act as (Workload Identity), ``name@project.iam...``. Other
    clouds: annotate the Kubernetes service accounts through ``service_account_annotations``."""

    service_account_annotations: Annotations = {}
    """For the pods' service accounts, such as ``eks.amazonaws.com/role-arn``."""

    key_file: SecretKey | None = None
    """GCS off GKE: the Secret with a service account's key file."""

    access_key: ObjectName | None = None
    """S3 with keys: the Secret whose AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY become variables."""

    options: dict[str, dict[str, Any]] = {}
    """The workspace config's ``storage``: settings by address, such as an ``endpoint_url``. No secrets."""

    cache_size: ByteSize | None = Field(None, gt=0)
    """Limit of each pod's node cache, an emptyDir. Default: none."""

    @model_validator(mode="after")
    def _fits(self) -> ClusterStore:
        if (self.uri or "").startswith("file:"):
            raise ValueError(
                f"uri is {self.uri!r}, and each pod would have a folder of its own. Write a folder of the "
                f"volume without file://: {MOUNT}/store."
            )
        remote = self.uri is not None and "://" in self.uri
        if self.uri and remote:
            try:
                check_bucket(self.uri, field="uri")
            except ConfigError as error:
                raise ValueError(str(error)) from None
        if self.nfs and self.host_path:
            raise ValueError("has nfs and host_path. A folder lies on one of them.")
        if not remote and not self.nfs and not self.host_path:
            raise ValueError(
                f"uri is {self.uri!r}, which no pod could reach. Set uri: gs://... or s3://..., nfs, or (one "
                "node only) host_path."
            )
        if remote and self.host_path:
            raise ValueError(
                f"uri is {self.uri!r}, so host_path ({self.host_path!r}) holds no store. Leave it out."
            )
        if self.uri and not remote and not _is_below(self.uri, MOUNT):
            raise ValueError(
                f"uri is {self.uri!r}, but the volume is mounted at {MOUNT}. Write a folder below it, "
                f"without '..': {MOUNT}/store."
            )
        if self.host_path and not _is_below(self.host_path, "/"):
            raise ValueError(f"host_path is {self.host_path!r}. Write an absolute path, without '..'.")
        try:
            Workspace.model_validate({"storage": self.options})
        except ValidationError as error:
            # Its text names the field, never the value.
            raise ValueError(f"options: {error.errors()[0]['ctx']['error']}") from None
        # After that: these messages repeat the value.
        for address, of in self.options.items():
            _check_endpoint(address, of.get("endpoint_url"))
        if self.key_file and self.service_account:
            raise ValueError("has key_file and service_account. On GKE use service_account alone.")
        return self

    @property
    def root(self) -> str:
        """The store's address, as every pod knows it."""
        return self.uri or f"{MOUNT}/store"

    @property
    def is_bucket(self) -> bool:
        """Whether the store is reached from anywhere under the same address, given credentials."""
        return "://" in self.root

    @property
    def has_volume(self) -> bool:
        """Whether pods mount a volume at ``MOUNT``."""
        return bool(self.nfs or self.host_path)


def check_bucket(uri: str, *, field: str) -> None:
    """Whether pods on all nodes can have their store there.

    Raises:
        ConfigError: it is no address of a bucket at Google's or behind S3's protocol, or holds a password.
    """
    found = parse(uri, field=field)
    if found.scheme not in _BUCKETS:
        raise ConfigError(
            f"{field} is {uri!r}, where pods can have no store. Write gs://BUCKET/FOLDER or "
            "s3://BUCKET/FOLDER (others that speak S3's protocol, too: options, endpoint_url), or take a "
            "volume."
        )


def _is_below(path: str, folder: str) -> bool:
    """Whether a path lies in a folder: by its parts, of which none leads out again."""
    parts = PurePosixPath(path)
    return parts.is_relative_to(folder) and ".." not in parts.parts


def _check_endpoint(address: str, url: Any) -> None:
    if url is None:
        return
    try:
        host_and_port(str(url), HTTP_PORTS)
    except ValueError as error:
        raise ValueError(
            f"options.{address}.endpoint_url is {url!r}, {error}. Write http://minio:9000 or https://HOST."
        ) from None
