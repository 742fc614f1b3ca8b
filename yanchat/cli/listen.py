"""`yanchat listen`: be a user. Each message is printed once, and acked only when it is printed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from yanchat.cli.call import Call, flag, run_async
from yanchat.cli.render import note, warn
from yanchat.cli.send import TOKEN, URL
from yanchat.cli.token import owner
from yanchat.errors import Refused, UsageError, YanchatError

if TYPE_CHECKING:
    from yanchat.client import Client
    from yanchat.protocol.client_frames import Message

REMEMBERED: Final = 10_000
"""So many ids are known again when they come a second time."""
RECEIPTS_WITHIN: Final = 10.0


class Unconfirmed(YanchatError):
    """The messages are printed; whether the node knows, is not known. Not tried again."""

    exit_code = 4


def listen(
    call: Call,
    as_: Annotated[
        str | None, typer.Option("--as", metavar="OPENID", help="Who to be; else whose the token is.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The name that others see.")] = None,
    url: Annotated[str | None, URL] = None,
    token: Annotated[str | None, TOKEN] = None,
    no_ack: Annotated[
        bool, flag("--no-ack", "Leave the messages unread: they come again to the next session.")
    ] = False,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after so many messages.")] = None,
    raw: Annotated[bool, flag("--raw", "Print all frames as they are, one a line.")] = False,
) -> None:
    """Be a user: print the messages that arrive, and ack them."""
    from yanchat.client import stay_connected
    from yanchat.protocol.frames import check_openid

    if raw and call.out.form == "json":
        raise UsageError("--raw prints frames, one a line; it does not go with --json.")
    if as_ is None and not token:
        raise UsageError("Say who to be: --as OPENID, or --token for nodes that ask for one.")
    openid = as_ or owner(token or "")
    try:
        check_openid(openid, f"--as {openid!r}")
    except Refused as refused:
        raise UsageError(str(refused)) from None
    find = call.cluster().finder(url)
    listening = _Listening(call, not no_ack, count, raw)
    run_async(
        lambda: stay_connected(
            find, openid, listening.converse, lost=listening.lost, name=name or "", token=token or ""
        )
    )


class _Listening:
    """What is known over all sessions of one call."""

    def __init__(self, call: Call, acking: bool, count: int | None, raw: bool) -> None:
        self._call, self._acking, self._left, self._raw = call, acking, count, raw
        self._seen: dict[str, None] = {}
        self._unconfirmed: dict[str, Message] = {}
        """Acked, without a receipt so far; acked again in the next session."""

    def lost(self, why: str) -> None:
        warn(f"{why} Connecting again.")

    async def converse(self, client: Client) -> None:
        import trio

        self._call.out.begin_list()
        if not self._raw:
            note(f"Listening as {client.hello.openid} at {client.hello.node}; Ctrl-C ends.")
        for message in list(self._unconfirmed.values()):
            await client.ack(message)
        while self._left is None or self._left > 0:
            await self._take(client)
        with trio.move_on_after(RECEIPTS_WITHIN):
            while self._unconfirmed:
                await self._take(client)
        if self._unconfirmed:
            raise Unconfirmed(
                f"The node has not confirmed {len(self._unconfirmed)} acks; those messages may come again."
            )

    async def _take(self, client: Client) -> None:
        """One frame."""
        from yanchat.protocol import client_frames
        from yanchat.protocol.client_frames import AckReceipt, Message

        data = await client.receive_raw()
        frame = client_frames.decode(data)
        if isinstance(frame, AckReceipt):
            self._unconfirmed.pop(frame.message_id, None)
        if self._raw:
            self._call.out.raw(data)
        if not isinstance(frame, Message):
            return
        if frame.message_id not in self._seen:
            if self._left == 0:
                return  # left for the next session
            self._remember(frame.message_id)
            if not self._raw:
                self._call.out.item(_as_json(frame), _sentence(frame))
            if self._left is not None:
                self._left -= 1
        if self._acking:
            self._unconfirmed[frame.message_id] = frame
            await client.ack(frame)

    def _remember(self, message_id: str) -> None:
        self._seen[message_id] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]


def _as_json(message: Message) -> dict[str, Any]:
    return {
        "message_id": message.message_id,
        "from": message.sender,
        "from_name": message.sender_name,
        "text": message.text,
        "file_type": message.file_type,
        "sent_at": message.sent_at,
        "redelivered": message.redelivered,
    }


def _sentence(message: Message) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(message.sent_at / 1000))
    named = message.sender_name not in {"", message.sender}
    who = f"{message.sender_name} <{message.sender}>" if named else message.sender
    kind = f" [type {message.file_type}]" if message.file_type else ""
    text = message.text.replace("\n", "\n" + " " * 10)
    return f"{at}  {who}{kind}: {text}"
