"""What one HTTP request has cost so far: the door makes it, the engine's client says what works for it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


class Work(Protocol):
    """One request to the engine, as it stands now. An HTTP request may be several: prompts, choices."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""

    @property
    def first_token_at(self) -> float | None:
        """When the first one came, ``time.monotonic()``."""


@dataclass(slots=True)
class Tally:
    """One HTTP request's counts. Times are ``time.monotonic()`` seconds."""

    model: str
    """The name that usage is booked under: the app's, until somebody knows better (an adapter)."""

    key_id: str | None = None
    """Whose request it is; None where no key is asked for."""

    works: list[Work] = field(default_factory=list)
    """What the engine does or did for it."""

    began_at: float = field(default_factory=time.monotonic)

    @property
    def prompt_tokens(self) -> int:
        """Of all its prompts."""
        return sum(work.prompt_tokens for work in self.works)

    @property
    def completion_tokens(self) -> int:
        """Of all its answers, also of one that still runs or was broken off."""
        return sum(work.completion_tokens for work in self.works)

    @property
    def first_token_at(self) -> float | None:
        """When the first token of any answer came; None before."""
        return min((at for work in self.works if (at := work.first_token_at) is not None), default=None)

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


CURRENT: ContextVar[Tally | None] = ContextVar("tandem_tally", default=None)
"""The tally of the request that this task answers."""
