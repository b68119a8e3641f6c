"""Options and printing that several commands share."""

from __future__ import annotations

import json
import re
from typing import Any

import click

address_option = click.option(
    "--address",
    envvar="TANDEM_ADDRESS",
    help="Dashboard of a running cluster, http://head:8265. Default: local.",
)
store_option = click.option(
    "--store", envvar="TANDEM_STORE", help="Root address of the store. Default: ~/.tandem/store."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the resolved plan as JSON and do nothing."
)

no_wait_option = click.option(
    "--no-wait", is_flag=True, help="Refuse where the cluster has no room now, instead of waiting for it."
)

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ListsByDefault(click.Group):
    """``tandem models`` and ``tandem models NAME`` mean ``tandem models ls [NAME]``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``ls`` in front where no command is named."""
        first = next((word for word in args if not word.startswith("-")), None)
        if first not in self.commands and not {"-h", "--help"} & set(args):
            args = ["ls", *args]
        return super().parse_args(ctx, args)


class Bytes(click.ParamType):
    """A number of bytes: ``500000``, ``20G``, ``20GiB``."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([\d.]+)\s*([kmgt]?i?)b?", str(value).strip().lower())
        if not found or found[2] not in _UNITS:
            self.fail(f"{value!r} is no number of bytes. Write 500000, 20G or 20GiB.", param, ctx)
        return int(float(found[1]) * _UNITS[found[2]])


class Age(click.ParamType):
    """A length of time: ``90s``, ``30m``, ``24h``, ``7d``."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"([\d.]+)\s*([smhd])", str(value).strip().lower())
        if not found:
            self.fail(f"{value!r} is no length of time. Write 90s, 30m, 24h or 7d.", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


def show(rows: list[dict[str, Any]], columns: list[str], as_json: bool) -> None:
    """Print rows as a table of ``columns``, or all they hold as JSON."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from runtime.show import print_table

    print_table(rows, columns)


def in_words(size_bytes: int | None) -> str:
    """Bytes for people."""
    if size_bytes is None:
        return ""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
