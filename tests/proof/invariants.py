"""What must hold in a simulated cluster: at every frame, once a second, and at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from tests.node.cluster import Client, RunningNode
from tests.proof.lane import LaneStore
from yanchat.model import ACKED, OPEN, Key, MessageId, OpenId, Row, SessionId
from yanchat.ports import RowFilter
from yanchat.protocol import books
from yanchat.protocol.books import HeldAck
from yanchat.protocol.client_frames import AckReceipt, Message, Receipt, Settled
from yanchat.protocol.ids import COUNTER_BITS

if TYPE_CHECKING:
    from tests.proof.user import User
    from tests.proof.world import World

MINUTE = 60.0
AGAIN = 9.0
"""Seconds for which a push may have been under way when its message was acked."""
NEVER = float("inf")
LOOK = 1.0


# -- at every frame ----------------------------------------------------------------------------------------------------
def on_receipt(world: World, user: User, client: Client, receipt: Receipt) -> None:
    """Accepted means stored: each recipient's row is on the disk of the node that says so."""
    for to in world.sent[receipt.request_id][1]:
        if (receipt.message_id, to) not in client.node.store._orders:
            world.problem(f"{user.name} has a receipt for {receipt.request_id} to {to}, and it is not on disk")


def on_message(world: World, user: User, client: Client, message: Message) -> None:
    """It was sent, by this sender, to this user; a repeat is marked, and none comes after the ack was answered."""
    sender, recipients = world.sent.get(message.text, ("", ()))
    if (message.sender, message.recipient) != (sender, user.name) or user.name not in recipients:
        world.problem(f"{user.name} got {message}, which {sender or 'nobody'} sent to {recipients}")
    again = any(one is client and before.message_id == message.message_id for one, before in user.arrivals)
    if again and not message.redelivered:
        world.problem(f"{user.name} got {message.text} again on one session, not marked")
    if world.adoptions.drawn and not (again or message.redelivered) and _had_before(world, user, client, message):
        world.problem(f"{user.name} got the adopted {message.text}, which he had had, not marked")
    if again and world.calm:
        world.problem(f"{user.name} got {message.text} twice on one session without a fault")
    by, acked = user.acked.get(message.message_id, {}).get(client.node.name, (client, NEVER))
    if trio.current_time() - acked > AGAIN and (by is client or user.since[client] > acked):
        world.problem(f"{user.name} got {message.text} from {client.node.name}, which had his ack at {acked:.3f}")


def _had_before(world: World, user: User, client: Client, message: Message) -> bool:
    """Whether he had it long ago, from a node whose row has moved away from there, or is to.

    A push of that node itself that comes late, to another session, is no repeat.
    """
    key: Key = (message.message_id, OpenId(user.name))
    rows = [row for store in world.cluster.stores.values() if (row := store._find(key))]
    for origin in client.session.unacked.get(message.message_id, ()):
        row = world.cluster.stores[origin.partition(":")[0]]._find(key)
        if row is not None and row.moved_at:
            return False
    adopted = all(row.adopted_at > 0 for row in rows if not row.moved_at)
    return adopted and trio.current_time() - user.got.get(message.text, NEVER) > AGAIN


def on_ack_receipt(world: World, user: User, client: Client, receipt: AckReceipt) -> None:
    """An ack that is answered with 200 is the recipient's own, and on disk."""
    key: Key = (MessageId(receipt.message_id), OpenId(user.name))
    if world.texts.get(receipt.message_id) not in user.got:
        world.problem(f"{user.name}'s ack of {receipt.message_id} was taken, and it is not for him")
    store = client.node.store
    row = store._find(key)
    if key not in store.inbox and (row is None or row.rank < ACKED):
        world.problem(f"{user.name}'s ack of {receipt.message_id} was answered, and it is not on disk")


