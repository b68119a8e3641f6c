"""What a check finds in a manifest: which field, what value, why it cannot work, what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.kubernetes.workloads import Manifest

_LONGEST = 80
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class Fault:
    """One fault, or with ``warning`` one piece of advice, of one object."""

    field: str
    """``spec.workerGroupSpecs[0].minReplicas``."""

    value: Any
    """What is there; None: nothing."""

    why: str
    """A sentence: why that cannot work."""

    remedy: str
    """A sentence: what to do."""

    warning: bool = False
    """Advice: nobody refuses the manifest, but it does not do what its author wants."""

    file: str = ""
    kind: str = ""
    name: str = ""

    def of(self, file: str, manifest: Manifest) -> Fault:
        """The same fault, with the file and the object that it is in. A Secret's values are left out."""
        kind, value = str(manifest.get("kind") or "object"), self.value
        if kind == "Secret" and value is not None:
            value = "(hidden)"
        return replace(self, value=value, file=file, kind=kind, name=name_of(manifest))

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"{self.file}: {self.kind}/{self.name}: " if self.kind else ""
        return f"{where}{self.in_object()}"

    def in_object(self) -> str:
        """The fault without file and object: field, value, why, remedy."""
        return f"{self.field} {_said(self.value)}. {self.why} {self.remedy}"


def advice(field: str, value: Any, why: str, remedy: str) -> Fault:
    """A fault that nobody refuses."""
    return Fault(field, value, why, remedy, warning=True)


def name_of(manifest: Manifest) -> str:
    """The object's name as far as it has one, for messages."""
    metadata = manifest.get("metadata")
    name = metadata.get("name") or metadata.get("generateName") if isinstance(metadata, dict) else None
    return str(name or "(no name)")


def _said(value: Any) -> str:
    if value is None:
        return "is not set"
    text = repr(value)
    return f"is {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"
