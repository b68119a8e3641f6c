"""What an object store's answer means: may it pass, or which of our errors is it. Shared by gs and s3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from xml.etree import ElementTree

import requests
import urllib3

from runtime.core.errors import Conflict, Denied, NoSpace, NotFound, StorageError
from storage.backend import CHUNK_BYTES
from storage.patience import REQUEST_TIMEOUT_S, Transient

PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Status codes that may pass: time-outs, too many requests, a server that is overloaded or restarts."""

_FULL_CODES = ("quotaexceeded", "storagefull", "storagequota", "insufficientstorage")

GARBLED = "the answer was cut, or did not come from the store"

MIN_BYTES_PER_S = 10_000
"""A connection slower than this for a whole time-out is taken for dead, and another one is tried."""


def fault(
    status: int, code: str, message: str, *, uri: str, login: str, headers: Mapping[str, str]
) -> Exception:
    """The error for an answer that is no success.

    Args:
        status: HTTP status.
        code: The store's own word (``NoSuchKey``, ``rateLimitExceeded``); empty where it gave none.
        message: The store's own sentence.
        uri: What was asked for.
        login: What to do when the store refuses us, ending with a full stop.
        headers: The answer's headers, for ``Retry-After``.
    """
    said = f"{status} {code or 'no code'}: {message.strip().rstrip('.') or 'no message'}"[:300]
    word = code.lower()
    if any(full in word for full in _FULL_CODES) or status == 507:
        return NoSpace(f"{uri}: the quota or the disk of the store is full ({said}). Free some room there.")
    # Google says 403 where others say 429.
    if status in PASSING or "ratelimit" in word or word in ("slowdown", "requesttimeout", "baddigest"):
        return Transient(said, _retry_after_s(headers))
    if status in (401, 403):
        return Denied(f"{uri}: the store refuses us ({said}). {login}")
    if status == 404 and ("nosuchbucket" in word or "bucket does not exist" in message.lower()):
        return NotFound(f"{uri}: the bucket does not exist ({said}). Create it, or correct the address.")
    if status == 404:
        return NotFound(f"{uri}: nothing is there ({said}). Check the address.")
    if status in (409, 412):
        return Conflict(f"{uri} exists already, or was changed meanwhile ({said}).")
    return StorageError(f"{uri}: the store answered {said}. Check the address and the store's settings.")


def _retry_after_s(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After") or headers.get("retry-after") or ""
    return float(text) if text.isdigit() else 0.0


@contextmanager
def passing() -> Iterator[None]:
    """Connection faults of requests and urllib3, and answers cut so that they cannot be read, as
    :class:`Transient`. Their texts hold URLs: not shown."""
    try:
        yield
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise Transient(in_words(error)) from None
    except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
        raise Transient(in_words(error)) from None
    except (requests.exceptions.InvalidJSONError, ElementTree.ParseError):
        raise Transient(GARBLED) from None


def in_words(error: BaseException) -> str:
    """A connection fault for people: clients' own texts hold URLs, signatures and all."""
    # botocore keeps the cause beside its own text.
    text = f"{error} {getattr(error, 'kwargs', {}).get('error', '')}".lower()
    known = {
        "refused": "the connection is refused",
        "name or service": "the host's name is not known",
        "name resolution": "the host's name is not known",
        "failed to resolve": "the host's name is not known",
        "reset": "the connection was reset",
        "timed out": "no answer in time",
        "incompleteread": "the answer ended too early",
        "closed connection": "the connection was closed",
        "remote end closed": "the connection was closed",
        "certificate": "the server's certificate is not trusted",
    }
    words = next((words for mark, words in known.items() if mark in text), None)
    return words or f"the connection failed ({type(error).__name__})"


def body(read1: Callable[[int], bytes], size_bytes: int) -> Iterator[bytes]:
    """The bytes of an answer as they come, or ``Transient`` when they are too few or come too slowly.

    Args:
        read1: Returns what has arrived, at most so many bytes; empty at the end.
        size_bytes: What was asked for.
    """
    left, began_s, limit_s = size_bytes, time.monotonic(), slow_after_s()
    while left:
        with passing():
            chunk = read1(min(CHUNK_BYTES, left))
        if not chunk:
            raise Transient(f"the answer ended {left} of {size_bytes} bytes too early")
        left -= len(chunk)
        elapsed_s = time.monotonic() - began_s
        if left and elapsed_s > limit_s and (size_bytes - left) / elapsed_s < MIN_BYTES_PER_S:
            raise Transient(f"only {size_bytes - left} of {size_bytes} bytes came in {elapsed_s:.0f} s")
        yield chunk


def slow_after_s() -> float:
    """How long a connection may be slow before it is given up; no longer than our patience."""
    from storage.patience import patience_s

    return min(REQUEST_TIMEOUT_S, patience_s()) / 2
