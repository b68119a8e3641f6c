"""The serve spec: what a person writes to serve one model, and what travels as JSON to the cluster."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from cluster.priority import Priority
from runtime.core.config import ConfigModel

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ROUTE_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_LEAST_SHARE = 0.0001
_TAKEN_PATHS = ("/v1", "/v2", "/-", "/admin", "/health")


class Autoscaling(ConfigModel):
    """How many replicas run, in Ray Serve's own words."""

    min_replicas: int = Field(1, ge=0)
    """Replicas that always run. 0 lets an idle app give everything back; its first request then waits
    for an engine to start."""

    max_replicas: int | None = Field(None, ge=1)
    """Replicas at most. Unset: as many as the cluster can hold, but not more than 4."""

    target_ongoing_requests: float = Field(32, gt=0)
    """Requests in flight per replica that Serve aims at. Ray's default of 2 would start a second engine
    long before continuous batching fills the first: one engine's throughput still doubles between 8 and
    32 requests in flight."""

    upscale_delay_s: float = Field(30, ge=0)
    """Seconds the load must stay high before a replica is added."""

    downscale_delay_s: float = Field(600, ge=0)
    """Seconds the load must stay low before a replica is removed."""

    policy: str = "ongoing_requests"
    """What the number of replicas follows: the name of a file in ``serve_apps/policies``."""

    policy_target: float | None = Field(None, gt=0)
    """What the policy aims at per replica, in its own unit. Unset: the policy's own default."""

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas} but max_replicas is {self.max_replicas}. "
                f"Raise max_replicas to {self.min_replicas} or more."
            )
        return self


class Resources(ConfigModel):
    """What one replica reserves."""

    cpus: float = Field(0.5, gt=0)
    """CPUs one replica reserves. A number for Ray's scheduler; on a machine without GPUs it also sets the
    engine's threads (rounded down, at least 1)."""

    gpus: float | None = Field(None, ge=0)
    """GPUs per tensor-parallel worker. Unset: 0 on a cluster without GPUs, 0.5 when it has one GPU (a
    training worker takes the other half), 1 otherwise. Below 1 it is a share of one GPU's memory that
    vLLM keeps to by co-operation; nothing isolates it."""

    accelerator_type: str | None = None
    """The GPU product, as Ray names it (``A100``, ``H100``, ``L4``). Unset: one product for all replicas, the
    one with the smallest cards on which the engine fits, if there are enough of them (for ``max_replicas``,
    where that is set). ``any`` lets replicas of one app be on several products: the smallest must do."""

    memory_bytes: ByteSize | None = Field(None, gt=0)
    """Memory of its node that one replica reserves with Ray (``4GiB``). Without a GPU it is also its share:
    the KV cache gets what the weights and the engine leave of it."""

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1:
            raise ValueError(
                f"is {gpus}, but one tensor-parallel worker uses one GPU at most. "
                "For more GPUs per replica set engine.tensor_parallel_size."
            )
        if gpus is not None and 0 < gpus < _LEAST_SHARE:
            raise ValueError(
                f"is {gpus}, but Ray hands out ten-thousandths of a GPU. Set it to 0 or to {_LEAST_SHARE} or "
                "more."
            )
        return gpus


class ServeSpec(ConfigModel):
    """One served model: a name, a model, vLLM's own arguments, and how many replicas of it run."""

    name: str
    """Name of the app and the model name that clients send. Lower-case letters, digits and hyphens."""

    model: str = Field(min_length=1)
    """Model in the store, ``name`` (the latest version) or ``name/version``, the path of a folder, or an
    address (``gs://``, ``s3://``, ``hf://org/name``)."""

    engine: dict[str, Any] = {}
    """vLLM's arguments under vLLM's names, such as ``max_model_len`` or ``tensor_parallel_size``."""

    adapters: dict[str, str] = {}
    """LoRA adapters by the model name that clients send: ``name`` of a model in the store (its latest
    version, replaced while requests run when a newer one is published), ``name/version``, ``run:<run>``
    (the latest that this run published), a path or an address."""

    auth: Literal["keys", "none"] = "keys"
    """``keys``: every request carries an API key (``tandem keys``). ``none``: open to all who reach it,
    which Serve then must allow from this machine only."""

    keys: str | None = None
    """Folder of the API keys' records, an address or path (such as a mounted Kubernetes Secret). Unset:
    ``keys/`` of the store."""

    autoscaling: Autoscaling = Autoscaling()
    """How many replicas run."""

    routing: Literal["least_requests", "prefix"] = "least_requests"
    """Which replica gets a request. ``least_requests``: the one with the fewest in flight. ``prefix``: those
    that begin alike (512 bytes of the prompt, or of the system's and of the first message) go to the same
    one, which has that beginning in its KV cache, unless it has half as many requests again as the others.
    Another choice for a running app ends its replicas before new ones start."""

    wake_timeout_s: float = Field(600, gt=0)
    """How long a request to an app that is scaled to zero waits for a replica; then it is answered 503."""

    max_ongoing_requests: int = Field(256, ge=1)
    """Requests that one replica hands to its engine at a time; vLLM batches them continuously."""

    max_queued_requests: int = Field(256, ge=0)
    """Requests that wait at one replica beyond those; one more is refused with 429."""

    graceful_shutdown_timeout_s: float = Field(60, ge=1)
    """How long a replica that ends may finish its streams."""

    health_check_timeout_s: float = Field(60, gt=0)
    """An engine that does not answer for so long counts as stuck and is replaced. Longer than its longest
    step: on CPU a long prompt may take seconds."""

    log_requests: bool = True
    """One JSON line per request in the replica's log: key id, model, tokens, times."""

    log_prompts: bool = False
    """Put the request's body into that line too."""

    resources: Resources = Resources()
    """What one replica reserves."""

    memory_check: Literal["refuse", "warn"] = "refuse"
    """What happens where the estimate says that the engine needs more memory than it has: the app is refused,
    or vLLM decides."""

    priority: Priority = "serving"
    """The class in which the app waits where there is no room for ``min_replicas``. Unless the cluster orders
    them otherwise, ``interactive`` is before ``serving`` before ``training`` before ``batch``; then age
    counts."""

    route_prefix: str | None = None
    """Path below which the app answers beside ``/v1``, where all apps do; unset: ``/<name>``."""

    store: str | None = None
    """URI of the store that holds the model. Unset: the store of whoever deploys."""

    @field_validator("name")
    @classmethod
    def _dns_like(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"is {name!r}, which cannot be part of an address. Use 1 to 63 lower-case letters, digits "
                "and hyphens, beginning and ending with a letter or digit."
            )
        if f"/{name}" in _TAKEN_PATHS:
            raise ValueError(f"is {name!r}, but at /{name} all apps answer together. Choose another name.")
        return name

    @field_validator("route_prefix")
    @classmethod
    def _a_path(cls, route_prefix: str | None) -> str | None:
        if route_prefix is not None and not _ROUTE_PREFIX.fullmatch(route_prefix):
            raise ValueError(
                f"is {route_prefix!r}. Write a path that begins with / and does not end with one, such as "
                "/assistant. At the root /v1 answers for all apps, by the request's model."
            )
        if route_prefix is not None and ("/" + route_prefix.split("/")[1]) in _TAKEN_PATHS:
            raise ValueError(
                f"is {route_prefix!r}, but below /{route_prefix.split('/')[1]} all apps answer together. "
                "Write another, such as /assistant."
            )
        return route_prefix
