"""Types of cluster specs' fields that Kubernetes has rules for: what it would refuse, the spec refuses."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator

from cluster.name_rules import (
    LABEL_CHARS,
    SUBDOMAIN_CHARS,
    is_annotation_key,
    is_data_key,
    is_dns_label,
    is_host,
    is_label_key,
    is_label_value,
    is_object_name,
    is_range,
)

_LOWER = "lower-case letters, digits, hyphens and dots, beginning and ending with a letter or digit"
_LETTERS = "letters, digits, hyphens, underscores and dots, beginning and ending with a letter or digit"


def _object_name(name: str) -> str:
    if not is_object_name(name):
        raise ValueError(
            f"is {name!r}, which no object in Kubernetes can be called. Use 1 to {SUBDOMAIN_CHARS} {_LOWER}."
        )
    return name


def _queue(name: str) -> str:
    # A queue is an object, and its name the value of a label.
    if not is_object_name(name, LABEL_CHARS):
        raise ValueError(f"is {name!r}, which cannot be a queue's name. Use 1 to {LABEL_CHARS} {_LOWER}.")
    return name


def _namespace(name: str) -> str:
    if not is_dns_label(name):
        raise ValueError(
            f"is {name!r}, which cannot be a namespace. Use 1 to {LABEL_CHARS} lower-case letters, digits "
            "and hyphens, not beginning or ending with a hyphen."
        )
    return name


def _label_value(value: str) -> str:
    if not is_label_value(value):
        raise ValueError(
            f"is {value!r}, which cannot be a label's value. Use at most {LABEL_CHARS} {_LETTERS}."
        )
    return value


def _label_key(key: str) -> str:
    if not is_label_key(key):
        raise ValueError(
            f"is {key!r}, which cannot be the key of a label or taint. Write name or example.com/name; name "
            f"has 1 to {LABEL_CHARS} {_LETTERS}."
        )
    return key


def _labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not is_label_key(key):
            raise ValueError(
                f"has the key {key!r}, which cannot be a label's. Write name or example.com/name; name has 1 "
                f"to {LABEL_CHARS} {_LETTERS}."
            )
        if not is_label_value(value):
            raise ValueError(
                f"has {key}: {value!r}, which cannot be a label's value. Use at most {LABEL_CHARS} "
                f"{_LETTERS}."
            )
    return labels


def _annotations(annotations: dict[str, str]) -> dict[str, str]:
    for key in annotations:
        if not is_annotation_key(key):
            raise ValueError(
                f"has the key {key!r}, which cannot be an annotation's. Write name or example.com/name; name "
                f"has 1 to {LABEL_CHARS} {_LETTERS}."
            )
    return annotations


def _data_key(key: str) -> str:
    if not is_data_key(key):
        raise ValueError(
            f"is {key!r}, which cannot be a key in a Secret. Use 1 to {SUBDOMAIN_CHARS} letters, digits, "
            "hyphens, underscores and dots."
        )
    return key


def _host(host: str) -> str:
    if not is_host(host):
        raise ValueError(
            f"is {host!r}, which is no DNS name. Write the name alone, in lower case, without scheme, port "
            "or path: llm.example.com, or *.example.com for all below it."
        )
    return host


def _range(text: str) -> str:
    if not is_range(text):
        raise ValueError(
            f"is {text!r}, which is no range of addresses. Write 10.0.0.0/8, or 10.0.0.5/32 for one address."
        )
    network = ipaddress.ip_network(text, strict=False)
    if str(ipaddress.ip_interface(text).ip) != str(network.network_address):
        raise ValueError(
            f"is {text!r}, an address with the width of a range. Write {network}, or "
            f"{ipaddress.ip_interface(text).ip}/{network.max_prefixlen} for this address alone."
        )
    return text


INT32 = 2**31 - 1
"""Kubernetes' groups end there, and KubeRay counts tries and seconds in 32 bits."""

ObjectName = Annotated[str, AfterValidator(_object_name)]
"""Of a Secret, a claim, a class."""

QueueName = Annotated[str, AfterValidator(_queue)]
NamespaceName = Annotated[str, AfterValidator(_namespace)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
Annotations = Annotated[dict[str, str], AfterValidator(_annotations)]
DataKey = Annotated[str, AfterValidator(_data_key)]
"""Under which a Secret has a value."""

Host = Annotated[str, AfterValidator(_host)]
AddressRange = Annotated[str, AfterValidator(_range)]
