"""The checker of the chaos run finds each kind of loss in a history that was whole before it was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.proof.chaos.check import INVARIANTS, IncompleteHistory, check
from tests.proof.chaos.run import main

Event = dict[str, Any]
LINE = ("1", "2", "3", "4", "5")


def whole() -> list[Event]:
    """Ann sends Bob five messages before the first fault, and each is delivered."""
    connected: Event = {"what": "connected", "node": "n0"}
    events = [{**connected, "user": user, "session": f"{user}-1"} for user in ("ann", "bob")]
    for number in LINE:
        ann, bob = {"user": "ann", "session": "ann-1"}, {"user": "bob", "session": "bob-1"}
        push = {"id": number, "sender": "ann", "to": "bob", "text": f"text {number}", "order": number, "marked": False}
        events += [
            {"what": "send", **ann, "request": f"r{number}", "to": ["bob"], "text": f"text {number}"},
            {"what": "receipt", **ann, "request": f"r{number}", "id": number, "status": 200},
            {"what": "message", **bob, **push},
            {"what": "notice", **ann, "id": number, "to": "bob", "status": 200},
        ]
    takes: Event = {"what": "takes", "node": "n0", "pid": 1, "mib": 60, "files": 40}
    events += [takes, {"what": "phase", "name": "faults"}, {"what": "phase", "name": "calm"}]
    events += [{"what": "registry", "code": 0, "document": []}, {"what": "backlog", "pending": 0}]
    events += [{"what": "phase", "name": "coda"}, dict(takes)]
    events += [{"what": "audit", "code": 0, "document": {"accepted": 5, "delivered": 5}}, {"what": "end"}]
    for number, event in enumerate(events):
        event["t"] = event["begun"] = float(number)
    return events


def find(events: list[Event], what: str, **more: object) -> Event:
    return next(event for event in events if event["what"] == what and more.items() <= event.items())


def lose(*numbers: str) -> Callable[[list[Event]], None]:
    def change(events: list[Event]) -> None:
        for number in numbers:
            events.remove(find(events, "message", id=number))
            events.remove(find(events, "notice", id=number))
        find(events, "audit")["document"]["delivered"] -= len(numbers)

    return change


def put(where: tuple[str, dict[str, Any]], **more: object) -> Callable[[list[Event]], None]:
    """Change a field of an event."""

    def change(events: list[Event]) -> None:
        find(events, where[0], **where[1]).update(more)

    return change


def repeat(**more: object) -> Callable[[list[Event]], None]:
    """The third message comes again, some way other."""

    def change(events: list[Event]) -> None:
        found = find(events, "message", id="3")
        events.insert(events.index(found) + 1, {**found, **more})

    return change


def swap(events: list[Event]) -> None:
    """The second and the third message come in the other order."""
    second, third = find(events, "message", id="2"), find(events, "message", id="3")
    kept = {name: second[name] for name in ("id", "text", "order")}
    second.update({name: third[name] for name in kept})
    third.update(kept)
    events[:] = [event for event in events if event["what"] != "notice"]


def add(what: str, **more: object) -> Callable[[list[Event]], None]:
    return lambda events: events.append({"what": what, "t": 99.0, **more})


CHANGES: dict[str, tuple[int, str, Callable[[list[Event]], None]]] = {
    "the first is lost": (1, "(prefix, number 1 of 5)", lose("1")),
    "one in the middle is lost": (1, "(middle, number 3 of 5)", lose("3")),
    "the last two are lost": (1, "(tail, number 5 of 5)", lose("4", "5")),
    "a request has no answer": (1, "never answered", add("send", user="bob", request="r9", to=["ann"], text="text 9")),
    "another text": (2, "not sent so", put(("message", {"id": "3"}), text="text 4000")),
    "to somebody else": (2, "not sent so", put(("message", {"id": "3"}), user="eve")),
    "again, not marked": (3, "not marked", repeat()),
    "again, without a fault": (3, "without a fault", repeat(marked=True)),
    "one text, two ids": (3, "under 2 ids", repeat(id="33", session="bob-2")),
    "out of order": (4, "out of order", swap),
    "told too early": (5, "he had not", put(("notice", {"id": "3"}), id="4")),
    "given up": (5, "told 410", put(("notice", {"id": "3"}), status=410)),
    "books do not balance": (6, "audit says 10", put(("audit", {}), code=10)),
    "books without one": (6, "the books know 4", put(("audit", {}), document={"accepted": 4, "delivered": 5})),
    "a contradiction stays": (7, "still contradicts", put(("registry", {}), code=10)),
    "the registry is clean too late": (7, "still contradicts", put(("registry", {}), begun=99.0)),
    "something waits": (8, "3 still wait", put(("backlog", {}), pending=3)),
    "a node is gone": (9, "by itself with -11", add("gone", node="n1", pid=7, code=-11)),
    "a node does not stop well": (9, "ended with 1", add("drained", node="n1", code=1)),
    "memory grows": (10, "takes 600 MiB", add("takes", node="n0", pid=1, mib=600, files=40)),
    "descriptors grow": (10, "900 files", add("takes", node="n0", pid=1, mib=60, files=900)),
}


def write(events: list[Event], path: Path) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_a_whole_history_is_not_accused(tmp_path: Path) -> None:
    assert check(write(whole(), tmp_path / "history")).holds


@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_loss_is_found(name: str, tmp_path: Path) -> None:
    """Under its invariant, and told apart from others of its kind."""
    number, sentence, change = CHANGES[name]
    events = whole()
    change(events)
    broken = check(write(events, tmp_path / "history")).broken
    assert any(sentence in one for one in broken[number]), broken


def test_each_invariant_has_a_history_that_breaks_it() -> None:
    assert {number for number, _, _ in CHANGES.values()} == set(INVARIANTS)


def test_a_history_is_judged_again_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 10 when an invariant is broken, and the line says which."""
    good, bad = whole(), whole()
    lose("3")(bad)
    assert main(["--check", str(write(good, tmp_path / "good"))]) == 0
    assert main(["--check", str(write(bad, tmp_path / "bad"))]) == 10
    assert "1  BROKEN  no receipted message is lost" in capsys.readouterr().out


def test_a_run_that_ended_early_is_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "history.ndjson"
    path.write_text("".join(json.dumps(event) + "\n" for event in whole() if event["what"] != "end"))
    with pytest.raises(IncompleteHistory, match="ends before the run did"):
        check(path)