def on_notice(world: World, user: User, notice: Settled) -> None:
    """A sender hears only of his own messages; 200 only when the recipient's client has it; 410 only of old ones."""
    text = world.texts.get(notice.message_id, "")
    recipient = next((one for one in world.users if one.name == notice.recipient), None)
    if world.sent.get(text, ("", ()))[0] != user.name or recipient is None:
        world.problem(f"{user.name} was told of {notice.message_id} to {notice.recipient}, which is not his")
    elif notice.status == 200 and text not in recipient.got:
        world.problem(f"{user.name} was told that {notice.recipient} has {text}, and he never got it")
    elif notice.status != 200 and (notice.status != 410 or world.eternal):
        world.problem(f"{user.name} was told {notice.status} of {text}")


def on_moved(world: World, short: str, keys: Sequence[Key]) -> None:
    """A row is marked as moved only when it is on another disk, and is that node's."""
    others = [store for name, store in world.cluster.stores.items() if name != short]
    for key in keys:
        if not any((row := store._find(key)) is not None and not row.moved_at for store in others):
            world.problem(f"{short} marks {world.texts.get(key[0])} to {key[1]} as moved, and no other node has it")


def on_run(world: World, node: RunningNode) -> None:
    """A run has come to its end: nothing that anybody waits for is left with the dead node."""
    store = node.store
    left = [row for row in store._rows.values() if not row.moved_at and (row.rank, row.told) != (ACKED, ACKED)]
    for row in left[:5]:
        world.problem(f"{node.name} has {row.envelope.text} to {row.envelope.recipient}, and all should have moved")
    for place, entry in store.inbox.values():
        if place > store.published_to:
            world.problem(f"{node.name} has {entry.key[1]}'s ack of {entry.key[0]}, which should have left")


def on_adopting(world: World, node: RunningNode, rows: Sequence[Row]) -> None:
    """No row comes with an order that lies in the future of the node's clock."""
    for row in rows:
        if row.envelope.order >> COUNTER_BITS > node.work.clock.wall():
            world.problem(f"{node.name} adopts {row.envelope.text}, accepted in the future")


# -- once a second -----------------------------------------------------------------------------------------------------
async def watch(world: World) -> None:
    """Without faults every greeted session is in the registry, and nothing of an ended one is."""
    missing: set[tuple[OpenId, SessionId]] = set()
    while True:
        await trio.sleep(LOOK + world.pace / 10)
        for node in world.cluster.nodes.values():
            if node.gone or node.pause.on:
                continue
            if any(count < 0 for count in node.work.intake._backlog._recipients.values()):
                world.problem(f"{node.name} counts less than nothing")
        if world.adoptions.drawn:
            _check_owners(world)
        if not world.calm:
            continue
        here = {
            (session.openid, session.record.session_id)
            for node in world.cluster.nodes.values()
            for session in node.work.hub.all()
            if session.ready
        }
        now = here ^ set(world.cluster.registry.sessions)
        for openid, session_id in sorted(now & missing):
            world.problem(f"{openid}'s session {session_id} is not the same in its hub and in the registry")
        missing = now


def _check_owners(world: World) -> None:
    """Whatever moves, what is receipted is some node's."""
    for user in world.users:
        for text in user.promised:
            for to in world.sent[text][1]:
                if not _owned(world, (MessageId(world.ids[text]), OpenId(to))):
                    world.problem(f"LOST: {text} from {user.name} to {to} has moved away from all nodes")


def _owned(world: World, key: Key) -> bool:
    """Whether any node has it on its disk, and has not handed it over."""
    rows = (store._find(key) for store in world.cluster.stores.values())
    return any(row is not None and not row.moved_at for row in rows)


