"""What Ray is told on every node of ours, whoever starts it: the embedded cluster, a plain node, a pod."""

from __future__ import annotations

from collections.abc import Mapping

JOB_STOP_S = 300
"""How long a training run gets for its last checkpoint when its job is stopped; Ray's default is 3 s."""

RAY_SETTINGS: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_S),
    # Ray makes all of its workers nice (15): replicas and HAProxy would give way to whatever else the
    # machine does. Here only training gives way (train_jobs/engine/worker.py).
    "RAY_worker_niceness": "0",
    # How often Serve's controller looks at everything. Ray's 0.1 s is 4% of a core on a laptop that only
    # serves; what is decided in that loop takes seconds anyway.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.4",
    # How often each of Serve's actors hands its counts to Ray's metrics, which leave every 5 s.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
}
"""Environment variables."""
