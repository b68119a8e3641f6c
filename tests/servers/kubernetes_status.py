"""The Status objects with which the Kubernetes stand-in refuses, shaped as an API server's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Field = tuple[str, ...]
"""The way to a field, in the words of FieldsV1: ``("f:spec", "f:replicas")``."""


class Refusal(Exception):
    """An answer that is no object.

    Args:
        code: HTTP status.
        reason: One CamelCase word.
        message: For people.
        causes: ``details.causes``.
    """

    def __init__(self, code: int, reason: str, message: str, causes: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.causes = code, reason, message, list(causes)

    def status(self) -> dict[str, Any]:
        """The Status object."""
        details = {"details": {"causes": self.causes}} if self.causes else {}
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
            **details,
        }


def unauthorized() -> Refusal:
    """No token, or a wrong one."""
    return Refusal(401, "Unauthorized", "Unauthorized")


def forbidden(verb: str, plural: str) -> Refusal:
    """RBAC's refusal."""
    return Refusal(
        403,
        "Forbidden",
        f'{plural} is forbidden: User "tester" cannot {verb} resource "{plural}" in API group',
    )


def no_page() -> Refusal:
    """A path that leads nowhere, such as that of a kind whose CRD is not installed."""
    return Refusal(404, "NotFound", "the server could not find the requested resource")


def not_found(plural: str, name: str) -> Refusal:
    """No such object."""
    return Refusal(404, "NotFound", f'{plural} "{name}" not found')


def already_exists(plural: str, name: str) -> Refusal:
    """POST of a name that is taken."""
    return Refusal(409, "AlreadyExists", f'{plural} "{name}" already exists')


def modified(plural: str, name: str) -> Refusal:
    """A resourceVersion that is no longer."""
    return Refusal(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified; please apply '
        "your changes to the latest version and try again",
    )


def invalid(kind: str, name: str, field: str, message: str) -> Refusal:
    """A field that validation refuses."""
    cause = {"reason": "FieldValueInvalid", "message": message, "field": field}
    return Refusal(422, "Invalid", f'{kind} "{name}" is invalid: {field}: {message}', [cause])


def apply_conflict(held: Iterable[tuple[str, str, Field]]) -> Refusal:
    """Server-side apply of fields that others own: (manager, its apiVersion, field) each."""
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{manager}" using {api_version}',
            "field": dotted(field),
        }
        for manager, api_version, field in held
    ]
    noun = "conflict" if len(causes) == 1 else "conflicts"
    told = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    return Refusal(409, "Conflict", f"Apply failed with {len(causes)} {noun}: {told}", causes)


def budget_refusal(budget: str) -> Refusal:
    """An eviction that a PodDisruptionBudget does not allow."""
    cause = {
        "reason": "DisruptionBudget",
        "message": f"The disruption budget {budget} needs more healthy pods than there are.",
    }
    return Refusal(
        429,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
        [cause],
    )


def dotted(field: Field) -> str:
    """As conflicts name it: ``.spec.replicas``, ``.spec.ports[port=80,protocol="TCP"]``."""
    return "".join(f".{part[2:]}" if part.startswith("f:") else part for part in field)
