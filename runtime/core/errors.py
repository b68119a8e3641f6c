"""The one error tree. Every error says what was given, why it cannot work and what to do.

Only the standard library is imported here: the environment builder runs before anything is installed.
Errors cross Ray processes, so an ``__init__`` of its own needs a ``__reduce__`` of its own.
"""

from __future__ import annotations


class TandemError(Exception):
    """Root of all errors that Tandem raises on purpose."""

    exit_code = 1
    """What the command line exits with."""


class ConfigError(TandemError):
    """A spec or an argument cannot work. The message names file, field, value and remedy."""

    exit_code = 2


class StorageError(TandemError):
    """Bytes could not be found, read, written or committed. The message names the address and the remedy."""


class NotFound(StorageError):
    """Nothing is at the address, or its bucket does not exist."""


class Denied(StorageError):
    """The store refuses these credentials, or there are none."""


class Conflict(StorageError):
    """Somebody else committed at the same address first: theirs stands."""


class Unreachable(StorageError):
    """The store did not answer in time, however often it was asked."""


class Corrupt(StorageError):
    """Bytes are not those that were written: a checksum or a length differs."""


class NoSpace(StorageError):
    """The disk or the quota is full; nothing was committed."""


class EnvironmentFault(TandemError):
    """An environment (core, train, serve) is missing, incomplete, or does not match the others."""


class ClusterError(TandemError):
    """The cluster could not be started, reached or stopped, or can never hold what was asked."""


class RunFailed(TandemError):
    """A training run ended without a result.

    Args:
        run_id: The run, as ``tandem runs`` lists it.
        reason: The worker's last error line.
        log: Where the whole log is: a path or the command that prints it.
    """

    _ending = "failed"

    def __init__(self, run_id: str, reason: str, log: str) -> None:
        super().__init__(f"run {run_id} {self._ending}: {reason}\nThe whole log: {log}")
        self.run_id, self.reason, self.log = run_id, reason, log

    def __reduce__(self) -> tuple[type[RunFailed], tuple[str, str, str]]:
        return type(self), (self.run_id, self.reason, self.log)


class RunStopped(RunFailed):
    """A training run was stopped before its end; it can be resumed."""

    _ending = "was stopped"


class WaitTimeout(TandemError, TimeoutError):
    """What was waited for did not happen in time; it goes on."""


class ServeError(TandemError):
    """A serve app could not be deployed, or its endpoint did not answer."""
