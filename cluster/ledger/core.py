"""The ledger's memory and rules, without Ray: who waits, who was granted a place, and what is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.inventory import Card, Inventory, Node
from cluster.ledger.books import OTHERS, Grant, shares_now
from cluster.ledger.picture import draw
from cluster.nodes_to_come import joined
from cluster.placement import Free, Request
from cluster.placement.request import ANY
from cluster.priority import CLASSES
from cluster.shares.holding import Holding
from cluster.shares.reading import NodeReading
from cluster.waiting import Admitted, Decision, Held, Refused, Waiting, admit

LEASE_S = 30.0
"""Who neither asks nor renews for so long is gone."""
STARTING_S = 120.0
"""So long a granted app may take until its replicas tell their shares, which they do before they load
anything. From then on what Ray has reserved for them counts; of one that failed nothing is kept."""


@dataclass
class _Entry:
    """One who asks."""

    sizes: list[Request]
    """What would do, the most wanted first; it waits for the last."""

    priority: str
    since_s: float
    seen_s: float
    token: str
    """Of who asks: another one of the same name (a newer configuration of an app) takes its place."""


@dataclass
class _Granted:
    grant: Grant
    sizes: list[Request]
    """What was asked for."""

    choice: int
    until_s: float
    """When it is forgotten, unless renewed."""

    token: str

    is_starting: bool = False
    """Whether nobody renews it: it ends when its processes have told their shares."""

    told: set[str] = field(default_factory=set)
    """Which of its processes have."""


class Core:
    """Give it what was seen (:meth:`look`), then ask.

    Args:
        groups: Of nodes, up to which the cluster may grow (``cluster.nodes_to_come``).
        classes: Priority classes, the highest first.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]] = (), classes: Sequence[str] = CLASSES) -> None:
        self._inventory = Inventory()
        self._free_by_node: Mapping[str, Mapping[str, float]] = {}
        self._readings: list[NodeReading] = []
        self._groups: Sequence[Mapping[str, Any]] = groups
        self._classes = classes
        self._waiting: dict[str, _Entry] = {}
        self._granted: dict[str, _Granted] = {}
        self._held: dict[str, Held] = {}
        self._replicas: dict[tuple[str, str], Holding] = {}
        """Those that live, by app and id."""

        self._lost: dict[tuple[str, str], Holding] = {}
        """Those that died, and whose app has not got another one yet: it gets the same room."""

        self._is_settled = False
        """Whether nothing has changed since the queue was gone through."""

    def look(
        self,
        inventory: Inventory,
        free_by_node: Mapping[str, Mapping[str, float]],
        readings: Sequence[NodeReading],
        now_s: float,
    ) -> None:
        """Take over what the cluster is now, and let start who may."""
        self._inventory = _with_readings(inventory, readings)
        self._free_by_node, self._readings = free_by_node, list(readings)
        self._note_lost()
        self._forget(now_s)
        self._admit(now_s)

    def ask(
        self,
        sizes: Sequence[Request],
        *,
        priority: str,
        since_s: float,
        now_s: float,
        wait: bool,
        token: str = "",
    ) -> dict[str, Any]:
        """Ask for a place, again and again until it is there: an entry that is not asked for is forgotten.

        Who was granted one and asks for other sizes, a newer configuration of an app, gives it back and asks
        anew.

        Args:
            sizes: What would do, the most wanted first; it waits for the last.
            since_s: When it asked first, on the clock of ``now_s``: it keeps its age when the ledger is lost.
                Of one that waits already, what it said first stands.
            wait: Whether it has a place in the queue; otherwise only now counts.
            token: Of who asks; the newest of one name counts.

        Returns:
            ``{"state": "granted", "choice": 0, "nodes": [...], "accelerator_type": ...}`` with the node of
            each worker; or ``{"state": "held", "position": 1, "reason": ...}``; or ``{"state": "refused",
            "reason": ...}``.
        """
        name = sizes[-1].name
        granted = self._granted.get(name)
        if granted and granted.sizes == list(sizes):
            granted.until_s, granted.token = now_s + LEASE_S, token
            return self._answer(granted)
        if granted:
            self.leave(name)
        known = self._waiting.get(name)
        since_s = known.since_s if known else since_s
        self._waiting[name] = entry = _Entry(list(sizes), priority, since_s, now_s, token)
        if wait and self._is_settled and known and (known.sizes, known.priority) == (entry.sizes, priority):
            return self._answer_held(self._held[name])
        try:
            refused = self._admit(now_s)
        except Exception:
            self.leave(name)  # it would be in everybody's way
            raise
        if name in self._granted:
            return self._answer(self._granted[name])
        if name in refused:
            return {"state": "refused", "reason": refused[name]}
        held = self._held[name]
        if not wait:
            self.leave(name)
            return {"state": "refused", "reason": held.reason}
        return self._answer_held(held)

    def renew(self, name: str, now_s: float) -> bool:
        """Say that the place is still wanted; whether the ledger knows of it."""
        granted = self._granted.get(name)
        if granted:
            granted.until_s = now_s + LEASE_S
        return granted is not None

    def leave(self, name: str, token: str | None = None) -> None:
        """Wait no more, or give the place back, unless another one of the same name has it now."""
        there = self._waiting.get(name) or self._granted.get(name)
        if token is not None and there is not None and there.token != token:
            return
        self._waiting.pop(name, None)
        self._held.pop(name, None)
        self._granted.pop(name, None)
        self._is_settled = False

    def starts(self, name: str, now_s: float) -> None:
        """Nobody renews the place from now on: it stands until its processes have told their shares.

        One that still waits does so no longer.
        """
        if name in self._waiting:
            self.leave(name)
        granted = self._granted.get(name)
        if granted:
            granted.is_starting, granted.until_s = True, now_s + STARTING_S

    @property
    def has_lost(self) -> bool:
        """Whether replicas have died for which their apps have no others yet."""
        return bool(self._lost)

    def keep_lost(self, wanted: Mapping[str, int]) -> None:
        """Forget those that died and that nobody replaces.

        Args:
            wanted: Replicas that Serve has, or starts, for each app.
        """
        living = Counter(app for app, _ in self._replicas)
        missing = {app: wanted.get(app, 0) - living[app] for app, _ in self._lost}
        for key in list(self._lost):
            missing[key[0]] -= 1
            if missing[key[0]] < 0:
                del self._lost[key]
                self._is_settled = False

    def holds_already(self, holder: str) -> bool:
        """Whether a process of this holder has told a share."""
        return any(one.holder == holder for one in self._holdings())

    def bundles(self) -> list[dict[str, float]]:
        """All that is held and all that is waited for, as Ray's autoscaler is told it.

        Empty while nobody waits: Ray itself then knows what is wanted.
        """
        if not self._waiting:
            return []
        held = [{"CPU": share.cpus, "GPU": share.fraction} for share in self._shares()]
        for entry in self._waiting.values():
            size = entry.sizes[-1]
            wanted = {
                "CPU": size.cpus_per_worker,
                "GPU": size.gpus_per_worker,
                "memory": float(size.memory_bytes_per_worker),
            }
            if size.accelerator_type not in (None, ANY):
                wanted[f"accelerator_type:{size.accelerator_type}"] = 0.001
            held += [wanted] * size.workers
        return [{name: amount for name, amount in one.items() if amount} for one in held if any(one.values())]

    def picture(self, now_s: float) -> dict[str, Any]:
        """Cards, shares and queue as plain data."""
        waiting = [
            asdict(self._held[name].waiting.request)
            | {
                "position": self._held[name].position,
                "reason": self._held[name].reason,
                "priority": entry.priority,
                "waiting_s": round(now_s - entry.since_s, 1),
            }
            for name, entry in self._waiting.items()
            if name in self._held
        ]
        return draw(
            self._inventory,
            self._shares(),
            self._readings,
            sorted(waiting, key=lambda one: int(one["position"])),
            now_s,
        ) | {
            "kept": [
                asdict(share)
                for name, held in self._held.items()
                if held.kept
                for share in held.kept.shares(name)
            ],
            "classes": list(self._classes),
            "groups_to_come": list(self._groups),
        }

    @staticmethod
    def _answer_held(held: Held) -> dict[str, Any]:
        return {"state": "held", "position": held.position, "reason": held.reason}

    def _answer(self, granted: _Granted) -> dict[str, Any]:
        placement = granted.grant.placement
        return {
            "state": "granted",
            "choice": granted.choice,
            "nodes": [slot.node_id for slot in placement.slots],
            "accelerator_type": placement.accelerator_type,
        }

    def _holdings(self) -> list[Holding]:
        return [held.holding for reading in self._readings for held in reading.held]

    def _shares(self) -> list[Any]:
        grants = [granted.grant for granted in self._granted.values()]
        holdings = [*self._holdings(), *self._lost.values()]
        return shares_now(self._inventory, self._free_by_node, holdings, grants)

    def _note_lost(self) -> None:
        now = {(one.holder, one.worker): one for one in self._holdings() if one.kind == "serve"}
        for key in self._replicas.keys() - now.keys():
            self._lost[key] = self._replicas[key]
        for app, _ in now.keys() - self._replicas.keys():
            # Another one has come in the place of one that died.
            replaced = next((key for key in self._lost if key[0] == app), None)
            if replaced is not None:
                del self._lost[replaced]
        self._replicas = now

    def _forget(self, now_s: float) -> None:
        for name in [name for name, entry in self._waiting.items() if entry.seen_s < now_s - LEASE_S]:
            self.leave(name)
        for name, granted in list(self._granted.items()):
            granted.told |= {one.worker for one in self._holdings() if one.holder == name}
            groups = {slot.group for slot in granted.grant.placement.slots}
            has_begun = granted.is_starting and len(granted.told) >= len(groups)
            if has_begun or granted.until_s < now_s:
                del self._granted[name]

    def _admit(self, now_s: float) -> dict[str, str]:
        """Grant what may start, in the queue's order; those who can never start, with the reason."""
        refused: dict[str, str] = {}
        # One that gets more than it would have waited for takes what others were reckoned with: look again.
        self._is_settled = False
        while self._admit_once(now_s, refused):
            pass
        self._is_settled = True
        return refused

    def _admit_once(self, now_s: float, refused: dict[str, str]) -> bool:
        """Whether one was granted more than the least that would do for it."""
        # A run asks when its workers have ended: shares that were read before that are nobody's any more.
        # With them it would be given fewer workers than it has room for.
        ended = {one.holder for one in self._holdings() if one.kind == "train"} & self._waiting.keys()
        shares = [share for share in self._shares() if share.holder not in ended]
        free = Free.of(self._inventory, shares)
        serving = {one.holder for one in self._holdings() if one.kind == "serve"}
        serving |= {one.grant.holder for one in self._granted.values() if one.grant.kind == "serve"}
        # Of others nobody knows when they end.
        serving.add(OTHERS)
        lasting = Free.of(self._inventory, [share for share in shares if share.holder in serving])
        queue = [Waiting(entry.sizes[-1], entry.priority, entry.since_s) for entry in self._waiting.values()]
        self._held = {}
        largest = Free.of(joined(self._inventory, self._groups))
        for decision in self._decisions(free, queue, now_s, lasting, largest):
            name = decision.waiting.request.name
            if isinstance(decision, Held):
                self._held[name] = decision
            elif isinstance(decision, Refused):
                refused[name] = decision.reason
                del self._waiting[name]
            else:
                entry = self._waiting.pop(name)
                sizes = entry.sizes
                choice, placement = len(sizes) - 1, decision.placement
                for number, size in enumerate(sizes[:-1]):
                    # Asked for in the queue, as the least was: a place that is kept for another stays kept.
                    larger = Waiting(size, decision.waiting.priority, decision.waiting.since_s)
                    asked = [larger if one is decision.waiting else one for one in queue]
                    found = _decision(larger, self._decisions(free, asked, now_s, lasting, largest))
                    if isinstance(found, Admitted):
                        choice, placement = number, found.placement
                        break
                grant = Grant(name, sizes[-1].kind, placement)
                self._granted[name] = _Granted(grant, sizes, choice, now_s + LEASE_S, entry.token)
                if choice < len(sizes) - 1:
                    return True
        return False

    def _decisions(
        self, free: Free, queue: Sequence[Waiting], now_s: float, lasting: Free, largest: Free
    ) -> list[Decision]:
        return admit(free, queue, now_s, lasting=lasting, largest=largest, classes=self._classes)


def _decision(waiting: Waiting, decisions: Sequence[Decision]) -> Decision:
    return next(one for one in decisions if one.waiting is waiting)


def _with_readings(inventory: Inventory, readings: Sequence[NodeReading]) -> Inventory:
    """The inventory with what NVML says of its cards."""
    by_node = {reading.node_id: reading for reading in readings}
    return Inventory(tuple(_read(node, by_node.get(node.node_id)) for node in inventory.nodes))


def _read(node: Node, reading: NodeReading | None) -> Node:
    if reading is None or len(reading.cards) < len(node.cards) or not node.accelerator_type:
        return node
    cards = tuple(
        Card(card.index, seen.memory_bytes, seen.product, seen.uuid)
        for card, seen in zip(node.cards, reading.cards, strict=False)
    )
    return replace(node, cards=cards)
