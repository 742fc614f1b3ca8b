"""The checker of a chaos run. It reads the history and nothing else, and names what does not hold by its invariant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.proof.chaos.history import read

LEASE_AND_TWO = 12.0
BACKLOG_WITHIN = 60.0
GROWTH_MIB, GROWTH_FILES = 60, 60

INVARIANTS = {
    1: "no receipted message is lost",
    2: "nothing arrives that was not sent",
    3: "none twice after deduplication by id; without a fault no raw repeats",
    4: "order from one sender to one recipient where no fault touched them",
    5: "what a sender was told is delivered was received",
    6: "the books balance, and agree with the history",
    7: "the registry is clean within lease + 2 s",
    8: "nothing waits 60 s after the last fault",
    9: "no process is gone that was not killed",
    10: "memory and descriptors are flat",
}


class Verdict(NamedTuple):
    """Sentences by invariant, and what the run was."""

    broken: dict[int, list[str]]
    figures: dict[str, Any]

    @property
    def holds(self) -> bool:
        return not any(self.broken.values())


class IncompleteHistory(Exception):
    """Nothing can be concluded from it."""


class _Run:
    """The history, sorted by what is asked of it."""

    def __init__(self, path: Path) -> None:
        self.events = list(read(path))
        self.sent: dict[str, dict[str, Any]] = {}
        """Text → the first attempt."""
        self.attempts: Counter[str] = Counter()
        self.promised: dict[str, dict[str, Any]] = {}
        """Message id → the first receipt."""
        self.got: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        """(message id, recipient) → arrivals."""
        self.node_of: dict[str, str] = {}
        self.phases: dict[str, float] = {}
        self.by_request: dict[str, dict[str, Any]] = {}
        for event in self.events:
            match event["what"]:
                case "send":
                    self.sent.setdefault(event["text"], event)
                    self.by_request.setdefault(event["request"], event)
                    self.attempts[event["request"]] += 1
                case "receipt" if event["status"] == 200:
                    self.promised.setdefault(event["id"], event)
                case "message":
                    self.got[event["id"], event["user"]].append(event)
                case "connected":
                    self.node_of[event["session"]] = event["node"]
                case "phase":
                    self.phases[event["name"]] = event["t"]

    def of(self, *kinds: str) -> Iterator[dict[str, Any]]:
        return (event for event in self.events if event["what"] in kinds)

    def undisturbed(self, event: dict[str, Any]) -> bool:
        """Before the first fault, or after all had settled."""
        return not self.phases["faults"] <= event["t"] <= self.phases["coda"]

    def whole(self, begin: dict[str, Any], end: dict[str, Any]) -> bool:
        """Whether all of it lies before the first fault, or after all had settled."""
        same = (begin["t"] < self.phases["faults"]) == (end["t"] < self.phases["faults"])
        return bool(same) and self.undisturbed(begin) and self.undisturbed(end)


def check(path: Path) -> Verdict:
    """Judge a history."""
    run = _Run(path)
    if not any(run.of("end")):
        raise IncompleteHistory(f"{path} ends before the run did: it says nothing of what should have come.")
    parts = (_lost, _strange, _twice, _order, _told, _books, _registry, _backlog, _gone, _flat)
    broken = {number: list(part(run)) for number, part in enumerate(parts, 1)}
    return Verdict(broken, _figures(run))


def _lost(run: _Run) -> Iterator[str]:
    """Told apart: the first, the last or some in the middle of what one user was promised to another."""
    lines: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    for message_id, receipt in run.promised.items():
        send = run.by_request[receipt["request"]]
        for to in send["to"]:
            lines[send["user"], to].append((message_id, bool(run.got.get((message_id, to)))))
    for (sender, to), line in lines.items():
        arrived = [number for number, (_, got) in enumerate(line) if got]
        for number, (message_id, got) in enumerate(line):
            if not got:
                first, last = (arrived[0], arrived[-1]) if arrived else (len(line), -1)
                where = "prefix" if number < first else "tail" if number > last else "middle"
                yield f"{message_id} from {sender} to {to} ({where}, number {number + 1} of {len(line)})"
    for request in {send["request"] for send in run.sent.values()} - {one["request"] for one in run.promised.values()}:
        yield f"{run.by_request[request]['user']}'s request {request} was never answered"


def _strange(run: _Run) -> Iterator[str]:
    for arrivals in run.got.values():
        for one in arrivals:
            send = run.sent.get(one["text"])
            if (
                send is None
                or send["user"] != one["sender"]
                or one["user"] not in send["to"]
                or one["to"] != one["user"]
            ):
                yield f"{one['user']} got {one['id']} from {one['sender']}, which was not sent so"
            elif one["id"] in run.promised and run.promised[one["id"]]["request"] != send["request"]:
                yield f"{one['user']} got {one['id']} with the text of another request"


def _twice(run: _Run) -> Iterator[str]:
    ids: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (message_id, user), arrivals in run.got.items():
        ids[user, arrivals[0]["text"]].add(message_id)
        had: dict[str, dict[str, Any]] = {}
        for one in arrivals:
            before = had.setdefault(one["session"], one)
            if before is one:
                continue
            if not one["marked"]:
                yield f"{user} got {message_id} again on one session, not marked"
            elif run.whole(run.sent[one["text"]], one):
                yield f"{user} got {message_id} twice on one session without a fault"
    for (user, text), found in ids.items():
        if len(found) > 1:
            yield f"{user} got one text under {len(found)} ids: {text[:20]}"


def _order(run: _Run) -> Iterator[str]:
    """Of one sender, accepted by one node, on one session of the recipient, whole before or after all faults."""
    last: dict[tuple[str, str, str, bool], str] = {}
    seen: set[tuple[str, str]] = set()
    for one in run.of("message"):
        send = run.sent.get(one["text"])
        again = (one["session"], one["id"]) in seen
        seen.add((one["session"], one["id"]))
        receipt = run.promised.get(one["id"])
        if send is None or again or receipt is None or run.attempts[send["request"]] > 1:
            continue
        if not run.whole(send, one):
            continue
        node = run.node_of.get(receipt["session"], "")
        line = one["session"], one["sender"], node, one["t"] < run.phases["faults"]
        if one["order"] < last.get(line, ""):
            yield f"{one['user']} got {one['id']} from {one['sender']} out of order"
        last[line] = max(one["order"], last.get(line, ""))


def _told(run: _Run) -> Iterator[str]:
    for notice in run.of("notice"):
        if notice["status"] != 200:
            yield f"{notice['user']} was told {notice['status']} of {notice['id']} to {notice['to']}"
        elif not any(one["t"] <= notice["t"] for one in run.got.get((notice["id"], notice["to"]), ())):
            yield f"{notice['user']} was told that {notice['to']} has {notice['id']}, and he had not"


def _books(run: _Run) -> Iterator[str]:
    audits = list(run.of("audit"))
    if not audits:
        yield "there was no audit"
        return
    document = audits[-1]["document"]
    if audits[-1]["code"] != 0 or not isinstance(document, dict):
        yield f"audit says {audits[-1]['code']}: {str(document)[:500]}"
        return
    promised = sum(len(run.by_request[one["request"]]["to"]) for one in run.promised.values())
    if document["accepted"] != promised:
        yield f"{promised} (message, recipient) were receipted, and the books know {document['accepted']}"
    if document["delivered"] != len(set(run.got) & {(i, u) for i, u in run.got if i in run.promised}):
        yield f"{document['delivered']} are delivered by the books, {len(run.got)} by the history"


def _registry(run: _Run) -> Iterator[str]:
    checks = [event for event in run.of("registry") if event["begun"] <= run.phases["calm"] + LEASE_AND_TWO]
    if not any(event["code"] == 0 for event in checks):
        yield f"it still contradicts itself: {str(checks[-1]['document'])[:500] if checks else 'it was not asked'}"


def _backlog(run: _Run) -> Iterator[str]:
    zero = [event["t"] for event in run.of("backlog") if event["pending"] == 0]
    if not any(t <= run.phases["calm"] + BACKLOG_WITHIN for t in zero):
        last = list(run.of("backlog"))[-1:]
        yield f"{last[0]['pending'] if last else '?'} still wait, {BACKLOG_WITHIN:.0f} s after the last fault"


def _gone(run: _Run) -> Iterator[str]:
    for event in run.of("gone"):
        yield f"{event['node']} (pid {event['pid']}) has ended by itself with {event['code']}"
    for event in run.of("drained"):
        if event["code"] != 0:
            yield f"{event['node']} was told to stop, and ended with {event['code']}"


def _flat(run: _Run) -> Iterator[str]:
    """Before the first fault and at the end, with the same users."""
    before: dict[str, dict[str, Any]] = {}
    after: dict[str, dict[str, Any]] = {}
    for event in run.of("takes"):
        (before if event["t"] < run.phases["faults"] else after)[event["node"]] = event
    for node, then in before.items():
        now = after.get(node, then)
        if now["mib"] > then["mib"] + GROWTH_MIB:
            yield f"{node} takes {now['mib']} MiB, and took {then['mib']}"
        users = len({event["user"] for event in run.of("connected")})
        if now["files"] > then["files"] + GROWTH_FILES + users:
            yield f"{node} has {now['files']} files open, and had {then['files']}"


def _figures(run: _Run) -> dict[str, Any]:
    told = {(one["id"], one["to"]) for one in run.of("notice") if one["status"] == 200}
    clean = [event["begun"] - run.phases["calm"] for event in run.of("registry") if event["code"] == 0]
    zero = [event["t"] - run.phases["calm"] for event in run.of("backlog") if event["pending"] == 0]
    return {
        "receipted": len(run.promised),
        "arrived": len(run.got),
        "raw_repeats": sum(len(arrivals) - 1 for arrivals in run.got.values()),
        "told": len(told),
        "sessions": len(run.node_of),
        "faults": dict(sorted(Counter(event["kind"] for event in run.of("fault")).items())),
        "registry_clean_after_s": round(max(0.0, clean[0]), 1) if clean else None,
        "backlog_zero_after_s": round(max(0.0, zero[0]), 1) if zero else None,
    }
