"""What one HTTP request has cost so far: set at the door, counted where the engine's outputs pass."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """One request's counts. Times are ``time.monotonic()`` seconds."""

    model: str
    """The name that usage is booked under: the app's, until somebody knows better (an adapter)."""

    key_id: str | None = None
    """Whose request it is; None where no key is asked for."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    began_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


CURRENT: ContextVar[Tally | None] = ContextVar("tandem_tally", default=None)
"""The tally of the request that this task answers."""
