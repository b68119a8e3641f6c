"""What of a serve spec can never work on this cluster, whatever the product of its GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.estimator.attention_layers import text_of, whole
from runtime.core.errors import ConfigError
from serve_apps.defaults import workers
from serve_apps.spec import ServeSpec
from storage.models import ModelVersion

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_open(spec: ServeSpec, http_host: str | None) -> None:
    """Refuse an app without keys where others could reach it.

    Raises:
        ConfigError: they could.
    """
    if spec.auth == "none" and http_host not in _LOOPBACK:
        raise ConfigError(
            f"auth is 'none', but Serve listens at {http_host or '0.0.0.0'}, where others could ask without "
            "a key. Set auth: keys (a key: tandem keys create NAME), or let Serve listen at 127.0.0.1."
        )


def check_parallel(engine: Mapping[str, Any], model: ModelVersion, gpus: float) -> None:
    """Refuse workers that the model cannot be divided over, or that shares of cards cannot hold.

    Args:
        engine: vLLM's arguments.
        gpus: What each worker reserves.

    Raises:
        ConfigError: they cannot; names the field.
    """
    tensor_parallel_size = engine.get("tensor_parallel_size", 1)
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if engine.get(name, 1) < 1:
            raise ConfigError(f"engine.{name} is {engine[name]}. Set it to 1 or more.")
    if engine.get("distributed_executor_backend") == "ray" and gpus != 1:
        raise ConfigError(
            "engine.distributed_executor_backend is 'ray': each worker gets a whole GPU of any node, but "
            f"resources.gpus is {gpus:g}. Set resources.gpus: 1, or leave the backend out."
        )
    heads = _attention_heads(model)
    if heads and heads % tensor_parallel_size:
        fitting = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise ConfigError(
            f"engine.tensor_parallel_size is {tensor_parallel_size}, which does not divide the {heads} "
            f"attention heads of {model.ref}. Set it to one of {', '.join(fitting)}."
        )
    if 0 < gpus < 1 and workers(engine) > 1:
        raise ConfigError(
            f"resources.gpus is {gpus} but the replica has {workers(engine)} workers "
            "(engine.tensor_parallel_size x engine.pipeline_parallel_size), and Ray cannot place shares of "
            "several GPUs for one replica. Set resources.gpus: 1."
        )


def _attention_heads(model: ModelVersion) -> int | None:
    """From config.json; None where it does not tell."""
    return whole(text_of(model.config()).get("num_attention_heads"))


def check_fits(
    spec: ServeSpec, reserved: Mapping[str, float], cluster_resources: Mapping[str, float]
) -> None:
    """Refuse first replicas that want more than the whole cluster has.

    Args:
        reserved: By one replica, in Ray's names.
        cluster_resources: All that the cluster has, in the same.

    Raises:
        ConfigError: they do; says by how much.
    """
    replicas = max(1, spec.autoscaling.min_replicas)
    fields = {
        "CPU": "resources.cpus",
        "GPU": "resources.gpus x engine.tensor_parallel_size x engine.pipeline_parallel_size",
    }
    for resource, field in fields.items():
        wanted, total = reserved[resource] * replicas, cluster_resources.get(resource, 0)
        if wanted > total:
            times = f" times autoscaling.min_replicas ({replicas})" if replicas > 1 else ""
            raise ConfigError(
                f"{field} is {reserved[resource]:g}{times}: {wanted:g} {resource}s, but the whole cluster "
                f"has {total:g}. Ask for less, or add nodes."
            )
