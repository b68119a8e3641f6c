"""Whether Kubernetes would take a manifest: core kinds by its own schemas, custom kinds by their CRDs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from cluster.kubernetes.core_kinds import is_core
from cluster.kubernetes.schemas import Schemas
from cluster.kubernetes.workloads import Manifest
from tests.conftest import ROOT

SCHEMAS = ROOT.parent / "shared" / "k8s-schemas"
WITHOUT_SCHEMA = {"HTTPRoute", "GCPBackendPolicy", "HealthCheckPolicy", "BackendConfig"}
"""Kinds of ours whose CRDs are not among the schemas."""


@cache
def crds() -> Schemas:
    if not SCHEMAS.is_dir():
        pytest.skip(f"The CRDs' schemas are not here ({SCHEMAS}).")
    return Schemas.from_folder(SCHEMAS)


def assert_accepted(manifests: Iterable[Manifest]) -> None:
    """Every one, strictly: a field that Kubernetes does not know fails, too."""
    for manifest in manifests:
        if is_core(manifest["apiVersion"]):
            kubernetes_validate.validate(manifest, "1.34", strict=True)
        elif manifest["kind"] not in WITHOUT_SCHEMA:
            schema = crds().find(manifest["apiVersion"], manifest["kind"])
            assert schema is not None, f"no schema for {manifest['kind']}"
            Draft202012Validator(schema).validate(manifest)


def only(manifests: Iterable[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one object of a kind, or the one with this name."""
    found = [one for one in manifests if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    assert len(found) == 1, [one["metadata"]["name"] for one in found]
    return found[0]


def pod_templates(manifests: Iterable[Manifest]) -> Iterator[tuple[Manifest, str, Manifest]]:
    """Every pod template of Ray's kinds: its manifest, its container's name without ``ray-``, itself."""
    for manifest in manifests:
        body = manifest.get("spec", {})
        cluster = body.get("rayClusterSpec") or body.get("rayClusterConfig") or body
        groups = [cluster.get("headGroupSpec"), *cluster.get("workerGroupSpecs", ())]
        templates = [group["template"] for group in groups if group]
        for template in [*templates, *filter(None, [body.get("submitterPodTemplate")])]:
            yield manifest, template["spec"]["containers"][0]["name"].removeprefix("ray-"), template
