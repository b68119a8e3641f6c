"""The cluster spec, ``cluster.yaml``: what there is. The same train and serve specs run on every one."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cluster.cluster_store import ClusterStore, SecretKey
from cluster.host_and_port import redis_host_and_port
from cluster.inventory import Inventory
from cluster.name_rules import is_image
from cluster.node_groups import HeadGroup, NodeGroup, checked_name
from cluster.priority import CLASSES, Priority, check_order
from cluster.spec_words import (
    INT32,
    AddressRange,
    Annotations,
    Host,
    LabelKey,
    LabelValue,
    NamespaceName,
    ObjectName,
    QueueName,
)
from runtime.core.config import ConfigModel

RAY_VERSION = "2.60.0"
"""The one that cluster/pins name; a test keeps it."""


class Endpoint(ConfigModel):
    """How clients outside reach ``/v1``."""

    kind: Literal["ClusterIP", "LoadBalancer", "Ingress", "Gateway"] = "ClusterIP"
    host: Host | None = None
    """The DNS name, for Ingress and Gateway: ``llm.example.com``, or ``*.example.com``."""

    tls_secret: ObjectName | None = None
    """Secret with the host's certificate (type kubernetes.io/tls)."""

    class_name: ObjectName | None = None
    """The Ingress' or Gateway's class, such as ``nginx`` or ``gke-l7-regional-external-managed``."""

    annotations: Annotations = {}
    """Of the Service, Ingress or Gateway."""

    source_ranges: tuple[AddressRange, ...] = ()
    """Addresses that the load balancer lets in: ``10.0.0.0/8``. Default: all."""

    load_balancer_class: LabelKey | None = None
    """Whose load balancer it is, where the cloud has several: ``service.k8s.aws/nlb``,
    ``networking.gke.io/l4-regional-external``. Kubernetes lets nobody change it later."""

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
        if self.load_balancer_class and self.kind != "LoadBalancer":
            raise ValueError(
                f"load_balancer_class is {self.load_balancer_class!r}, but kind is {self.kind!r}. Set kind: "
                "LoadBalancer, or leave it out."
            )
        return self


class Auth(ConfigModel):
    """Who may do what."""

    mode: Literal["token", "none"] = "token"
    """Ray's dashboard, job API and client: with a token, or open to all who reach them. Serve's endpoint asks
    for API keys either way (``auth`` of each serve spec)."""

    secret: ObjectName | None = None
    """Secret with the token under ``auth_token``. Default: ``<name>-ray-token``, which ``tandem cluster
    apply`` makes where it is missing."""


class Monitoring(ConfigModel):
    """Prometheus, Grafana, and what they look at."""

    enabled: bool = True
    """Needs the Prometheus operator (kube-prometheus-stack)."""

    release: LabelValue = "prometheus"
    """The ``release`` label by which that Prometheus selects what it scrapes."""

    namespace: NamespaceName = "monitoring"
    """Where Prometheus and Grafana run."""

    dcgm: bool = True
    """A ServiceMonitor for NVIDIA's DCGM exporter, as the GPU operator installs it."""

    dcgm_namespace: NamespaceName = "gpu-operator"
    dashboards: bool = True
    """Grafana dashboards as ConfigMaps, labelled ``grafana_dashboard``."""


class Queueing(ConfigModel):
    """Whose queue training goes through before it gets its pods; Volcano and KAI schedule serving, too."""

    kind: Literal["none", "kueue", "volcano", "kai"] = "none"
    queue: QueueName | None = None
    """Name of the LocalQueue (Kueue) or queue (Volcano, KAI)."""

    @model_validator(mode="after")
    def _named(self) -> Queueing:
        if (self.kind == "none") != (self.queue is None):
            raise ValueError(
                f"kind is {self.kind!r} and queue is {self.queue!r}. Name a queue with kueue, volcano or "
                "kai, none with none."
            )
        return self


class GcsFaultTolerance(ConfigModel):
    """Ray's head survives its own death: its state is in Redis. For serving, not for training clusters."""

    redis_address: str
    """``redis:6379``, or ``rediss://redis.example.com:6379`` for TLS."""

    password: SecretKey | None = None

    @field_validator("redis_address")
    @classmethod
    def _leads_to_redis_and_holds_no_secret(cls, address: str) -> str:
        if "@" in address:
            raise ValueError(
                "would hold a password, and manifests are shown to many. Write host:port, and "
                "password: {secret: NAME, key: KEY}."
            )
        try:
            redis_host_and_port(address)
        except ValueError as error:
            raise ValueError(f"is {address!r}, {error}. Write host:port, such as redis:6379.") from None
        return address


class Training(ConfigModel):
    """Where training jobs run."""

    cluster: Literal["own", "serving", "shared"] = "own"
    """``own``: each job gets a Ray cluster that ends with it. ``serving``: it goes into the RayService's
    cluster and shares its GPUs, by fractions too. ``shared``: it goes into the RayCluster for all."""

    backoff_limit: int = Field(2, ge=0, le=INT32)
    """How often Kubernetes makes a new cluster for a job whose own was lost; the run goes on from its last
    checkpoint. Only with ``cluster: own``."""

    ttl_s: int = Field(3600, ge=0, le=INT32)
    """How long a finished job's cluster stays."""

    pending_deadline_s: int = Field(86_400, ge=60, le=INT32)
    """How long a job may wait for its pods before it fails."""


