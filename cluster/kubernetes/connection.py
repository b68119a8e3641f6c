"""A connection to a Kubernetes API server: how it is found, how long it is waited for, what kinds it has."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from kubernetes.client import ApiClient, Configuration
from kubernetes.dynamic import DynamicClient, Resource
from kubernetes.dynamic.exceptions import ResourceNotFoundError
from urllib3 import Retry

from cluster.kubernetes.kubeconfig import load_kubeconfig
from cluster.kubernetes.refusals import in_our_words, no_such_kind
from cluster.rest import is_remote
from runtime.core.errors import ClusterError

TIMEOUT_S = (10, 60)
"""To connect, and to answer."""
_RETRIES = Retry(
    total=4,
    backoff_factor=0.3,
    status_forcelist=(502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)
"""Of any method: apply, merge patch and delete may be sent twice; a create then finds its own object."""
_NO_CACHE = str(Path(os.devnull) / "no-cache")
"""The client would keep what kinds there are in a file in the temporary folder, for ever."""


class Connection:
    """An API server, as one account.

    Args:
        configuration: The official client's: address, certificates, credentials.
    """

    def __init__(self, configuration: Configuration) -> None:
        configuration.retries = _RETRIES
        if not is_remote(str(configuration.host)):
            configuration.proxy = None
        self._configuration = configuration
        self.host = str(configuration.host)
        try:
            with self._in_our_words("read", "the API server"):
                self._dynamic = DynamicClient(  # type: ignore[no-untyped-call]
                    ApiClient(configuration), cache_file=_NO_CACHE
                )
        except ValueError as error:
            # Not JSON: something else listens there.
            raise ClusterError(
                f"{self.host} answers, but not as a Kubernetes API server does ({error}). Check the address."
            ) from None

    @classmethod
    def connect(
        cls, context: str | None = None, *, host: str | None = None, token: str | None = None
    ) -> Self:
        """The cluster of a kubeconfig's context, of the pod that this runs in, or at an address.

        Args:
            context: Of the kubeconfig (``KUBECONFIG``, else ``~/.kube/config``). Default: its current one.
            host: Instead of a kubeconfig: the API server's URL.
            token: The bearer token for ``host``.

        Raises:
            ClusterError: there is no kubeconfig or no such context, or nobody answers.
        """
        configuration = Configuration()
        if host is not None:
            configuration.host = host
            if token is not None:
                configuration.api_key["BearerToken"] = token
                configuration.api_key_prefix["BearerToken"] = "Bearer"
        else:
            load_kubeconfig(configuration, context)
        return cls(configuration)

    def version(self) -> str:
        """The API server's version: ``v1.36.1``."""
        return str(self._dynamic.version["kubernetes"]["gitVersion"])

    def has(self, api_version: str, kind: str) -> bool:
        """Whether the cluster knows the kind."""
        with self._in_our_words("look for", kind):
            return self._found(api_version, kind) is not None

    def _resource(self, api_version: str, kind: str) -> Resource:
        with self._in_our_words("look for", kind):
            found = self._found(api_version, kind)
        if found is None:
            raise no_such_kind(api_version, kind)
        return found

    def _found(self, api_version: str, kind: str) -> Resource | None:
        try:
            return self._dynamic.resources.get(api_version=api_version, kind=kind)
        except ResourceNotFoundError:
            return None

    def _in_our_words(self, what: str, name: str) -> AbstractContextManager[None]:
        return in_our_words(what, name, self.host)

    @staticmethod
    def _plain() -> dict[str, Any]:
        """For each request: the answer's bytes, and how long it may take."""
        return {"serialize": False, "_request_timeout": TIMEOUT_S}

    @staticmethod
    def _json(answer: Any) -> Any:
        return json.loads(answer.data)