# -- when all is over --------------------------------------------------------------------------------------------------
def unsettled(world: World) -> list[str]:
    """What is receipted or acked and not yet at its end, as long as who it waits for is there."""
    by_name, found = {user.name: user for user in world.users}, []
    for user in world.users:
        if not user.vanished:
            found += [f"{user.name} has no answer for {text}" for text in user.unanswered]
        for text in user.promised:
            message_id = MessageId(world.ids[text])
            for to in world.sent[text][1]:
                recipient = by_name[to]
                statuses = {status for _, status in user.told.get((message_id, to), ())}
                if 200 in statuses:
                    continue
                given_up = not world.eternal and _given_up(world, (message_id, OpenId(to)))
                if text not in recipient.got:
                    if not recipient.vanished and not given_up:
                        found.append(f"LOST or stuck: {text} from {user.name} to {to}")
                elif not user.vanished and not given_up:
                    key: Key = (message_id, OpenId(to))
                    on_disk = any(key in store.inbox for store in world.cluster.stores.values())
                    comes_back = on_disk and not world.faults.lose
                    if comes_back or not recipient.vanished:
                        found.append(f"{user.name} was never told that {to} has {text}")
    return found


def _given_up(world: World, key: Key) -> bool:
    """In a run in which messages grow old: no node waits for it any more."""
    rows = [row for store in world.cluster.stores.values() if (row := store._find(key)) is not None]
    mine = [row for row in rows if not row.moved_at]
    return bool(mine) and all(row.rank for row in mine)


def check_promises(world: World) -> None:
    """All are back but those who have vanished: what is for whom is there, and came in time; the rest is on disk."""
    for problem in unsettled(world):
        world.problem(problem)
    by_name = {user.name: user for user in world.users}
    for user in world.users:
        for text, when in user.promised.items():
            for to in world.sent[text][1]:
                _check_one(world, user, by_name[to], text, when)
        _check_order(world, user)
        _check_notices(world, user)
    for node in world.cluster.nodes.values():
        if not node.gone:
            _check_backlog(world, node)


def _check_backlog(world: World, node: RunningNode) -> None:
    """What a node counts as waiting is what waits on its disk."""
    work, store = node.work, node.store
    assert isinstance(store, LaneStore)
    idle = work.ledger.idle and work.intake.idle and work.acks.idle and work.adoption.idle
    if not idle or store.answered > trio.current_time():
        return
    envelopes = [row.envelope for row in node.store._rows.values() if row.rank == OPEN and not row.moved_at]
    there = Counter((one.sender, one.recipient) for one in envelopes)
    counted = {(by, to): rows for to, senders in work.intake._backlog._pairs.items() for by, rows in senders.items()}
    if counted != there:
        world.problem(f"{node.name} counts {counted}, and what waits is {dict(there)}")


def _check_one(world: World, user: User, recipient: User, text: str, when: float) -> None:
    key: Key = (MessageId(world.ids[text]), OpenId(recipient.name))
    got = recipient.got.get(text)
    if got is None:
        if not _owned(world, key):
            world.problem(f"LOST: {text} from {user.name} to {recipient.name} is on no disk")
        return
    waited = got - max(when, recipient.there_since(text), world.adoptions.free_since(key))
    limit = 3 + world.pace / 50 if world.calm else 10 if when > world.burst else 2 * MINUTE
    if waited > limit:
        world.problem(f"{text} from {user.name} waited {waited:.1f} s for {recipient.name}, who was there")


def _check_order(world: World, user: User) -> None:
    """Without a fault one session gets what one sender sent through one node in the order of acceptance."""
    last: dict[tuple[Client, str, str], str] = {}
    for client, message in user.arrivals if world.calm else ():
        if message.text in world.resent:
            continue
        line = client, _origin(world, message), message.sender
        if message.order < last.get(line, ""):
            world.problem(f"{user.name} got {message.text} from {message.sender} out of order")
        last[line] = max(last.get(line, ""), message.order)


def _check_notices(world: World, user: User) -> None:
    for (message_id, to), notices in user.told.items():
        if not world.calm or world.texts.get(message_id) in world.resent:
            continue
        if len(notices) > len({client for client, _ in notices}):
            world.problem(f"{user.name} was told twice of {message_id} to {to} on one session")


def _origin(world: World, message: Message) -> str:
    key: Key = (message.message_id, message.recipient)
    return next((name for name, store in world.cluster.stores.items() if key in store._orders), "")


