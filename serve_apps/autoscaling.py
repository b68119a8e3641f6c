"""From a spec's ``autoscaling`` to the ``autoscaling_config`` that Ray Serve takes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from runtime.core.errors import ConfigError
from serve_apps.policies import policy
from serve_apps.spec import ServeSpec

_LONGEST_LOOK_BACK_S = 30.0  # Ray's default
_SHORTEST_LOOK_BACK_S = 2.0
_REPORTS_PER_LOOK_BACK = 4


def autoscaling_config(spec: ServeSpec) -> dict[str, Any]:
    """What ``serve.deployment`` takes as ``autoscaling_config``.

    Args:
        spec: A spec whose ``max_replicas`` is set, as in a plan.

    Raises:
        ConfigError: there is no such policy, or its target can never be reached.
    """
    scaling = spec.autoscaling
    found = policy(scaling.policy)
    target = _target(spec, found)
    # Ray decides on a mean over this time, on top of the delays: no longer than they are, so that a delay of
    # seconds means seconds. Its default is 30 s, with a report every 10.
    shortest_delay_s = min(scaling.upscale_delay_s, scaling.downscale_delay_s)
    look_back_period_s = min(_LONGEST_LOOK_BACK_S, max(_SHORTEST_LOOK_BACK_S, shortest_delay_s))
    config: dict[str, Any] = {
        **scaling.model_dump(exclude={"policy", "policy_target"}),
        "look_back_period_s": look_back_period_s,
        "metrics_interval_s": look_back_period_s / _REPORTS_PER_LOOK_BACK,
        # A class, not a function, for the sake of the argument; Ray makes one object per deployment.
        "policy": {"policy_function": f"{found.__name__}:Policy", "policy_kwargs": {"target": target}},
    }
    if scaling.min_replicas == 0:
        # One starts with the app, so that a model that does not load is known at once and not at the first
        # request. Only here: Ray goes back to this number at every redeploy, whatever runs.
        config["initial_replicas"] = 1
    return config


def _target(spec: ServeSpec, found: ModuleType) -> float:
    scaling = spec.autoscaling
    if found.TARGET is not None:
        target = float(scaling.policy_target or found.TARGET)
        if target > found.AT_MOST:
            raise ConfigError(
                f"autoscaling.policy_target is {target:g}, but {scaling.policy} counts the {found.UNIT}. "
                f"Set it to {found.AT_MOST:g} or less (default {found.TARGET:g})."
            )
        if spec.engine.get("disable_log_stats"):
            raise ConfigError(
                f"engine.disable_log_stats is true, but autoscaling.policy {scaling.policy!r} follows those "
                "statistics. Leave it out, or set autoscaling.policy: ongoing_requests."
            )
        return target
    if scaling.policy_target is not None:
        raise ConfigError(
            f"autoscaling.policy_target is {scaling.policy_target:g}, but the target of "
            f"{scaling.policy} is Ray's target_ongoing_requests. Set that instead."
        )
    most = spec.max_ongoing_requests + spec.max_queued_requests
    if scaling.max_replicas != scaling.min_replicas and scaling.target_ongoing_requests >= most:
        raise ConfigError(
            f"autoscaling.target_ongoing_requests is {scaling.target_ongoing_requests:g}, but one replica "
            f"never holds more than {most} (max_ongoing_requests + max_queued_requests), so no second one "
            "would start. Lower it, or set max_replicas and min_replicas to the same number."
        )
    return scaling.target_ongoing_requests
