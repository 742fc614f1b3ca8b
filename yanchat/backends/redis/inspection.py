"""What contradicts itself in Redis, and its mending. All keys are read, with SCAN: nothing in the message path is here.

A claim writes the node's set before the user's entry, a release the other way round, and neither is one step. So what
is read here may be half written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from yanchat import names
from yanchat.backends.findings import Places, find_contradictions
from yanchat.backends.redis.connection import Connection
from yanchat.backends.redis.entries import Entry, node_record, session_records
from yanchat.backends.redis.pipelines import CHUNK, Rounds, chunks
from yanchat.backends.redis.scripts import LIST, REAP
from yanchat.model import Contradiction, Node, OpenId, SessionId
from yanchat.protocol.ids import openid_of

_READ: Final = {"hash": "HGETALL", "set": "SMEMBERS"}
_GLOB = re.compile(r"([\\*?\[\]])")


class _Found(NamedTuple):
    """All that is written."""

    users: dict[OpenId, dict[str, str]]
    pending: dict[OpenId, set[str]]
    lists: dict[Node, set[SessionId]]
    records: dict[Node, dict[str, str]]
    known: set[Node]
    """The sorted set."""
    lasting: list[Node]
    """Those whose record has no time to live."""
    foreign: dict[str, str]
    """Keys of ours where something else stands, and what is wrong with each."""


class Inspection:
    """The jobs behind `contradictions` and `mend`; `lease` in seconds."""

    def __init__(self, connection: Connection, prefix: str, lease: float) -> None:
        self._connection, self._lease = connection, lease
        self._node_key = partial(names.node_key, prefix=prefix)
        self._list_key = partial(names.node_sessions_key, prefix=prefix)
        self._user_key = partial(names.user_key, prefix=prefix)
        self._pending_key = partial(names.pending_key, prefix=prefix)
        self._nodes_key = names.nodes_key(prefix)

    # -- looking -------------------------------------------------------------------------------------------------------
    def look(self) -> Rounds[list[Contradiction]]:
        it = yield from self._read()
        nodes = [node_record(node, it.records.get(node, {}), 0.0, 0) for node in sorted(it.known | it.records.keys())]
        sessions = [entry for openid, entries in it.users.items() for entry in session_records(openid, entries)]
        pending = [(openid, Node(node)) for openid, holders in it.pending.items() for node in sorted(holders)]
        found = find_contradictions(
            nodes, sessions, pending, Places(self._nodes_key, self._user_key, self._pending_key)
        )
        ghosts = {(one.openid, one.session_id) for one in found if one.kind == "ghost"}
        for entry in sessions:
            listed = it.lists.get(entry.node, set())
            if entry.session_id not in listed and (entry.openid, entry.session_id) not in ghosts:
                text = f"{self._user_key(entry.openid)}: session {entry.session_id} is not in"
                text += (
                    f" {self._list_key(entry.node)}; --repair removes it, and if it is there after all, its node enters"
                )
                text += " it again within a minute."
                found.append(Contradiction("unlisted", text, entry.node, entry.openid, entry.session_id, entry))
        found += [*self._of_lists(it), *self._of_records(it)]
        readable = [one for one in found if not it.foreign.keys() & self._keys_of(one)]
        return readable + [Contradiction("foreign", text) for text in it.foreign.values()]

    def _keys_of(self, one: Contradiction) -> set[str]:
        """All that had to be read for it."""
        user = {self._user_key(one.openid), self._pending_key(one.openid)} if one.openid else set()
        return user | {self._node_key(one.node), self._list_key(one.node)}

    def _of_lists(self, it: _Found) -> Iterator[Contradiction]:
        for node, listed in it.lists.items():
            key = self._list_key(node)
            if node not in it.known and node not in it.records:
                yield Contradiction("no_node", f"{key}: there is no node {node}; --repair removes the set.", node)
                continue
            for session_id in sorted(listed):
                openid = openid_of(session_id)
                if session_id not in it.users.get(openid, {}):
                    text = f"{key}: session {session_id} is not in {self._user_key(openid)}; --repair removes it."
                    yield Contradiction("no_entry", text, node, openid, session_id)

    def _of_records(self, it: _Found) -> Iterator[Contradiction]:
        for node in sorted(it.records.keys() - it.known):
            text = f"{self._node_key(node)}: {node} is not in {self._nodes_key}; --repair enters it."
            yield Contradiction("unregistered", text, node)
        for node in it.lasting:
            text = f"{self._node_key(node)}: the record of {node} has no time to live; --repair gives it one, which the"
            yield Contradiction("no_lease", f"{text} node renews if it lives.", node)

    def _read(self) -> Rounds[_Found]:
        foreign: dict[str, str] = {}
        users = yield from self._family(self._user_key, "hash", foreign)
        pending = yield from self._family(self._pending_key, "set", foreign)
        lists = yield from self._family(self._list_key, "set", foreign)
        records = yield from self._family(self._node_key, "hash", foreign)
        nodes = sorted(records)
        *lives, known = yield [
            *(("PTTL", self._node_key(node)) for node in nodes),
            ("ZRANGE", self._nodes_key, 0, -1),
        ]
        lasting = [Node(node) for node, life in zip(nodes, lives, strict=True) if life == -1]
        return _Found(users, pending, lists, records, set(known), lasting, foreign)

    def _family(self, key: Callable[[str], str], kind: str, foreign: dict[str, str]) -> Rounds[dict[Any, Any]]:
        """What stands under all keys of one family, by what follows their beginning."""
        found: dict[Any, Any] = {}
        start = key("")
        every = self._connection.client.scan_iter(_GLOB.sub(r"\\\1", start) + "*", CHUNK)
        for batch in chunks(every):
            types = yield [("TYPE", one) for one in batch]
            ours = [one for one, its in zip(batch, types, strict=True) if its == kind]
            contents = yield [(_READ[kind], one) for one in ours]
            found |= {one[len(start) :]: content for one, content in zip(ours, contents, strict=True) if content}
            for one, its in zip(batch, types, strict=True):
                if its not in (kind, "none"):
                    foreign[one] = f"{one} is a {its}, where a {kind} belongs; find out what wrote it, and delete it."
        return found

    # -- mending -------------------------------------------------------------------------------------------------------
    def mend(self, found: Iterable[Contradiction]) -> Rounds[None]:
        """All but ghosts."""
        kinds: dict[str, list[Contradiction]] = {}
        for one in found:
            kinds.setdefault(one.kind, []).append(one)
        for batch in chunks(kinds.get("unlisted", ())):
            yield from self._drop_entries(batch)
        for batch in chunks(kinds.get("no_entry", ())):
            yield from self._drop_listed(batch)
        for one in kinds.get("no_node", ()):
            yield from self._drop_list(one.node)
        for one in kinds.get("unregistered", ()):
            (there,) = yield [("EXISTS", self._node_key(one.node))]
            if there:
                yield [("EVAL", LIST, 1, self._nodes_key, one.node)]
        for one in kinds.get("no_lease", ()):
            (life,) = yield [("PTTL", self._node_key(one.node))]
            if life == -1:
                yield [("PEXPIRE", self._node_key(one.node), int(self._lease * 1000))]
        for one in kinds.get("dead", ()):
            (alive,) = yield [("EXISTS", self._node_key(one.node))]
            if not alive:  # should it come back at this moment, its next heartbeat enters it again
                yield [("ZREM", self._nodes_key, one.node)]
        for batch in chunks(kinds.get("gone_holder", ())):
            gone = yield from self._gone({one.node for one in batch})
            yield [("SREM", self._pending_key(one.openid), one.node) for one in batch if one.node in gone]

    def _drop_entries(self, batch: Sequence[Contradiction]) -> Rounds[None]:
        listed = yield [("SISMEMBER", self._list_key(one.node), one.session_id) for one in batch]
        yield [
            ("EVAL", REAP, 1, self._user_key(one.openid), one.session_id, Entry.of(one.entry).text())
            for one, there in zip(batch, listed, strict=True)
            if one.entry is not None and not there
        ]

    def _drop_listed(self, batch: Sequence[Contradiction]) -> Rounds[None]:
        """A session that is being claimed stands in the set before it has an entry: what was too hasty is undone."""
        entries = yield [("HEXISTS", self._user_key(one.openid), one.session_id) for one in batch]
        drop = [one for one, there in zip(batch, entries, strict=True) if not there]
        yield [("SREM", self._list_key(one.node), one.session_id) for one in drop]
        entries = yield [("HEXISTS", self._user_key(one.openid), one.session_id) for one in drop]
        came = [one for one, there in zip(drop, entries, strict=True) if there]
        yield [("SADD", self._list_key(one.node), one.session_id) for one in came]

    def _drop_list(self, node: Node) -> Rounds[None]:
        (listed,) = yield [("SMEMBERS", self._list_key(node))]
        if listed and (yield from self._gone({node})):
            for batch in chunks(sorted(listed)):
                yield [("SREM", self._list_key(node), *batch)]

    def _gone(self, nodes: Iterable[Node]) -> Rounds[set[Node]]:
        """Those of them that are not registered at all."""
        asked = sorted(nodes)
        scores = yield [("ZSCORE", self._nodes_key, node) for node in asked]
        records = yield [("EXISTS", self._node_key(node)) for node in asked]
        return {
            node for node, score, record in zip(asked, scores, records, strict=True) if score is None and not record
        }
