"""A stand-in for a Kubernetes cluster, with the kinds that Tandem needs, for every test that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.kubernetes.client import Kubernetes
from tests.servers.kubernetes_api import Cluster
from tests.servers.kubernetes_api import kubernetes_api as server


@pytest.fixture
def kubernetes_api() -> Iterator[Cluster]:
    """An API server with KubeRay's and the Prometheus operator's kinds, empty but for two namespaces."""
    with server() as cluster:
        cluster.install("kuberay", "prometheus")
        yield cluster


@pytest.fixture
def kubernetes(kubernetes_api: Cluster) -> Kubernetes:
    """The seam, connected to the stand-in."""
    return Kubernetes.connect(host=kubernetes_api.url)
