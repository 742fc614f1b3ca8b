"""What must hold in a simulated cluster: at every frame, once a second, and at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.node.cluster import Client
from yanchat.model import ACKED, Key, MessageId, OpenId, SessionId
from yanchat.ports import RowFilter
from yanchat.protocol.client_frames import AckReceipt, Message, Receipt, Settled

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
    if again and world.calm:
        world.problem(f"{user.name} got {message.text} twice on one session without a fault")
    by, acked = user.acked.get(message.message_id, {}).get(client.node.name, (client, NEVER))
    if trio.current_time() - acked > AGAIN and (by is client or user.since[client] > acked):
        world.problem(f"{user.name} got {message.text} from {client.node.name}, which had his ack at {acked:.3f}")


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
                    if not recipient.vanished or (on_disk and not world.faults.lose):
                        found.append(f"{user.name} was never told that {to} has {text}")
    return found


def _given_up(world: World, key: Key) -> bool:
    """In a run in which messages grow old: no node waits for it any more."""
    rows = [row for store in world.cluster.stores.values() if (row := store._find(key)) is not None]
    return bool(rows) and all(row.rank for row in rows)


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


def _check_one(world: World, user: User, recipient: User, text: str, when: float) -> None:
    key: Key = (MessageId(world.ids[text]), OpenId(recipient.name))
    got = recipient.got.get(text)
    if got is None:
        if not any(key in store._orders for store in world.cluster.stores.values()):
            world.problem(f"LOST: {text} from {user.name} to {recipient.name} is on no disk")
        return
    waited = got - max(when, recipient.there_since(text))
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


async def check_end(world: World) -> None:
    """All are there: nothing waits on any disk, in memory or in the registry, which does not contradict itself."""
    for problem in unsettled(world):
        world.problem(f"at the end: {problem}")
    for node in world.cluster.nodes.values():
        for row in await node.store.search(RowFilter(states=("pending",), limit=5)):
            world.problem(f"{node.name} still holds {row.envelope.text} for {row.envelope.recipient}")
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
