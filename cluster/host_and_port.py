"""The host and port in an address that a spec names, read in one place: refused there, used in policies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from cluster.name_rules import is_address

REDIS_PORTS = {"redis": 6379, "rediss": 6379}
HTTP_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def host_and_port(address: str, ports: Mapping[str, int]) -> tuple[str, int]:
    """Of ``scheme://host:port/path``.

    Args:
        ports: The schemes that it may have, each with the port that is meant where none is written.

    Raises:
        ValueError: it has another scheme, no host, or a port that there is not; says which.
    """
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise ValueError(f"which is no address ({error})") from None
    if url.scheme not in ports:
        raise ValueError(f"which begins with none of {', '.join(f'{scheme}://' for scheme in ports)}")
    if not (_HOST.fullmatch(host) or is_address(host)):
        raise ValueError("which names no host")
    if port == 0:
        raise ValueError("whose port is 0")
    return host, port or ports[url.scheme]


def redis_host_and_port(address: str) -> tuple[str, int]:
    """Of ``redis:6379``, with or without a scheme and a port.

    Raises:
        ValueError: as ``host_and_port`` does.
    """
    return host_and_port(address if "://" in address else f"redis://{address}", REDIS_PORTS)
