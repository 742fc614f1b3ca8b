"""Who waits for an answer of the intake, and what is known of his message by then."""

from __future__ import annotations

import trio

from yanchat.errors import Refused
from yanchat.model import Envelope, OpenId
from yanchat.node.hub import Session
from yanchat.protocol.session import Refusal
from yanchat.protocol.shapes import Send
from yanchat.tracing import Open
from yanchat.trail import Trail


class Pushed:
    """A message that no session has sent: who brought it waits for its end."""

    __slots__ = ("done", "news", "notify", "refused")

    def __init__(self, notify: bool) -> None:
        self.notify, self.done = notify, trio.Event()
        self.refused: Refused | None = None
        self.news: list[bool] = []

    def end(self, refused: Refused | None, news: list[bool]) -> None:
        self.refused, self.news = refused, news
        self.done.set()


class Waiting:
    """One answer that is waited for: to a message that is to be stored, or a refusal that must not overtake one."""

    __slots__ = ("at", "by", "envelopes", "name", "refusal", "send", "sender", "span")

    def __init__(self, by: Session | Pushed, sender: OpenId, name: str, said: Send | Refusal, at: int) -> None:
        self.by, self.sender, self.name, self.at = by, sender, name, at
        self.send = said if isinstance(said, Send) else None
        self.refusal = said if isinstance(said, Refusal) else None
        self.envelopes: list[Envelope] = []
        """What is to be stored, once it is its turn."""
        self.span: Open | None = None

    @property
    def quiet(self) -> bool:
        """The sender wants no notice."""
        return type(self.by) is Pushed and not self.by.notify

    @property
    def size(self) -> int:
        """Of the text that the answer repeats."""
        said = self.send or self.refusal
        return len(said.text) if said is not None else 0


def tell(trail: Trail, waiting: Waiting, failed: Refused | None, news: list[bool]) -> None:
    """What has become of it."""
    if waiting.refusal is not None:
        sender = waiting.by.openid if isinstance(waiting.by, Session) else ""
        trail.refused(waiting.refusal.refused, sender, waiting.refusal.request_id)
    elif failed is not None:
        trail.not_stored(waiting.envelopes, failed, waiting.span)
    else:
        trail.accepted(waiting.envelopes, news, waiting.span)
