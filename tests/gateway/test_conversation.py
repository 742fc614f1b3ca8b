"""The six frames of one message, spoken by several client implementations; the seed's own frames are the measure."""

from __future__ import annotations

import itertools
import json

import pytest
import trio

from tests.gateway.clients import ALL, NAMES, Client, Connect, next_of
from tests.gateway.conftest import Gate
from tests.gateway.raw import Closed, ack, kind, send, talker, text
from tests.protocol.seed import SEED, holds
from tests.running import DEADLINE

_numbers = itertools.count(1)


@pytest.fixture(params=ALL, ids=NAMES)
def connect(request: pytest.FixtureRequest) -> Connect:
    found: Connect = request.param
    return found


async def test_six_frames_close_the_loop(unharmed: Gate, connect: Connect) -> None:
    """Send, receipt, push, ack, ack receipt, notice: with every client, between two users."""
    ann, bob = f"ann-{next(_numbers)}", f"bob-{next(_numbers)}"
    with trio.fail_after(DEADLINE):
        async with (
            connect(f"{unharmed.url}?openid={ann}&userName=rose") as sender,
            connect(f"{unharmed.url}?openid={bob}") as recipient,
        ):
            assert (await sender.hear())["params"]["userName"] == "rose"
            assert kind(await recipient.hear()) == 6
            await sender.say(send(bob, "héllo 王 \U0001f600", requestId="r-1"))
            receipt = await next_of(sender, 0)
            assert receipt["status"] == 200
            assert receipt["params"]["requestId"] == "r-1"
            push = await next_of(recipient, 2)
            assert push["msg"]["params"]["message"] == "héllo 王 \U0001f600"
            assert push["msg"]["params"]["fromUser"] == {"openid": ann, "loginStatus": "1", "userName": "rose"}
            await recipient.say(ack(push))
            assert (await next_of(recipient, 16))["params"]["message"] == push["messageId"]
            notice = await next_of(sender, 17)
            assert notice["messageId"] == push["messageId"] == receipt["params"]["messageId"]
            assert notice["msg"]["status"] == 200


async def test_clients_of_different_makers_talk_to_each_other(unharmed: Gate) -> None:
    """Every message goes to every session of the user, whatever it is made of, and one ack is enough."""
    bob = f"bob-{next(_numbers)}"
    with trio.fail_after(DEADLINE):
        async with (
            ALL[0](f"{unharmed.url}?openid=ann-{next(_numbers)}") as sender,
            ALL[1](f"{unharmed.url}?openid={bob}") as phone,
            ALL[2](f"{unharmed.url}?openid={bob}") as tablet,
        ):
            await next_of(phone, 6)
            await next_of(tablet, 6)
            await sender.say(send(bob, "x" * 60_000))
            there: list[Client] = [phone, tablet]
            pushes = [await next_of(client, 2) for client in there]
            assert pushes[0]["messageId"] == pushes[1]["messageId"]
            assert pushes[0]["sessionId"] != pushes[1]["sessionId"]
            await tablet.say(ack(pushes[1]))
            assert (await next_of(sender, 17))["messageId"] == pushes[0]["messageId"]


async def test_the_end_is_heard_with_its_code(unharmed: Gate, connect: Connect) -> None:
    """Three frames in a row that are no frames: three answers, then 1008."""
    with trio.fail_after(DEADLINE):
        async with connect(f"{unharmed.url}?openid=ann-{next(_numbers)}") as client:
            await next_of(client, 6)
            for _ in range(3):
                await client.say({"type": "nonsense"})
            for _ in range(3):
                assert (await next_of(client, 0))["status"] == 400
            with pytest.raises(Closed) as closed:
                await client.hear()
            assert closed.value.code == 1008


def test_a_client_that_knows_only_the_seeds_frames_works(unharmed: Gate) -> None:
    """It sends the seed's keys and no others, ignores what it does not know, and finds every key it does know."""
    users = SEED["type15_ack"]["params"]
    bob, ann = users["fromUser"], users["toUser"]
    with talker(unharmed.url, ann) as sender, talker(unharmed.url, bob) as recipient:
        frame = {**SEED["type1_send"], "params": {**SEED["type1_send"]["params"], "toMessageId": bob}}
        sender.say(text(frame))
        holds(sender.json(), SEED["type0_receipt"])
        push = recipient.json()
        holds(push, SEED["type2_push"])
        params = {**users, "msgid": push["messageId"], "fromUser": ann, "toUser": bob}
        recipient.say(text({**SEED["type15_ack"], "params": params}))
        receipt = recipient.json()
        holds(receipt, SEED["type16_ack_receipt"])
        assert receipt["params"]["message"] == push["messageId"]
        notice = sender.json()
        holds(notice, SEED["type17_notice"])
        assert notice["messageId"] == push["messageId"]
        assert notice["to"] == [ann]


def test_an_ack_with_the_names_swapped_counts_and_a_strangers_does_not(unharmed: Gate) -> None:
    """The node trusts its own record: 403 for somebody else's message, 404 for an unknown one, twice is no harm."""
    number = next(_numbers)
    ann, bob, eve = (f"{name}-{number}" for name in ("ann", "bob", "eve"))
    with (
        talker(unharmed.url, ann) as sender,
        talker(unharmed.url, bob) as recipient,
        talker(unharmed.url, eve) as thief,
    ):
        sender.say(text(send(bob, "mine")))
        push = recipient.json(2)
        thief.say(text(ack(push)))
        assert thief.json(16)["status"] == 403
        sender.say(text(ack(push)))
        assert sender.json(16)["status"] == 403
        swapped = ack(push)
        params = swapped["params"]
        params["fromUser"], params["toUser"] = params["toUser"], params["fromUser"]
        for _ in range(2):
            recipient.say(text(swapped))
            assert recipient.json(16)["status"] == 200
        for unknown in ("0" * 32, "ffffffffffff7fffbfffffffffffffff", "\0", ""):
            recipient.say(text({"type": 15, "params": {"msgid": unknown}}))
            assert recipient.json(16)["status"] == 404
        assert sender.json(17)["messageId"] == push["messageId"]


def test_a_heartbeat_is_answered(unharmed: Gate) -> None:
    with talker(unharmed.url, f"ann-{next(_numbers)}") as client:
        client.say(text('{"type": 11, "new": [1, 2]}'))
        answer = client.json()
        assert (answer["type"], answer["status"]) == (12, 200)
        assert list(answer["params"]) == ["date"]


def test_answers_keep_the_order_of_the_sends(unharmed: Gate) -> None:
    """Receipts and refusals alike."""
    with talker(unharmed.url, f"ann-{next(_numbers)}") as client:
        sends = [send("bob-away", str(n)) if n % 3 else {"type": 1, "params": {"message": n}} for n in range(60)]
        client.say(b"".join(text(json.dumps(value)) for value in sends))
        for n in range(60):
            answer = client.json(0)
            assert answer["status"] == (200 if n % 3 else 400)
            assert answer["params"]["message"] == (str(n) if n % 3 else "")
