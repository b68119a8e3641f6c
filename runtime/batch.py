"""A batch: many requests from a file, sent to running replicas side by side, each answer kept as it comes."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster import applications, jobs
from cluster.rest import is_remote
from runtime.batch_file import Answers, BatchRequest, Checked, check_input, has_failed, requests_in
from runtime.core.errors import ConfigError, ServeError
from runtime.core.lookup import did_you_mean
from runtime.core.places import cache_root
from storage.file_lock import try_to_hold
from storage.location import Location, locate
from storage.transfer import copy_file

if TYPE_CHECKING:
    import httpx

    from runtime.batch_client import Client

CONCURRENCY = 64
PATIENCE_S = 300.0
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class BatchResult:
    """How a batch went."""

    output: str
    total: int
    """Requests in the input."""
    skipped: int = 0
    """Of those, asked by an earlier call."""
    sent: int = 0
    """Asked by this call, whatever came of it."""
    failed: int = 0
    """Failure lines in the output, those of earlier calls included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


Told = Callable[[BatchResult], None]


def run_batch(
    source: str | Path,
    output: str | Path,
    *,
    endpoint: str,
    model: str | None = None,
    concurrency: int = CONCURRENCY,
    retry_failed: bool = False,
    patience_s: float = PATIENCE_S,
    timeout_s: float = TIMEOUT_S,
    api_key: str | None = None,
    told: Told = lambda _: None,
) -> BatchResult:
    """Send every request of ``source`` that ``output`` does not answer yet, and append the answers.

    Args:
        source: Path or address of a file in OpenAI's batch format.
        output: Path or address; what an earlier call left there is gone on with.
        endpoint: Where the models are served, ``http://host:8000``, with or without ``/v1``.
        model: For lines whose body names none.
        concurrency: Requests in flight.
        retry_failed: Ask again what failed in an earlier call.
        patience_s: How long one request is tried again while the server is busy, failing or away.
        timeout_s: How long the server may take for one answer.
        api_key: Sent as a bearer token.
        told: Called with the counts so far after each answer.

    Raises:
        ConfigError: a line of the input cannot work, or the output is another batch's. Nothing was sent.
        ServeError: the endpoint cannot be reached, or refuses the key. What came before is in the output.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}. Set it to 1 or more.")
    place = locate(str(output), field="the output")
    mark = hashlib.sha256(place.uri.encode()).hexdigest()[:16]
    lock = try_to_hold(cache_root() / "locks" / f"batch-{mark}")
    if lock is None:
        raise ConfigError(f"{place.uri}: another batch is writing it. Wait for it, or name another output.")
    with lock, tempfile.TemporaryDirectory() as scratch:
        file = _on_this_machine(locate(str(source), field="the input"), Path(scratch))
        checked = check_input(file, str(source), model)
        with Answers(place, Path(scratch)) as answers:
            from runtime.batch_client import Client

            known = answers.known(checked.custom_ids, retry_failed=retry_failed)
            client = Client(
                endpoint, api_key=api_key, concurrency=concurrency, patience_s=patience_s, timeout_s=timeout_s
            )
            start = BatchResult(
                place.uri, len(checked.custom_ids), skipped=len(known), failed=sum(known.values())
            )
            todo = (request for request in requests_in(file, model) if request.custom_id not in known)
            sender = _Sender(client, answers, start, told)
            return _run(sender.send_all(todo, checked, concurrency))


def _on_this_machine(source: Location, scratch: Path) -> Path:
    local = source.local_path()
    if local is None:
        copy_file(source, locate(str(scratch / "input.jsonl")))
        return scratch / "input.jsonl"
    if not local.is_file():
        raise ConfigError(f"the input is {source.uri}, where there is no file. Check the path.")
    return local


def _run(work: Any) -> BatchResult:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # A notebook's loop runs already, in this thread.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class _Sender:
    """Takes requests from one iterator, ``concurrency`` at a time, and keeps the answers and counts."""

    def __init__(self, client: Client, answers: Answers, start: BatchResult, told: Told) -> None:
        self._client, self._answers, self._told = client, answers, told
        self._counts = start
        self._began = time.monotonic()
        self._saving = asyncio.Lock()

    async def send_all(self, todo: Iterator[BatchRequest], checked: Checked, concurrency: int) -> BatchResult:
        self._told(self._counts)
        if self._counts.skipped == self._counts.total:
            return self._counts
        try:
            async with self._client.opened():
                _check_models(checked, await self._client.models())
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, self._counts.total)):
                        group.create_task(self._work(todo))
        except BaseExceptionGroup as faults:
            # The first one ended the others.
            raise faults.exceptions[0] from None
        return self._counts

    async def _work(self, todo: Iterator[BatchRequest]) -> None:
        for request in todo:
            response = await self._client.ask(request)
            self._keep(request, response)
            if self._answers.is_due and not self._saving.locked():
                async with self._saving:
                    await asyncio.to_thread(self._answers.save)

    def _keep(self, request: BatchRequest, response: httpx.Response) -> None:
        answer = _answer(request, response)
        self._answers.add(answer)
        failed = has_failed(answer)
        usage = {} if failed else (answer["response"]["body"].get("usage") or {})
        counts = self._counts
        self._counts = replace(
            counts,
            sent=counts.sent + 1,
            failed=counts.failed + failed,
            prompt_tokens=counts.prompt_tokens + (usage.get("prompt_tokens") or 0),
            completion_tokens=counts.completion_tokens + (usage.get("completion_tokens") or 0),
            seconds=time.monotonic() - self._began,
        )
        self._told(self._counts)


def _answer(request: BatchRequest, response: httpx.Response) -> dict[str, Any]:
    """A line of the output. What is no JSON object cannot be a body: it becomes an error."""
    line: dict[str, Any] = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": request.custom_id}
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        message = f"the server answered {response.status_code}: {response.text[:500]}"
        return {**line, "response": None, "error": {"code": "not_json", "message": message}}
    request_id = response.headers.get("x-request-id") or body.get("id")
    answer = {"status_code": response.status_code, "request_id": request_id, "body": body}
    return {**line, "response": answer, "error": None}


def _check_models(checked: Checked, served: list[str] | None) -> None:
    """Refuse a name that nobody serves before it costs a refusal a line."""
    for model, line in checked.models.items() if served else ():
        if model not in (served or ()):
            raise ConfigError(
                f"line {line}, body.model: is {model!r}, which is not served here. "
                f"{did_you_mean(model, served or ())}"
            )


def endpoint_of(dashboard_url: str, *, inside: bool = False) -> str:
    """Where a cluster's apps answer, ``http://host:8000``.

    Args:
        inside: As seen from the cluster's head.

    Raises:
        ServeError: nothing is served there.
    """
    port = (applications.details(dashboard_url).get("http_options") or {}).get("port")
    if not port:
        raise ServeError(f"nothing is served at {dashboard_url}. Deploy an app first: tandem serve SPEC.")
    return f"http://{'127.0.0.1' if inside else urlsplit(dashboard_url).hostname}:{port}"


def submit_batch(
    dashboard_url: str,
    source: str,
    output: str,
    *,
    options: Mapping[str, str | int | float | bool | None],
    env_vars: Mapping[str, str],
) -> str:
    """Run the same batch as a job on the cluster's head, and return the job's id at once.

    Args:
        source: As in ``run_batch``; a path means the head's.
        options: Of the command line, by name: ``model``, ``concurrency``, ``url``, ``api-key-file``, ...
        env_vars: The job's environment. No key: Ray's dashboard shows it.

    Raises:
        ConfigError: a path was given for a cluster that is not this machine's.
        ClusterError: the dashboard cannot be reached.
    """
    for field, text in (("INPUT", source), ("OUTPUT", output)):
        if is_remote(dashboard_url) and locate(text, field=field).backend.is_local:
            raise ConfigError(
                f"{field} is {text!r}, a path of this machine, which a job at {dashboard_url} does not see. "
                "Give an address of a store, or leave out --job."
            )
    words = [locate(source).uri, locate(output).uri]
    for name, value in options.items():
        words += (
            [f"--{name}"]
            if value is True
            else [f"--{name}", str(value)]
            if value not in (None, False)
            else []
        )
    submission_id = f"batch-{secrets.token_hex(4)}"
    jobs.submit(
        dashboard_url,
        f"python -m runtime batch {shlex.join(words)}",
        submission_id=submission_id,
        env_vars=env_vars,
        metadata={"batch": locate(output).uri},
    )
    return submission_id
