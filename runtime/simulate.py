"""``tandem simulate`` for people and as JSON: the picture, who waited, who was refused and why."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console

from cluster.simulation import Outcome, Simulated
from runtime.show import print_table
from runtime.simulate_picture import legend, node_lines, over_time

_COLUMNS = ["request", "priority", "started", "median wait", "longest", "not started"]


def described(result: Simulated, at_s: float | None = None) -> dict[str, Any]:
    """The result as plain data; ``shares`` are those held at ``at_s``, by default at the fullest."""
    at_s = result.fullest_s if at_s is None else at_s
    shares = [
        asdict(share)
        for outcome in result.outcomes
        if outcome.placement and outcome.runs_at(at_s)
        for share in outcome.placement.shares(outcome.request.name)
    ]
    return {
        "nodes": len(result.inventory.nodes),
        "cards": result.inventory.cards,
        "end_s": result.end_s,
        "utilization": result.utilization,
        "timeline": [asdict(moment) for moment in result.timeline],
        "requests": [_request(outcome) for outcome in result.outcomes],
        "at_s": at_s,
        "shares": shares,
    }


def print_picture(result: Simulated, at_s: float | None = None) -> None:
    """Print the cards at ``at_s`` (by default at the fullest), their use over time, waits and refusals."""
    # Lines are never cut or folded: a pipe gets all, a terminal folds what it must.
    console = Console(highlight=False, soft_wrap=True)
    at_s = result.fullest_s if at_s is None else at_s
    moment = result.at(at_s)
    console.print(
        f"At {at_s:g} s: {moment.used:g} of {result.inventory.cards} cards used, {moment.whole_free} free as "
        f"a whole, {moment.waiting} requests waiting\n"
    )
    for line in [*node_lines(result, at_s), "", legend(result, at_s), "", over_time(result)]:
        console.print(line)
    print_table([_waits(name, of) for name, of in _by_arrival(result).items()], _COLUMNS)
    for line in _reasons(result):
        click.echo(line)


def _request(outcome: Outcome) -> dict[str, Any]:
    placement = outcome.placement
    return {
        "name": outcome.request.name,
        "priority": outcome.priority,
        "status": outcome.status,
        "at_s": outcome.at_s,
        "started_s": outcome.started_s,
        "ended_s": outcome.ended_s,
        "waited_s": outcome.waited_s,
        "position": outcome.position,
        "reason": outcome.reason,
        "accelerator_type": placement.accelerator_type if placement else None,
        "node_ids": list(placement.node_ids) if placement else [],
    }


def _by_arrival(result: Simulated) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in result.outcomes:
        found[outcome.arrival].append(outcome)
    return found


def _waits(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    waits = [outcome.waited_s for outcome in outcomes if outcome.waited_s is not None]
    others = Counter(outcome.status for outcome in outcomes if outcome.waited_s is None)
    return {
        "request": name,
        "priority": outcomes[0].priority,
        "started": f"{len(waits)} of {len(outcomes)}",
        "median wait": f"{statistics.median(waits):.0f} s" if waits else None,
        "longest": f"{max(waits):.0f} s" if waits else None,
        "not started": ", ".join(f"{count} {status}" for status, count in others.items()),
    }


def _reasons(result: Simulated) -> list[str]:
    """Why requests were refused or wait to the end: of each entry the first, which stands for its like."""
    found: dict[tuple[str, str], str] = {}
    for outcome in result.outcomes:
        if outcome.status in ("refused", "waiting"):
            said = "refused" if outcome.status == "refused" else f"waits, position {outcome.position}"
            found.setdefault(
                (outcome.arrival, outcome.status), f"{outcome.request.name} {said}: {outcome.reason}"
            )
    return list(found.values())