def waiting(world: World) -> bool:
    """Whether a living node has a row that waits: of a repeated request, perhaps until the look of the minute."""
    nodes = [node for node in world.cluster.nodes.values() if not node.gone]
    return any(row.rank == OPEN and not row.moved_at for node in nodes for row in node.store._rows.values())


async def check_end(world: World) -> None:
    """All are there: nothing waits on any disk, in memory or in the registry, which does not contradict itself."""
    for problem in unsettled(world):
        world.problem(f"at the end: {problem}")
    await world.adoptions.repair()
    _check_books(world)
    for node in world.cluster.nodes.values():
        for row in await node.store.search(RowFilter(states=("pending",), limit=5)):
            world.problem(f"{node.name} still holds {row.envelope.text} for {row.envelope.recipient}")
        for sentence in node.store.wrong:
            world.problem(f"{node.name}: {sentence}")
        if node.gone:
            await _check_dead(world, node)
            continue
        if node.work.mailboxes.items:
            world.problem(f"{node.name} keeps {len(node.work.mailboxes.items)} items in memory")
        if node.work.intake._backlog._senders:
            world.problem(f"{node.name} counts messages that nobody waits for: {node.work.intake._backlog._senders}")
        for openid, held in world.cluster.registry.pending.items():
            if node.name in held and not node.work.mailboxes.holds(openid):
                world.problem(f"{node.name} stands in {openid}'s pending set for nothing")
    for contradiction in await world.cluster.registry.view().contradictions():
        world.problem(f"the registry contradicts itself: {contradiction.sentence}")
    there = set(world.cluster.registry.sessions)
    for user in world.users:
        for client in user.clients:
            if client.connected and (OpenId(user.name), client.session.record.session_id) not in there:
                world.problem(f"{user.name}'s session at {client.node.name} is not in the registry")
        if world.single and len(user.clients) > 1:
            world.problem(f"{user.name} has {len(user.clients)} sessions, and one is allowed")


async def _check_dead(world: World, node: RunningNode) -> None:
    """A node that is gone for good has left nothing behind that anybody waits for."""
    for row in await node.store.movable(0, 5):
        world.problem(f"{node.name} is gone, and has {row.envelope.text} to {row.envelope.recipient}, {row.state}")
    for _, entry in await node.store.unsent(0, 5):
        world.problem(f"{node.name} is gone, and {entry.key[1]}'s ack of {entry.key[0]} has not left")
    for openid, names in world.cluster.registry.pending.items():
        if node.name in names:
            world.problem(f"{node.name} is gone, and stands in {openid}'s pending set")


def _check_books(world: World) -> None:
    """As `yanchat audit`: each node for itself, and all together.

    A request that two nodes had accepted may be that of both at last.
    """
    stores = {node.name: node.store for node in world.cluster.nodes.values()}
    rows = {name: {row.envelope.key: row for row in store._rows.values()} for name, store in stores.items()}
    for name, store in stores.items():
        moved = sum(row.moved_at > 0 for row in rows[name].values())
        if moved != store.moved_ever:
            world.problem(f"{name} counted {store.moved_ever} rows as moved, and has {moved}")
        accepted = len(rows[name]) - store.adopted_ever
        if accepted < 0:
            world.problem(f"{name} counted {store.adopted_ever} rows as adopted, and has {len(rows[name])} in all")
    for key in sorted(
        {key for own in rows.values() for key in own} | {key for s in stores.values() for key in s.inbox}
    ):
        has = {name: books.held(own[key]) for name, own in rows.items() if key in own}
        acks = {
            name: HeldAck(place, *key, entry.origins, entry.at, place <= store.published_to)
            for name, store in stores.items()
            if (found := store.inbox.get(key)) is not None
            for place, entry in [found]
        }
        doubt = books.judge(*key, has, acks, dict.fromkeys(stores, 0), complete=True)
        twice = world.texts.get(key[0]) in world.resent
        if doubt is not None and not (twice and doubt.sentence.startswith("on ")):
            world.problem(f"the books: {world.texts.get(key[0])} to {key[1]}: {doubt.sentence}")


def first(error: BaseException) -> BaseException:
    """Of those that came together, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
