"""One client's conversation as a state machine: whatever it says, and however fast, has a defined answer."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.protocol.seed import SEED
from yanchat.protocol import frames
from yanchat.protocol.session import Conversation, Refusal
from yanchat.protocol.shapes import Ack, Heartbeat, Send

RATE, BYTES = 5.0, 2000.0

texts = st.text(max_size=30)
openids = st.text(alphabet="abcXYZ019-_.:@|=+", min_size=1, max_size=10)
request_ids = st.none() | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=64
)


class AConversation(RuleBasedStateMachine):
    """A client says anything at any pace; beside it runs a plain account of what it should be told."""

    def __init__(self) -> None:
        super().__init__()
        self.conversation = Conversation(RATE, BYTES)
        self.began = self.now = 1000.0
        self.bad = self.taken = 0

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.binary(max_size=60) | st.sampled_from([b"", b"{", b"[]", b'{"type":7}', b'{"type":1,"params":{}}']))
    def says_what_is_no_frame(self, data: bytes) -> None:
        self.bad += 1
        event = self.conversation.receive(data, self.now)
        assert isinstance(event, Refusal)
        assert event.refused.status == 400
        assert str(event.refused).endswith(".")
        assert event.hang_up == (self.bad >= 3)

    @rule(
        to=openids | st.lists(openids, min_size=1, max_size=5),
        words=texts,
        kind=st.integers(-(1 << 63), (1 << 63) - 1),
        as_text=st.booleans(),
        request_id=request_ids,
    )
    def sends(self, to: str | list[str], words: str, kind: int, as_text: bool, request_id: str | None) -> None:
        self.bad = 0
        params = {"toMessageId": to, "message": words, "fileType": str(kind) if as_text else kind, "new": [1]}
        frame = {"type": 1, "params": params, "other": {}} | ({"requestId": request_id} if request_id else {})
        event = self.conversation.receive(json.dumps(frame).encode(), self.now)
        if isinstance(event, Refusal):
            assert event.refused.status == 429
            assert event.refused.retry_after
            assert (event.text, event.request_id) == (words, request_id)
            assert not event.hang_up
        else:
            self.taken += 1
            recipients = (to,) if isinstance(to, str) else tuple(dict.fromkeys(to))
            assert event == Send(recipients, words, kind, request_id)  # type: ignore[arg-type]

    @rule(message_id=texts)
    def acks(self, message_id: str) -> None:
        self.bad = 0
        frame = {**SEED["type15_ack"], "params": {**SEED["type15_ack"]["params"], "msgid": message_id}}
        assert self.conversation.receive(json.dumps(frame).encode(), self.now) == Ack(message_id)

    @rule()
    def beats(self) -> None:
        self.bad = 0
        assert isinstance(self.conversation.receive(b'{"type":11}', self.now), Heartbeat)

    @rule()
    def waits_as_it_was_told(self) -> None:
        """After `retryAfter` seconds at most a send passes again."""
        frame = json.dumps(SEED["type1_send"]).encode()
        self.bad = 0
        event = self.conversation.receive(frame, self.now)
        if isinstance(event, Refusal):
            assert event.refused.retry_after is not None
            self.now += event.refused.retry_after
            event = self.conversation.receive(frame, self.now)
        assert isinstance(event, Send)
        self.taken += 1

    @invariant()
    def the_rate_holds(self) -> None:
        """Twice the rate at once, the rate on the long run, and a second of grace."""
        assert self.taken <= 3 * RATE + RATE * (self.now - self.began)


TestAConversation = AConversation.TestCase


@given(st.text(max_size=20), st.text(max_size=70), st.sampled_from(["no openid", 5, [], None]))
def test_a_refused_send_is_answered_under_its_own_request(words: str, request_id: str, to: object) -> None:
    """Text and requestId come back also when something else in the frame was wrong."""
    frame = {"type": 1, "params": {"toMessageId": to, "message": words}, "requestId": request_id}
    event = Conversation(0, 0).receive(json.dumps(frame).encode(), 0.0)
    assert isinstance(event, Refusal)
    assert event.text == words
    assert event.request_id == (request_id if len(request_id) <= 64 else None)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner))
)
def test_a_glimpse_finds_nothing_where_nothing_is(value: object) -> None:
    for frame in (value, {"params": value, "requestId": value}, {"params": {"message": value}, "requestId": [value]}):
        words, request_id = frames.glimpse(json.dumps(frame).encode())
        assert isinstance(words, str)
        assert request_id is None or request_id == value


def test_a_request_id_with_a_nul_is_refused() -> None:
    """The id of a message is made of its parts with NULs between them: two texts must not get one id."""
    frame = {"type": 1, "params": {"toMessageId": "b", "message": "x"}, "requestId": "a\x001"}
    event = Conversation(0, 0).receive(json.dumps(frame).encode(), 0.0)
    assert isinstance(event, Refusal)
    assert event.refused.status == 400
    assert "NUL" in str(event.refused)
