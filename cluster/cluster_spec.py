"""The cluster spec, ``cluster.yaml``: what there is. The same train and serve specs run on every one."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator

from cluster.gpus import Gpu, find
from cluster.inventory import Card, Inventory, Node
from runtime.core.config import ConfigModel
from storage.workspace import Workspace

_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:-]*(@sha256:[0-9a-f]{64})?", re.IGNORECASE)
_NAME_CHARS = 30
"""A RayJob's name ends in the run's, and may have 47 characters."""
RAY_VERSION = "2.60.0"
"""The one that cluster/pins name; a test keeps it."""
RAYS_SHARE = 0.7
"""Of a pod's memory, so much is Ray's to hand out; the rest is its object store's."""
MOUNT = "/mnt/tandem"
"""Where a volume with the store is mounted in every pod."""


def _checked_name(name: str, what: str, most: int = _NAME_CHARS) -> str:
    if not _NAME.fullmatch(name) or len(name) > most:
        raise ValueError(
            f"is {name!r}, which cannot be {what}. Use 1 to {most} lower-case letters, digits and hyphens, "
            "beginning with a letter and not ending with a hyphen."
        )
    return name


class Toleration(ConfigModel):
    """A taint that pods of a group put up with, in Kubernetes' words."""

    key: str
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _value_where_equal(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError(
                f"operator is {self.operator!r} and value is {self.value!r}. Equal needs a value, Exists has "
                "none."
            )
        return self


class HeadGroup(ConfigModel):
    """The pod with Ray's head: no GPU, no replicas, no workers."""

    cpus: float = Field(4, gt=0)
    memory: ByteSize = Field(ByteSize(16 * 2**30), gt=0)
    """Of the pod: requests equal limits."""

    node_labels: dict[str, str] = {}
    """Labels that its node must have."""

    tolerations: tuple[Toleration, ...] = ()


class NodeGroup(ConfigModel):
    """Nodes that are alike: one Ray pod on each."""

    name: str
    """Lower-case letters, digits and hyphens."""

    accelerator_type: str | None = None
    """The GPU product, in Kubernetes' (``NVIDIA-L4``), NVML's or Ray's spelling. Unset: no GPUs."""

    gpus: int = Field(0, ge=0, le=255)
    """GPUs of each node."""

    gpu_memory: ByteSize | None = Field(None, gt=0)
    """Of each GPU. Default: what the catalogue says of ``accelerator_type``."""

    cpus: float = Field(gt=0)
    """CPUs of each node that its Ray pod gets."""

    memory: ByteSize = Field(gt=0)
    """Memory of each node that its Ray pod gets: ``56GiB``."""

    count: int | None = Field(None, ge=0, le=2000)
    """How many nodes there are. Instead of ``min`` and ``max``."""

    min: int | None = Field(None, ge=0, le=2000)
    """Nodes that are always there, where Ray's autoscaler adds more."""

    max: int | None = Field(None, ge=1, le=2000)
    """Nodes at most."""

    spot: bool = False
    """Whether the cloud may take the nodes back. On GKE the pods then choose and tolerate spot nodes."""

    node_labels: dict[str, str] = {}
    """Labels that the nodes must have, besides the GPU product's."""

    labels: dict[str, str] = {}
    """Labels for the pods."""

    tolerations: tuple[Toleration, ...] = ()
    """Besides that of ``nvidia.com/gpu``, which GPU groups always have."""

    idle_timeout_s: int = Field(600, ge=60)
    """An idle node leaves after so long. Ray's 60 s would end nodes whose engine is still loading."""

    @field_validator("name")
    @classmethod
    def _dns_like(cls, name: str) -> str:
        if name == "head":
            raise ValueError("is 'head', the name of Ray's own group. Choose another name.")
        return _checked_name(name, "the name of a node group")

    @model_validator(mode="after")
    def _is_whole(self) -> NodeGroup:
        if self.count is None and self.max is None:
            raise ValueError("has neither count nor max. Write count: 2, or min: 0 and max: 4.")
        if self.count is not None and (self.min, self.max) != (None, None):
            raise ValueError(f"has count ({self.count}) beside min or max. Write one or the other.")
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min is {self.min} but max is {self.max}. Raise max to {self.min} or more.")
        if self.gpus and self.accelerator_type is None:
            raise ValueError(f"has {self.gpus} GPUs of no product. Add accelerator_type: NVIDIA-L4 or so.")
        if self.accelerator_type is not None and not self.gpus:
            raise ValueError(
                f"accelerator_type is {self.accelerator_type!r}, but gpus is 0. Write gpus: 1 or more."
            )
        if self.gpus and self.gpu_memory is None and self.product is None:
            raise ValueError(
                f"accelerator_type is {self.accelerator_type!r}, which is not in the catalogue. Add "
                "gpu_memory: 80GiB or so."
            )
        return self

    @property
    def min_nodes(self) -> int:
        """Nodes that are always there."""
        return self.count if self.count is not None else self.min or 0

    @property
    def max_nodes(self) -> int:
        """Nodes at most."""
        return self.count if self.count is not None else self.max or 0

    @property
    def autoscales(self) -> bool:
        """Whether Ray's autoscaler has anything to decide."""
        return self.min_nodes != self.max_nodes

    @property
    def product(self) -> Gpu | None:
        """What the catalogue has of its GPUs."""
        return find(self.accelerator_type) if self.accelerator_type else None

    @property
    def card_bytes(self) -> int | None:
        """Memory of each GPU."""
        return self.gpu_memory or (self.product.memory_bytes if self.product else None)

    @property
    def ray_accelerator_type(self) -> str | None:
        """Ray's word for its GPUs, as Ray's nodes have it."""
        if not self.gpus:
            return None
        return self.product.ray if self.product else self.accelerator_type

    def inventory_nodes(self) -> list[Node]:
        """Its nodes at most, as plain data."""
        word, product = self.ray_accelerator_type, self.product
        cards = tuple(Card(i, self.card_bytes, product.nvml if product else None) for i in range(self.gpus))
        width = len(str(max(0, self.max_nodes - 1)))
        names = [f"{self.name}-{number:0{width}}" for number in range(self.max_nodes)]
        return [Node(name, self.cpus, int(self.memory * RAYS_SHARE), cards, word) for name in names]


class SecretKey(ConfigModel):
    """A value in a Kubernetes Secret, by reference: values never enter a spec or a manifest."""

    secret: str
    key: str


class NfsVolume(ConfigModel):
    """An NFS export, or a storage class that makes volumes which many nodes mount."""

    server: str | None = None
    path: str | None = None
    """The export. With ``server``: a PersistentVolume of its own."""

    storage_class: str | None = None
    """Instead of server and path: a class whose volumes are ReadWriteMany."""

    claim: str | None = None
    """Instead of both: a PersistentVolumeClaim that is there already."""

    size: ByteSize = Field(ByteSize(500 * 2**30), gt=0)
    fs_group: int = Field(1000, ge=0)
    """Group that owns the export: the pods' processes belong to it."""

    mount_options: tuple[str, ...] = ("nfsvers=4.1", "hard")

    @model_validator(mode="after")
    def _one_source(self) -> NfsVolume:
        given = [name for name in ("server", "storage_class", "claim") if getattr(self, name)]
        if len(given) != 1 or bool(self.server) != bool(self.path):
            raise ValueError(
                f"names {', '.join(given) or 'no source'}. Give server and path of an "
                f"export, or storage_class, "
                "or claim."
            )
        if self.path and not self.path.startswith("/"):
            raise ValueError(f"path is {self.path!r}. An export's path begins with /.")
        return self


class ClusterStore(ConfigModel):
    """Where models, datasets and runs lie, and how pods may reach it."""

    uri: str | None = None
    """``gs://bucket/prefix``, ``s3://bucket/prefix``, or a folder in every pod. Default: "
    "with ``nfs`` a folde"
    of the volume, else one of the node's disk."""

    nfs: NfsVolume | None = None
    """The volume for a folder that all nodes share."""

    host_path: str | None = None
    """A folder of the node itself, for clusters of one node."""

    service_account: str | None = None
    """GKE: the Google service account that pods act as (Workload Identity), ``name@project.iam...``. Other
    clouds: annotate the Kubernetes service accounts through ``service_account_annotations``."""

    service_account_annotations: dict[str, str] = {}
    """For the pods' service accounts, such as ``eks.amazonaws.com/role-arn``."""

    key_file: SecretKey | None = None
    """GCS off GKE: the Secret with a service account's key file."""

    access_key: str | None = None
    """S3 with keys: the Secret whose AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY become variables."""

    options: dict[str, dict[str, Any]] = {}
    """The workspace config's ``storage``: settings by address, such as an ``endpoint_url``. No secrets."""

    cache_size: ByteSize | None = Field(None, gt=0)
    """Limit of each pod's node cache, an emptyDir. Default: none."""

    @model_validator(mode="after")
    def _fits(self) -> ClusterStore:
        remote = self.uri is not None and "://" in self.uri
        if self.nfs and self.host_path:
            raise ValueError("has nfs and host_path. A folder lies on one of them.")
        if not remote and not self.nfs and not self.host_path:
            raise ValueError(
                f"uri is {self.uri!r}, which no pod could reach. Set uri: gs://... or "
                f"s3://..., nfs, or (one node "
                "only) host_path."
            )
        if remote and self.host_path:
            raise ValueError(
                f"uri is {self.uri!r}, so host_path ({self.host_path!r}) holds no store. Leave it out."
            )
        if self.uri and not remote and not self.uri.startswith(MOUNT):
            raise ValueError(
                f"uri is {self.uri!r}, but the volume is mounted at {MOUNT}. Write a folder below it."
            )
        if self.host_path and not self.host_path.startswith("/"):
            raise ValueError(f"host_path is {self.host_path!r}. Write an absolute path.")
        try:
            Workspace.model_validate({"storage": self.options})
        except ValidationError as error:
            # Its text names the field, never the value.
            raise ValueError(f"options: {error.errors()[0]['ctx']['error']}") from None
        if self.key_file and self.service_account:
            raise ValueError("has key_file and service_account. On GKE use service_account alone.")
        return self

    @property
    def root(self) -> str:
        """The store's address, as every pod knows it."""
        return self.uri or f"{MOUNT}/store"

    @property
    def has_volume(self) -> bool:
        """Whether pods mount a volume at ``MOUNT``."""
        return bool(self.nfs or self.host_path)


class Endpoint(ConfigModel):
    """How clients outside reach ``/v1``."""

    kind: Literal["ClusterIP", "LoadBalancer", "Ingress", "Gateway"] = "ClusterIP"
    host: str | None = None
    """The DNS name, for Ingress and Gateway."""

    tls_secret: str | None = None
    """Secret with the host's certificate (type kubernetes.io/tls)."""

    class_name: str | None = None
    """The Ingress' or Gateway's class, such as ``nginx`` or ``gke-l7-regional-external-managed``."""

    annotations: dict[str, str] = {}
    """Of the Service, Ingress or Gateway."""

    source_ranges: tuple[str, ...] = ()
    """Addresses that the load balancer lets in: ``10.0.0.0/8``. Default: all."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Endpoint:
        named = self.kind in ("Ingress", "Gateway")
        if named and not self.host:
            raise ValueError(f"kind is {self.kind!r} without host. Add host: llm.example.com.")
        if not named and (self.host or self.tls_secret or self.class_name):
            raise ValueError(
                f"kind is {self.kind!r}, which knows no host, tls_secret or class_name. Set kind: Ingress or "
                "Gateway, or leave them out."
            )
        if self.kind == "Gateway" and not self.class_name:
            raise ValueError("kind is 'Gateway' without class_name. Name a GatewayClass of the cluster.")
        if self.source_ranges and self.kind != "LoadBalancer":
            raise ValueError(f"source_ranges are for a LoadBalancer, but kind is {self.kind!r}.")
        return self


class Auth(ConfigModel):
    """Who may do what."""

    mode: Literal["token", "none"] = "token"
    """Ray's dashboard, job API and client: with a token, or open to all who reach them. Serve's endpoint asks
    for API keys either way (``auth`` of each serve spec)."""

    secret: str | None = None
    """Secret with the token under ``auth_token``. Default: ``<name>-ray-token``, which ``tandem cluster
    apply`` makes where it is missing."""


class Monitoring(ConfigModel):
    """Prometheus, Grafana, and what they look at."""

    enabled: bool = True
    """Needs the Prometheus operator (kube-prometheus-stack)."""

    release: str = "prometheus"
    """The ``release`` label by which that Prometheus selects what it scrapes."""

    namespace: str = "monitoring"
    """Where Prometheus and Grafana run."""

    dcgm: bool = True
    """A ServiceMonitor for NVIDIA's DCGM exporter."""

    dcgm_namespace: str = "gpu-operator"
    dashboards: bool = True
    """Grafana dashboards as ConfigMaps, labelled ``grafana_dashboard``."""


class Queueing(ConfigModel):
    """Whose queue training jobs go through before their pods are made."""

    kind: Literal["none", "kueue", "volcano", "kai"] = "none"
    queue: str | None = None
    """Name of the LocalQueue (Kueue) or queue (Volcano, KAI)."""

    @model_validator(mode="after")
    def _named(self) -> Queueing:
        if (self.kind == "none") != (self.queue is None):
            raise ValueError(
                f"kind is {self.kind!r} and queue is {self.queue!r}. Name a queue with "
                f"kueue, volcano or kai, none "
                "with none."
            )
        return self


class GcsFaultTolerance(ConfigModel):
    """Ray's head survives its own death: its state is in Redis. For serving, not for training clusters."""

    redis_address: str
    """``redis:6379``."""

    password: SecretKey | None = None

    @field_validator("redis_address")
    @classmethod
    def _holds_no_secret(cls, address: str) -> str:
        if "@" in address:
            raise ValueError(
                "would hold a password, and manifests are shown to many. Write host:port, and "
                "password: {secret: NAME, key: KEY}."
            )
        return address


class Training(ConfigModel):
    """Where training jobs run."""

    cluster: Literal["own", "serving", "shared"] = "own"
    """``own``: each job gets a Ray cluster that ends with it. ``serving``: it goes into the RayService's
    cluster and shares its GPUs, by fractions too. ``shared``: it goes into the RayCluster for all."""

    backoff_limit: int = Field(2, ge=0)
    """How often Kubernetes makes a new cluster for a job whose own was lost; the run goes on from its last
    checkpoint. Only with ``cluster: own``."""

    ttl_s: int = Field(3600, ge=0)
    """How long a finished job's cluster stays."""

    pending_deadline_s: int = Field(86_400, ge=60)
    """How long a job may wait for its pods before it fails."""


class Serving(ConfigModel):
    """How serve apps are upgraded."""

    upgrade: Literal["new_cluster", "incremental", "none"] = "new_cluster"
    """What a change of the pods does: a second cluster beside the first (double the GPUs "
    "while it lasts), ste"
    by step behind a Gateway, or nothing until somebody deletes the RayService."""

    gateway_class_name: str | None = None
    """For ``incremental``: the GatewayClass that splits the traffic."""

    longest_request_s: int = Field(600, ge=1)
    """How long an answer may take: a pod that ends waits so long for its streams."""

    @model_validator(mode="after")
    def _gateway_where_incremental(self) -> Serving:
        if (self.upgrade == "incremental") != (self.gateway_class_name is not None):
            raise ValueError(
                f"upgrade is {self.upgrade!r} and gateway_class_name is {self.gateway_class_name!r}. An "
                "incremental upgrade needs a GatewayClass, the others have none."
            )
        return self


class ClusterSpec(ConfigModel):
    """One cluster: its machines, its store, its doors."""

    name: str
    """Lower-case letters, digits and hyphens, 30 at most: the names of all objects begin with it."""

    namespace: str | None = None
    """Kubernetes namespace. Default: the name."""

    ray_version: str = RAY_VERSION
    """Must be that of the image, and of the environments of whoever submits."""

    image: str | None = None
    """The image with the three environments (``cluster/images``), "
    "``registry/tandem:1.0``. Kubernetes only."""

    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()

    provider: Literal["gke", "other"] = "other"
    """GKE has its own labels for spot nodes and Workload Identity."""

    head: HeadGroup = HeadGroup()
    node_groups: tuple[NodeGroup, ...] = Field(min_length=1)
    store: ClusterStore
    endpoint: Endpoint = Endpoint()
    auth: Auth = Auth()
    monitoring: Monitoring = Monitoring()
    queueing: Queueing = Queueing()
    gcs_fault_tolerance: GcsFaultTolerance | None = None
    training: Training = Training()
    serving: Serving = Serving()

    @field_validator("name")
    @classmethod
    def _dns_like(cls, name: str) -> str:
        return _checked_name(name, "the name of a cluster")

    @field_validator("namespace")
    @classmethod
    def _namespace(cls, name: str | None) -> str | None:
        return name if name is None else _checked_name(name, "a namespace", 63)

    @field_validator("image")
    @classmethod
    def _image(cls, image: str | None) -> str | None:
        if image is not None and not _IMAGE.fullmatch(image):
            raise ValueError(f"is {image!r}, which is no image. Write registry/name:tag.")
        return image

    @field_validator("ray_version")
    @classmethod
    def _is_ours(cls, version: str) -> str:
        if version != RAY_VERSION:
            raise ValueError(
                f"is {version!r}, but this Tandem's environments have Ray {RAY_VERSION}, "
                f"and one cluster needs one "
                f"version. Leave the line out, or use the Tandem that has Ray {version}."
            )
        return version

    @field_validator("node_groups")
    @classmethod
    def _names_differ(cls, groups: tuple[NodeGroup, ...]) -> tuple[NodeGroup, ...]:
        twice = [name for name, n in Counter(group.name for group in groups).items() if n > 1]
        if twice:
            raise ValueError(f"the name {twice[0]!r} is there twice. Give each group a name of its own.")
        return groups

    @model_validator(mode="after")
    def _goes_together(self) -> ClusterSpec:
        nodes = sum(group.max_nodes for group in self.node_groups)
        if self.store.host_path and nodes > 1:
            raise ValueError(
                f"store.host_path is {self.store.host_path!r}, a folder of one node, but "
                f"the groups may have {nodes} "
                "nodes. Use store.nfs, gs:// or s3://."
            )
        if self.store.service_account and self.provider != "gke":
            raise ValueError(
                "store.service_account is Workload Identity, which GKE has, but provider is 'other'. Set "
                "provider: gke, or use store.key_file."
            )
        return self

    @property
    def in_namespace(self) -> str:
        """The namespace, named or not."""
        return self.namespace or self.name

    def inventory(self) -> Inventory:
        """All that it may ever have: every group at its largest."""
        return Inventory.of(node for group in self.node_groups for node in group.inventory_nodes())
