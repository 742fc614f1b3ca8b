"""The producer and the thread that polls it. What the broker says of each record goes to the loop in batches.

Nobody waits for that: a record that was not stored is one that is sent again when it is due. So the thread rests
between two looks, and each wakes the loop once.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import structlog
import trio
from confluent_kafka import KafkaError, KafkaException, Producer

from yanchat.backends.kafka.clients import Complaints, Config, make
from yanchat.errors import BusUnavailable

POLL_SECONDS: Final = 0.1
REST: Final = 0.01
"""Seconds between two looks at what the brokers have said: without it each answer wakes the thread, and it the loop."""
CLOSED_WITHIN: Final = 1.0
SILENT_AFTER: Final = 10.0
"""Seconds without a word from the brokers on what is under way, after which it counts as a failure, again and again."""
_NOBODYS: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})
"""Errors of a record whose topic is not there. A node makes its topics when it starts, and then sends all again that
is open; so nobody misses the record, unless that node starts only after its messages have grown too old. To publish it
again for ever would help nobody."""
Sent = tuple[str, str | None, bytes, dict[str, str | bytes | None]]
"""Topic, key, value and headers of one record."""


class _Parcel:
    """The records of one call that somebody wants to know of: how many are under way, and whether all were stored."""

    __slots__ = ("ok", "open", "stored")

    def __init__(self, stored: Callable[[bool], None]) -> None:
        self.open, self.ok, self.stored = 0, True, stored


class Outgoing:
    """Made and used on the trio loop; `run` serves the delivery reports there, of which only those that count."""

    def __init__(self, config: Config, failed: Callable[[str], None]) -> None:
        self._producer = make(Producer, {**config, "error_cb": self._on_error})
        self._failed, self._complain = failed, Complaints()
        self._reports: deque[tuple[_Parcel | None, KafkaError | None]] = deque()
        self._sent, self._reported = 0, 0
        """Records, counted by the loop and by the thread."""
        self._heard, self._heard_at = 0, time.monotonic()
        """What `_reported` was when it last moved, or nothing was under way; and when that was."""
        self._unheard = False
        self._wake, self._idle = trio.Event(), trio.Event()
        self._flushing = False
        self._closing = False
        self._given_up: Exception | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._poll, name="kafka-producer", daemon=True)
        self._thread.start()

    def send(self, records: Iterable[Sent], stored: Callable[[bool], None] | None) -> None:
        """Queue records. `stored` is called once, from `run`."""
        parcel = _Parcel(stored) if stored is not None else None

        def report(error: KafkaError | None, _: Any) -> None:
            self._reported += 1
            if error is not None and error.code() in _NOBODYS:
                self._complain("bus.no_topic", error)
                error = None
            if error is not None or parcel is not None:
                self._reports.append((parcel, error))

        for topic, key, value, headers in records:
            if parcel is not None:
                parcel.open += 1
            try:
                self._producer.produce(topic, value, key, on_delivery=report, headers=headers)
                self._sent += 1
            except BufferError:
                self._refuse(parcel, KafkaError(KafkaError._QUEUE_FULL))
            except KafkaException as error:
                self._refuse(parcel, error.args[0])
        if parcel is not None and not parcel.open:
            parcel.stored(True)

    def _refuse(self, parcel: _Parcel | None, error: KafkaError) -> None:
        self._reports.append((parcel, error))
        self._rouse()

    async def run(self) -> None:
        """Say what has become of records, as long as the bus is open."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            failures: dict[str, int] = {}
            while self._reports:
                parcel, error = self._reports.popleft()
                if error is not None:
                    failures[error.str()] = failures.get(error.str(), 0) + 1
                if parcel is not None:
                    parcel.open -= 1
                    parcel.ok = parcel.ok and error is None
                    if not parcel.open:
                        parcel.stored(parcel.ok)
            for reason, records in failures.items():
                structlog.get_logger().warning("bus.not_stored", reason=reason, records=records)
                self._failed(reason)
            if self._unheard:
                self._unheard = False
                structlog.get_logger().warning("bus.silent", for_s=SILENT_AFTER, records=self._sent - self._reported)
                self._failed("no broker answers")
            if self._sent == self._reported:
                self._idle.set()
            if self._given_up is not None:
                raise self._given_up

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._sent != self._reported or self._reports:
            self._flushing = True  # the thread looks at it at least every POLL_SECONDS
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()
        self._flushing = False

    async def close(self) -> None:
        """Give up what is still under way; `idle` before, bounded, is what waits for it."""
        self._closing = True
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join)

    @property
    def silent(self) -> float:
        """Seconds since the thread last came round; infinite when it has died."""
        return time.monotonic() - self._beat if self._thread.is_alive() or self._closing else math.inf

    # -- the thread ----------------------------------------------------------------------------------------------------
    def _poll(self) -> None:
        try:
            while not (self._closing or self._given_up):
                self._beat = time.monotonic()
                self._poll_once()
                time.sleep(REST)
        except Exception as error:
            self._given_up = error
        _discard(self._producer)
        self._tell()

    def _poll_once(self) -> None:
        try:
            self._producer.poll(POLL_SECONDS)
            if self._reports or (self._flushing and self._sent == self._reported):
                self._tell()
        except KafkaException as exception:
            self._on_error(exception.args[0])
        self._listen()

    def _listen(self) -> None:
        """librdkafka itself gives a record up only after minutes (`message.timeout.ms`)."""
        now = time.monotonic()
        if self._reported == self._sent or self._reported != self._heard:
            self._heard, self._heard_at = self._reported, now
        elif now - self._heard_at > SILENT_AFTER:
            self._heard_at, self._unheard = now, True
            self._tell()

    def _tell(self) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._rouse, idempotent=True)

    def _rouse(self) -> None:
        self._wake.set()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():  # none is known of a producer without transactions
            self._given_up = BusUnavailable(f"Kafka's producer has failed: {error.str()}; look at the brokers.")
        else:
            self._complain("bus.producer", error)


def _discard(producer: Producer) -> None:
    """Report all that is under way as failed, so that nothing waits for it, and let go of the client."""
    with suppress(KafkaException):
        producer.purge()
    with suppress(KafkaException):
        producer.flush(CLOSED_WITHIN)
