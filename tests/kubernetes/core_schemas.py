"""Kubernetes' own schemas, from the package kubernetes-validate, which only tests have."""

from __future__ import annotations

from functools import cache
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from cluster.kubernetes.workloads import Manifest

VERSION = "1.37.0"


def core_faults(manifest: Manifest) -> list[str]:
    """What Kubernetes' own schemas refuse, as ``kubernetes_validate`` does, with files read once."""
    group, slash, version = manifest["apiVersion"].rpartition("/")
    name = f"{manifest['kind'].lower()}-{group.split('.')[0]}{'-' if slash else ''}{version}"
    return [error.message for error in _validator(name).iter_errors(manifest)]


@cache
def _validator(name: str) -> Any:
    registry = Registry().with_resource("", Resource.from_contents(_contents(name)))
    registry = Resource.from_contents(_contents("_definitions")) @ registry
    return Draft202012Validator(_contents(name), registry=registry)


@cache
def _contents(name: str) -> Any:
    file = f"kubernetes-json-schema/v{VERSION}-local-strict/{name}.json"
    return kubernetes_validate.utils.schema_contents(file, VERSION)
