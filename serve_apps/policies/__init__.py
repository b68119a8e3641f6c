"""What the number of replicas follows, by name: one file a policy, in the form of Ray Serve's own.

Such a file has ``TARGET`` (what one replica should be at when the spec does not say), ``AT_MOST`` (the
largest target that makes sense), ``UNIT``, and a class ``Policy``: made with ``target``, called by Serve's
controller every 0.1 s with an AutoscalingContext, it returns the replicas wanted, a fraction too, and its
state. Ray then applies factors, delays and bounds, and starts the first replica of an idle app by itself.

The class travels to the controller by value, and Tandem need not be installed there: such a file imports
nothing of Tandem's. A replica reports ``running``, ``waiting``, ``kv_cache_usage``, ``ttft_s`` and
``tokens_per_s`` (``serve_apps/engine/stats.py``); a policy finds their means over the last seconds in
``ctx.aggregated_metrics``.

Source: https://docs.ray.io/en/latest/serve/advanced-guides/advanced-autoscaling.html
"""

from __future__ import annotations

import sys
from types import ModuleType

from runtime.core import lookup


def policy(name: str) -> ModuleType:
    """The policy of that name.

    Raises:
        ConfigError: there is none; names those that exist.
    """
    return lookup.load(sys.modules[__name__], name, field="autoscaling.policy")
