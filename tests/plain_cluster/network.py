"""Machines with addresses of their own, on one host: network namespaces behind one bridge."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


class NotPermitted(Exception):
    """This process may make no network namespaces, or the host has no ``ip``."""


@dataclass(frozen=True)
class Place:
    """One namespace."""

    name: str
    ip: str


@contextmanager
def network(count: int) -> Iterator[list[Place]]:
    """So many namespaces that reach each other, and this process reaches them; gone afterwards.

    Raises:
        NotPermitted: it needs root and iproute2.
    """
    # Names of this run's own: other runs on this host have theirs, and 15 letters is what a name may have.
    mark = secrets.token_hex(3)
    subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
    with ExitStack() as undo:
        bridge = f"tdm{mark}"
        _made(undo, f"link add {bridge} type bridge", f"link del {bridge}")
        _ip(f"addr add {subnet}.254/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        yield [
            _place(undo, f"tdm{mark}-{number}", bridge, f"{subnet}.{number}")
            for number in range(1, count + 1)
        ]


def _place(undo: ExitStack, name: str, bridge: str, ip: str) -> Place:
    _made(undo, f"netns add {name}", f"netns del {name}")
    outside = name.replace("-", "v")
    # It goes with the namespace that has its other end.
    _ip(f"link add {outside} type veth peer name eth0 netns {name}")
    _ip(f"link set {outside} master {bridge} up")
    _ip(f"-n {name} addr add {ip}/24 dev eth0")
    _ip(f"-n {name} link set eth0 up")
    _ip(f"-n {name} link set lo up")
    return Place(name, ip)


def _made(undo: ExitStack, make: str, unmake: str) -> None:
    _ip(make)
    undo.callback(_ip, unmake)


def _ip(words: str) -> None:
    try:
        done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NotPermitted("there is no `ip` (iproute2)") from None
    if done.returncode:
        raise NotPermitted(f"ip {words}: {done.stderr.strip()}")
