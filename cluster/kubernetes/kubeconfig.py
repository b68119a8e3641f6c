"""Which cluster, as which account: a context of a kubeconfig, or what a pod has."""

from __future__ import annotations

from kubernetes import config
from kubernetes.client import Configuration
from kubernetes.config.config_exception import ConfigException

from runtime.core.errors import ClusterError


def load_kubeconfig(configuration: Configuration, context: str | None) -> None:
    """Fill in a kubeconfig's context, else, where none is named, what a pod has.

    Raises:
        ClusterError: there is no kubeconfig, or no such context in it.
    """
    try:
        config.load_kube_config(context=context, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        try:
            if context is not None:
                raise error
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except ConfigException:
            wanted = f"the context {context!r}" if context else "a kubeconfig"
            raise ClusterError(
                f"cannot use {wanted}: {error}. Check `kubectl config get-contexts`; KUBECONFIG "
                "names the file where it is not ~/.kube/config."
            ) from None
