"""Which cluster, as which account: a context of a kubeconfig, or what a pod has."""

from __future__ import annotations

import yaml
from kubernetes import config
from kubernetes.client import Configuration
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

from runtime.core.errors import ClusterError

_MALFORMED = (yaml.YAMLError, TypeError, AttributeError, KeyError, IndexError, ValueError, OSError)
"""What the official client lets through of a file that it cannot read, or that is no kubeconfig."""


def load_kubeconfig(configuration: Configuration, context: str | None) -> None:
    """Fill in a kubeconfig's context, else, where none is named, what a pod has.

    Raises:
        ClusterError: there is no kubeconfig, or no such context in it, or the file is no kubeconfig.
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
    except _MALFORMED as error:
        # A YAML error shows a part of the file, which holds keys: only its place is told.
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise ClusterError(
            f"{KUBE_CONFIG_DEFAULT_LOCATION} is no kubeconfig that can be used "
            f"({type(error).__name__}{place}). Check it with `kubectl config view`, mend it or have your "
            "provider's command write it anew; KUBECONFIG names another file."
        ) from None
