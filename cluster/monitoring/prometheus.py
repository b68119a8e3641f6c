"""Prometheus' configuration for a Ray cluster, as plain data: the same on a laptop and on many machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.core.errors import ConfigError

DISCOVERY_FILE = "prom_metrics_service_discovery.json"
"""Where Ray's head lists the metrics ports of all nodes, below its temp folder."""

_DISCOVERY_PATH = "/api/prometheus/sd"
"""Where Ray's dashboard answers the same."""

HAPROXY_JOB = "haproxy"
"""The label ``job`` of HAProxy's own metrics, by which rules.json leaves them out."""

SCRAPE_S = 15.0
"""Ray's own metrics leave its processes every 5 to 10 s."""


def prometheus_config(
    *,
    discovery: str,
    cluster: str,
    rule_files: Sequence[str] = (),
    haproxy: Sequence[str] = (),
    haproxy_port: int | None = None,
    token_file: str | None = None,
    scrape_s: float = SCRAPE_S,
) -> dict[str, Any]:
    """What ``prometheus.yml`` says.

    Args:
        discovery: Ray's temp folder on the head, or the URL of its dashboard, ``http://head:8265``.
        cluster: The label ``ray_io_cluster`` of every series, by which the dashboards tell clusters apart.
        rule_files: Paths of alert rules.
        haproxy: ``host:port`` of HAProxy's own metrics.
        haproxy_port: Their port, where it is the same on all nodes: then Ray's list says which these are.
        token_file: File with Ray's token, where the dashboard asks for one.
        scrape_s: Seconds between two looks.

    Raises:
        ConfigError: ``discovery`` is neither an absolute path nor an http URL, or ``haproxy`` and
            ``haproxy_port`` are both given.
    """
    found_by = _found_by(discovery, token_file, scrape_s)
    jobs = [_job("ray", found_by, cluster)]
    if haproxy and haproxy_port:
        raise ConfigError(
            f"haproxy is {', '.join(haproxy)} and haproxy_port is {haproxy_port}: the port is that of all "
            "nodes, these among them. Give one of the two."
        )
    if haproxy:
        jobs.append(_job(HAPROXY_JOB, {"static_configs": [{"targets": list(haproxy)}]}, cluster))
    if haproxy_port:
        jobs.append(_job(HAPROXY_JOB, found_by, cluster, _at_port(haproxy_port)))
    every = f"{round(scrape_s * 1000)}ms"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": list(rule_files),
        "scrape_configs": jobs,
    }


def to_text(config: Mapping[str, Any]) -> str:
    """The text of a configuration or of rules. JSON, which is YAML that nobody reads in two ways."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _found_by(discovery: str, token_file: str | None, refresh_s: float) -> dict[str, Any]:
    refresh = {"refresh_interval": f"{round(refresh_s * 1000)}ms"}
    if discovery.startswith(("http://", "https://")):
        found: dict[str, Any] = {"url": discovery.rstrip("/") + _DISCOVERY_PATH, **refresh}
        if token_file:
            found["authorization"] = {"credentials_file": token_file}
        return {"http_sd_configs": [found]}
    if not Path(discovery).is_absolute():
        raise ConfigError(
            f"discovery is {discovery!r}, which is neither an absolute path nor an http URL. Give Ray's temp "
            "folder on the head, or the dashboard's URL, http://head:8265."
        )
    # A change is seen at once; the refresh is for a file that takes another's place, with a new session.
    return {"file_sd_configs": [{"files": [str(Path(discovery) / DISCOVERY_FILE)], **refresh}]}


def _at_port(port: int) -> list[dict[str, Any]]:
    """The nodes of Ray's list at another port. The head is there three times, and becomes one target.

    Ray's list gives every target its own job's name.
    """
    return [
        {
            "source_labels": ["__address__"],
            "regex": r"(.+):\d+",
            "target_label": "__address__",
            "replacement": f"${{1}}:{port}",
        },
        {"target_label": "job", "replacement": HAPROXY_JOB},
    ]


def _job(
    name: str, found_by: Mapping[str, Any], cluster: str, relabel: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    return {
        "job_name": name,
        **found_by,
        "relabel_configs": [{"target_label": "ray_io_cluster", "replacement": cluster}, *relabel],
        # The same words on every series, and nobody asks for them.
        "metric_relabel_configs": [{"regex": "otel_scope_.*", "action": "labeldrop"}],
    }
