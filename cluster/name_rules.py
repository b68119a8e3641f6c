"""What Kubernetes takes as a name, a label, a host, an image or addresses: cluster specs and lints ask here.

Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ and
https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/
"""

from __future__ import annotations

import ipaddress
import re

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_DNS_LABEL.pattern}(\.{_DNS_LABEL.pattern})*")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_RANGE = re.compile(r"[0-9a-fA-F.:]+/[0-9]+")

_DOMAIN_PART = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_REPOSITORY_PART = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_REPOSITORY_PART}(?:/{_REPOSITORY_PART})*")
_IMAGE_ENDING = re.compile(r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?\Z")
_IMAGE_NAME_CHARS = 255

LABEL_CHARS = 63
"""Of a part of a DNS name, of a label's value, and of its key behind the slash."""

SUBDOMAIN_CHARS = 253
"""Of most objects' names, and of a label's key before the slash."""


def is_dns_label(text: str) -> bool:
    """Whether a namespace may be called so (RFC 1123)."""
    return _fits(_DNS_LABEL, text, LABEL_CHARS)


def is_dns_1035(text: str, most: int = LABEL_CHARS) -> bool:
    """Whether a Service may be called so (RFC 1035): as a namespace, but with a letter first."""
    return _fits(_DNS_1035, text, most)


def is_object_name(text: str, most: int = SUBDOMAIN_CHARS) -> bool:
    """Whether a Secret, a claim, a class, a service account and most other objects may be called so."""
    return _fits(_SUBDOMAIN, text, most)


def is_label_value(text: str) -> bool:
    """Whether a label may have it, on an object, on a node, or as a taint's value."""
    return not text or _fits(_LABEL, text, LABEL_CHARS)


def is_label_key(text: str) -> bool:
    """Whether a label or a taint may be called so: ``name`` or ``example.com/name``."""
    prefix, slash, name = text.rpartition("/")
    return (not slash or is_object_name(prefix)) and _fits(_LABEL, name, LABEL_CHARS)


def is_annotation_key(text: str) -> bool:
    """Whether an annotation may be called so: as a label, but with capitals before the slash, too."""
    return is_label_key(text.lower())


def is_data_key(text: str) -> bool:
    """Whether a Secret or ConfigMap may have a value under it."""
    return _fits(_DATA_KEY, text, SUBDOMAIN_CHARS) and text != "." and not text.startswith("..")


def is_host(text: str) -> bool:
    """Whether an Ingress or a Gateway may answer for it: a DNS name, or ``*.`` and one; no address."""
    return is_object_name(text.removeprefix("*.")) and not is_address(text)


def is_address(text: str) -> bool:
    """Whether it is an address of IPv4 or IPv6."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_range(text: str) -> bool:
    """Whether it is a range of addresses as a Service has them: ``10.0.0.0/8``."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    # Python also takes an address alone, and a mask behind the slash.
    return bool(_RANGE.fullmatch(text))


def is_image(text: str) -> bool:
    """Whether it names an image: ``[REGISTRY[:PORT]/]NAME[/NAME...][:TAG][@sha256:DIGEST]``.

    What stands before the first slash is a registry where it has a dot, a port or a capital, or is
    ``localhost``: repositories have small letters only.

    Source: https://github.com/distribution/reference, reference.go and normalize.go
    """
    name = _IMAGE_ENDING.sub("", text, count=1)
    first, slash, rest = name.partition("/")
    if slash and (set(".:[") & set(first) or first == "localhost" or first != first.lower()):
        return bool(_REGISTRY.fullmatch(first)) and _fits(
            _REPOSITORY, rest, _IMAGE_NAME_CHARS - len(first) - 1
        )
    return _fits(_REPOSITORY, name, _IMAGE_NAME_CHARS)


def _fits(pattern: re.Pattern[str], text: str, most: int) -> bool:
    return len(text) <= most and bool(pattern.fullmatch(text))
