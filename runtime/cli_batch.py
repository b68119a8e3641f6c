"""``tandem batch``: a file of requests to the served models, answered into another file."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from runtime.cli_options import address_option, json_option, store_option

if TYPE_CHECKING:
    from runtime.batch import BatchResult

_LINE_S = 10.0
"""Where there is no terminal, as in a job's log, a line so often."""


@click.command()
@click.argument("source", metavar="INPUT")
@click.argument("output", metavar="OUTPUT")
@click.option("--model", help="For requests whose body names none.")
@click.option("--url", help="Endpoint, http://host:8000. Default: that of the cluster.")
@click.option(
    "--concurrency", type=click.IntRange(1), default=64, show_default=True, help="Requests in flight."
)
@click.option("--retry-failed", is_flag=True, help="Ask again what failed in an earlier call.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(0),
    default=300,
    show_default=True,
    help="Seconds for which a request is tried again while the server is busy or away.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1),
    default=600,
    show_default=True,
    help="Seconds that one answer may take.",
)
@click.option(
    "--api-key-file", metavar="FILE", help="Holds the API key. Default: the variable TANDEM_API_KEY."
)
@click.option("--job", is_flag=True, help="As a job on the cluster, which outlives this command.")
@click.option("-d", "--detach", is_flag=True, help="With --job: return once it is submitted.")
@address_option
@store_option
@json_option
def batch(
    source: str,
    output: str,
    url: str | None,
    api_key_file: str | None,
    job: bool,
    detach: bool,
    address: str | None,
    store: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer the requests in INPUT (OpenAI's batch format, one a line) into OUTPUT.

    Both are paths or addresses of a store. The same command again goes on where it stopped.
    """
    from runtime.batch import run_batch

    if job:
        _as_job(source, output, url, api_key_file, address, store, detach=detach, options=options)
        return
    endpoint = url or _endpoint(address)
    with _Shown() as shown:
        result = run_batch(
            source, output, endpoint=endpoint, api_key=_api_key(api_key_file), told=shown.told, **options
        )
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else _summary(result))
    sys.exit(1 if result.failed else 0)


def _api_key(file: str | None) -> str | None:
    from runtime.core.errors import ConfigError

    if file is None:
        return os.environ.get("TANDEM_API_KEY") or None
    try:
        return Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--api-key-file is {file!r}, which cannot be read ({why}).") from None


def _endpoint(address: str | None) -> str:
    from cluster import local
    from runtime.batch import endpoint_of
    from runtime.core.errors import ConfigError

    dashboard_url = local.dashboard_of(address)
    if dashboard_url is None:
        raise ConfigError("no local cluster runs. Serve a model first (tandem serve SPEC), or give --url.")
    return endpoint_of(dashboard_url)


def _as_job(
    source: str,
    output: str,
    url: str | None,
    api_key_file: str | None,
    address: str | None,
    store: str | None,
    *,
    detach: bool,
    options: dict[str, Any],
) -> None:
    from cluster.rest import is_remote
    from runtime.batch import endpoint_of, submit_batch
    from runtime.core.errors import ConfigError
    from runtime.sdk import Tandem

    if api_key_file is None and os.environ.get("TANDEM_API_KEY"):
        raise ConfigError(
            "--job cannot take the key in TANDEM_API_KEY along: Ray's dashboard shows a job's environment. "
            "Put it into a file that the cluster's head can read, and give --api-key-file (or unset it)."
        )
    tandem = Tandem(address, store=store)
    words = {name.removesuffix("_s").replace("_", "-"): value for name, value in options.items()}
    if api_key_file is not None and not is_remote(tandem.dashboard_url):
        api_key_file = str(Path(api_key_file).absolute())  # the job runs in a folder of its own
    url = url or endpoint_of(tandem.dashboard_url, inside=True)
    job_id = submit_batch(
        tandem.dashboard_url,
        source,
        output,
        options={"url": url, "api-key-file": api_key_file, **words},
        env_vars=tandem._code(),
    )
    click.echo(f"Job {job_id}")
    if not detach:
        sys.exit(_follow(tandem.dashboard_url, job_id))


def _follow(dashboard_url: str, job_id: str) -> int:
    """Print what the job prints until it has ended; the exit code."""
    from cluster import jobs

    printed = 0
    while True:
        ended = (jobs.details(dashboard_url, job_id) or {}).get("status") in (*jobs.ENDED, None)
        log = jobs.logs(dashboard_url, job_id)
        click.echo(log[printed:], nl=False)
        printed = len(log)
        if ended:
            return 0 if (jobs.details(dashboard_url, job_id) or {}).get("status") == "SUCCEEDED" else 1
        time.sleep(1)


def _summary(result: BatchResult) -> str:
    tokens = result.prompt_tokens + result.completion_tokens
    before = f" ({result.skipped} were done before)" if result.skipped else ""
    failed = f", {result.failed} failed (again: --retry-failed)" if result.failed else ""
    return (
        f"{result.total} requests{before}: {result.total - result.failed} answered{failed}; "
        f"{tokens:,} tokens in {result.seconds:.1f} s: {result.output}"
    )


class _Shown:
    """A bar on standard error, or a line now and then where that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._is_live = console.is_terminal
        columns = (
            TextColumn("batch"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}  left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not self._is_live)
        self._task = self._bar.add_task("batch", total=None, more="")
        self._next_line_at = time.monotonic() + _LINE_S

    def told(self, counts: BatchResult) -> None:
        """Show the counts."""
        done = counts.skipped + counts.sent
        speed = counts.completion_tokens / counts.seconds if counts.seconds else 0.0
        more = f"{counts.failed} failed  {speed:.0f} tokens/s"
        self._bar.update(self._task, total=counts.total, completed=done, more=more)
        if not self._is_live and time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + _LINE_S
            click.echo(f"{done}/{counts.total}  {more}", err=True)

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