class Serving(ConfigModel):
    """How serve apps are upgraded."""

    upgrade: Literal["new_cluster", "incremental", "none"] = "new_cluster"
    """What a change of the pods does: a second cluster beside the first (double the GPUs while it
    lasts), step by step behind KubeRay's own Gateway, which is the endpoint then, or nothing until somebody
    deletes the RayService."""

    gateway_class_name: ObjectName | None = None
    """For ``incremental``: the GatewayClass that splits the traffic."""

    # A Gateway's route takes five digits of seconds, and no pod should take longer than a day to end.
    longest_request_s: int = Field(600, ge=1, le=86_400)
    """How long an answer may take, a day at most: a pod that ends waits so long for its streams."""

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
    """The image with the three environments (``cluster/images``), ``registry/tandem:1.0``. For Kubernetes."""

    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[ObjectName, ...] = ()

    provider: Literal["gke", "other"] = "other"
    """GKE has its own labels for spot nodes and Workload Identity."""

    api_server_port: int = Field(6443, ge=1, le=65_535)
    """Where Ray's autoscaler reaches the API server, besides 443: the port at which that listens itself, as
    ``kubectl get endpointslice kubernetes -n default`` prints it. MicroK8s: 16443, minikube: 8443."""

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

    priorities: tuple[Priority, ...] = CLASSES
    """Priority classes of the queue for room, the highest first: each one once."""

    @field_validator("name")
    @classmethod
    def _dns_like(cls, name: str) -> str:
        return checked_name(name, "the name of a cluster")

    @field_validator("namespace")
    @classmethod
    def _namespace(cls, name: str | None) -> str | None:
        return name if name is None else checked_name(name, "a namespace", 63)

    @field_validator("image")
    @classmethod
    def _image(cls, image: str | None) -> str | None:
        if image is not None and not is_image(image):
            raise ValueError(f"is {image!r}, which is no image. Write registry/name:tag.")
        return image

    @field_validator("ray_version")
    @classmethod
    def _is_ours(cls, version: str) -> str:
        if version != RAY_VERSION:
            raise ValueError(
                f"is {version!r}, but this Tandem's environments have Ray {RAY_VERSION}, "
                f"and one cluster needs one version. Leave the line out, or use the Tandem that has Ray "
                f"{version}."
            )
        return version

    @field_validator("node_groups")
    @classmethod
    def _names_differ(cls, groups: tuple[NodeGroup, ...]) -> tuple[NodeGroup, ...]:
        twice = [name for name, n in Counter(group.name for group in groups).items() if n > 1]
        if twice:
            raise ValueError(f"the name {twice[0]!r} is there twice. Give each group a name of its own.")
        return groups

    @field_validator("priorities")
    @classmethod
    def _each_class_once(cls, priorities: tuple[Priority, ...]) -> tuple[Priority, ...]:
        check_order(priorities)
        return priorities

    @model_validator(mode="after")
    def _goes_together(self) -> ClusterSpec:
        nodes = sum(group.max_nodes for group in self.node_groups)
        if self.store.host_path and nodes > 1:
            raise ValueError(
                f"store.host_path is {self.store.host_path!r}, a folder of one node, but the "
                f"groups may have {nodes} nodes. Use store.nfs, gs:// or s3://."
            )
        if self.serving.upgrade == "incremental" and self.endpoint != Endpoint():
            given = ", ".join(sorted(self.endpoint.model_fields_set))
            raise ValueError(
                "serving.upgrade is 'incremental', where KubeRay's own Gateway sends each of two clusters "
                f"its share and is the only endpoint, but endpoint has {given}. Leave endpoint out and put "
                "what else there should be before that Gateway, or set serving.upgrade: new_cluster."
            )
        if self.store.service_account and self.provider != "gke":
            raise ValueError(
                "store.service_account is Workload Identity, which GKE has, but provider is 'other'. Set "
                "provider: gke, or use store.key_file."
            )
        if self.queueing.kind == "volcano" and self.training.cluster == "shared":
            # ray-operator/controllers/ray/batchscheduler/volcano: handleRayJob refuses a job with a selector.
            raise ValueError(
                "training.cluster is 'shared', but queueing.kind is 'volcano', with which KubeRay begins no "
                "job in a cluster that is there already. Set training.cluster: own or serving, or "
                "another kind."
            )
        if self.queueing.kind == "kueue" and self.training.cluster == "serving":
            # Kueue queues what brings pods. The apps' cluster is in no queue of its, and a job there has none
            # but a submitter.
            raise ValueError(
                "training.cluster is 'serving', but queueing.kind is 'kueue': nothing would go through "
                f"queueing.queue {self.queueing.queue!r}, for jobs run in the apps' cluster, which waits for "
                "no queue. Set training.cluster: own or shared, or leave queueing out: in the apps' cluster "
                "runs wait for each other by priority."
            )
        return self

    @property
    def in_namespace(self) -> str:
        """The namespace, named or not."""
        return self.namespace or self.name

    def inventory(self) -> Inventory:
        """All that it may ever have: every group at its largest."""
        return Inventory.of(node for group in self.node_groups for node in group.inventory_nodes())
