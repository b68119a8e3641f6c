"""What must hold before a machine joins a plain cluster, looked at before its Ray starts."""

from __future__ import annotations

import socket
import time
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path

import httpx

from cluster.auth import auth_headers
from cluster.environments import check_pair, describe
from cluster.plain.record import Machine, Record
from cluster.rest import is_remote, ray_version
from runtime.core.errors import ClusterError, ConfigError, EnvironmentFault, StorageError
from runtime.core.log import get_logger
from storage.patience import patience
from storage.store import open_store

_log = get_logger(__name__)
_LAST_PORT = 65535
_CONNECT_TIMEOUT_S = 5.0
_STORE_PATIENCE_S = 20.0
_SKEW_S = 5.0
"""Queues, live figures and logs compare clocks of machines; more than this is seen in them."""


def head_address(text: str) -> tuple[str, int]:
    """Host and port of ``HEAD:6379``.

    Raises:
        ConfigError: it is no such address.
    """
    host, _, port = text.rpartition(":")
    if ":" in host:
        raise ConfigError(
            f"--join is {text!r}. A plain cluster's machines know each other by IPv4 addresses. Write the "
            "head's as it was printed: 10.0.0.1:6379."
        )
    if not host or not port.isdecimal() or "/" in text or not 1 <= int(port) <= _LAST_PORT:
        raise ConfigError(
            f"--join is {text!r}, which is no host and port (1 to {_LAST_PORT}). Write the head's address as "
            "it was printed: 10.0.0.1:6379."
        )
    return host, int(port)


def checked_ip(text: str) -> str:
    """This machine's address, as ``--node-ip-address`` names it.

    Raises:
        ConfigError: it is none, or one of IPv6.
    """
    try:
        version = ip_address(text).version
    except ValueError:
        version = None
    if version != 4:
        what = "an IPv6 address, but only IPv4 works" if version else "no address"
        raise ConfigError(
            f"--node-ip-address is {text!r}, which is {what}. Write this machine's IPv4 address in the "
            "network, such as 10.0.0.2."
        )
    return text


def own_address(peer: str, port: int) -> str:
    """The address by which this machine reaches ``peer``; nothing is sent.

    Raises:
        ClusterError: there is no way there, or no such name.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ClusterError(
            f"this machine has no way to {peer} ({error.strerror}). Check the address and the network, or "
            "name this machine's own with --node-ip-address."
        ) from None


def check_reachable(host: str, port: int) -> None:
    """Refuse a head that does not take a connection.

    Raises:
        ClusterError: it does not.
    """
    if reason := _no_answer(host, port):
        raise ClusterError(
            f"nothing answers at {host}:{port} ({reason}). Does the head run (`tandem up --head` there), and "
            "is the port open between the two machines?"
        )


def check_dashboard_reachable(host: str, port: int) -> None:
    """Refuse a head whose dashboard is not at this port.

    Raises:
        ClusterError: it does not take a connection.
    """
    if reason := _no_answer(host, port):
        raise ClusterError(
            f"the head's dashboard does not answer at {host}:{port} ({reason}). If the head was started with "
            "another --dashboard-port, give the same here; else open the port between the two machines."
        )


def _no_answer(host: str, port: int) -> str | None:
    """Why nobody takes a connection there; None where somebody does."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def check_ray_version(dashboard_url: str) -> None:
    """Refuse a head with another Ray; looks at the clocks too, which are only warned of.

    Raises:
        EnvironmentFault: Ray differs here and there, or an environment is not built.
        ClusterError: the dashboard does not answer, or refuses the token.
    """
    check_pair()
    ours, theirs = describe("core").ray, ray_version(dashboard_url)
    if ours != theirs:
        raise EnvironmentFault(
            f"the head at {dashboard_url} runs Ray {theirs}, but this machine's environments have Ray "
            f"{ours}. One cluster needs one version. Install the same Tandem on both and run: tandem setup."
        )
    _warn_of_skew(dashboard_url)


def _warn_of_skew(dashboard_url: str) -> None:
    reply = httpx.get(
        f"{dashboard_url}/api/version",
        headers=auth_headers(),
        timeout=_CONNECT_TIMEOUT_S,
        trust_env=is_remote(dashboard_url),
    )
    if "date" not in reply.headers:
        return
    skew_s = time.time() - parsedate_to_datetime(reply.headers["date"]).timestamp()
    if abs(skew_s) > _SKEW_S:
        _log.warning(
            "this machine's clock is %.0f s %s the head's. Set both by NTP: figures and queues compare them.",
            abs(skew_s),
            "ahead of" if skew_s > 0 else "behind",
        )


def check_machine(ours: Machine, theirs: Machine) -> None:
    """Refuse a machine on which the head's interpreters and code are elsewhere, or others.

    Raises:
        EnvironmentFault: they differ; names what, and both values.
    """
    flat_ours, flat_theirs = _flat(ours), _flat(theirs)
    for what, value in flat_theirs.items():
        if flat_ours.get(what) != value:
            raise EnvironmentFault(
                f"{what} is {flat_ours.get(what)} on this machine and {value} on the head. Workers are "
                "started by the head's paths and code: install the same Tandem, run `tandem setup`, and set "
                "TANDEM_CACHE (and TANDEM_FILE_CACHE) to the same folder on all machines."
            )


def _flat(machine: Machine) -> dict[str, str]:
    interpreters = {f"the {name} environment": path for name, path in machine.interpreters.items()}
    return {
        "Ray": machine.ray,
        "Python": machine.python,
        **interpreters,
        "Tandem's code": machine.code,
        "the cache of files": machine.file_cache,
    }


def check_store(record: Record, given: str | None) -> None:
    """Refuse a machine that does not see the very store that the head uses.

    Args:
        given: The store that was named on this machine, if one was.

    Raises:
        ConfigError: another one was named.
        ClusterError: at that address is another one, or none, for this machine.
    """
    if given is not None and open_store(given).uri != record.store:
        raise ConfigError(
            f"--store (or TANDEM_STORE) is {given}, but the cluster's store is {record.store}. Leave it "
            "out: the head's is taken."
        )
    if Path(record.store).is_absolute() and not Path(record.store).is_dir():
        raise _no_store(record, "there is no such folder here")
    try:
        with patience(_STORE_PATIENCE_S):
            found = (open_store(record.store).root / record.mark).read_bytes().decode()
    except StorageError as error:
        raise _no_store(record, str(error)) from None
    if found != record.mark_content:
        raise _no_store(record, "another store lies here")


def _no_store(record: Record, why: str) -> ClusterError:
    return ClusterError(
        f"the cluster's store is {record.store}, but this machine does not see it: {why}. Mount the same "
        "folder at the same path on all machines, or start the head with a store on gs:// or s3://."
    )
