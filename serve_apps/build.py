"""The application that Ray Serve builds: imported on the cluster, in the core environment, without vLLM.

Plain Ray tools use it too: ``import_path: serve_apps.build:build_app`` with the spec as ``args``.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray import serve
from ray._private.state import available_resources_per_node
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from cluster.environments import check_pair, interpreter, process_env
from cluster.haproxy_rules import BY_PREFIX
from cluster.inventory import Inventory
from cluster.ledger.client import as_read
from cluster.nodes import node_of
from cluster.nodes_to_come import at_its_largest
from runtime.core.config import load_spec
from serve_apps.autoscaling import autoscaling_config
from serve_apps.deployment import VllmReplica
from serve_apps.plan import ServePlan, pinned_to, plan_serve
from serve_apps.room import wait_for_room
from serve_apps.spec import ServeSpec
from storage.store import open_store


# `args` is a plain dict on purpose: Serve would hand over an unvalidated dict for a typed one whenever
# annotations are postponed, so the spec is read explicitly.
def build_app(args: dict[str, Any]) -> serve.Application:
    """The Serve application for a serve spec.

    Args:
        args: The spec's fields. Whatever is not resolved yet (the model's latest version, GPUs per worker)
            is resolved on this cluster.

    Raises:
        ConfigError: the spec can never work here; Serve shows the message in the app's status.
        EnvironmentFault: Ray or Python differ between the core and the serve environment.
    """
    check_pair(("core", "serve"))
    spec = load_spec(ServeSpec, args)
    plan = plan_serve(
        spec,
        store=open_store(spec.store),
        inventory=at_its_largest(
            as_read(
                Inventory.of(
                    node_of(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]
                )
            )
        ),
        http_host=_http_host(),
    )
    wait_for_room(plan)
    return deploy(plan, free_resources=free_for(plan, available_resources_per_node().values()))


def _http_host() -> str | None:
    """Where this cluster's Serve listens."""
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    return ray.get(controller.get_http_config.remote()).host


def deploy(plan: ServePlan, *, free_resources: Mapping[str, float]) -> serve.Application:
    """The deployment of a plan: its replicas start in the serve environment of the node they land on.

    Args:
        free_resources: What nobody has reserved now of the nodes that a replica may be on, in Ray's names.
    """
    spec = plan.spec
    over_nodes = {"placement_group_bundles": plan.placement_group_bundles, "placement_group_strategy": "PACK"}
    return (
        serve.deployment(VllmReplica)
        .options(
            # HAProxy knows of an app only what Ray writes into its config, and that is the name.
            name=spec.name + (BY_PREFIX if spec.routing == "prefix" else ""),
            max_ongoing_requests=plan.max_ongoing_requests,
            autoscaling_config=autoscaling_config(spec),
            # A model that does not load will not load the second time either; one more try is for
            # accidents, such as a neighbour on the GPU.
            max_constructor_retry_count=2,
            health_check_period_s=5,
            max_surge_percent=_surge_percent(plan, free_resources),
            # The replica's own look at its engine ends before this and says more.
            health_check_timeout_s=spec.health_check_timeout_s + 10,
            graceful_shutdown_timeout_s=spec.graceful_shutdown_timeout_s,
            # The door writes a line per request, and at a replica's speed a second one costs.
            logging_config={"enable_access_log": False},
            ray_actor_options={
                **plan.ray_actor_options,
                # A replica over nodes is where its bundles are.
                "resources": {} if plan.placement_group_bundles else pinned_to(plan.accelerator_type),
                "runtime_env": _runtime_env(plan),
            },
            **(over_nodes if plan.placement_group_bundles else {}),
        )
        .bind(plan.model_dump(mode="json"))
    )


def free_for(plan: ServePlan, free: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What nobody has reserved of the nodes that a replica may be on: those of its product.

    Args:
        free: Of each node, in Ray's names.
    """
    found: dict[str, float] = {}
    for node in free:
        if all(name in node for name in pinned_to(plan.accelerator_type)):
            found |= {name: found.get(name, 0.0) + amount for name, amount in node.items()}
    return found


def _surge_percent(plan: ServePlan, free_resources: Mapping[str, float]) -> int:
    """100 where one more replica finds room: in an update the new ones then start before the old ones end.

    Without room the new one could never start, so the old one ends first, and Ray keeps the requests.
    """
    return 100 if all(free_resources.get(name, 0) >= n for name, n in plan.reserved.items()) else 0


def _runtime_env(plan: ServePlan) -> dict[str, Any]:
    env_vars = {**process_env("serve"), **plan.env_vars}
    # A runtime_env replaces PYTHONPATH; the cluster's own, where this code lies, must stay on it.
    paths = [env_vars.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]
    # vLLM's application and the HTTP server share one event loop: no token changes threads on its way out.
    env_vars["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] = "0"
    env_vars["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return {"py_executable": str(interpreter("serve")), "env_vars": env_vars}
