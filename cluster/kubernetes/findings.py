"""What a look at a cluster found: how bad, what was seen, why it matters, what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class Finding:
    """One thing about a cluster."""

    level: Level
    """``error``: it will not work. ``warning``: it may not, or not well. ``ok``: looked at, and fine."""

    topic: str
    """What it is about, in a word or two."""

    seen: str
    why: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)

    def in_words(self) -> str:
        """All of it in one line."""
        return " ".join(part for part in (f"{self.topic}: {self.seen}", self.why, self.remedy) if part)


def errors(findings: list[Finding]) -> list[Finding]:
    """Those with which it will not work."""
    return [one for one in findings if one.level == "error"]
