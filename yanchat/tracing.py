"""Spans for what a node does with messages, through OpenTelemetry, which is an extra: pip install yanchat[otel].

accept is a child of the trace that a message was sent in, or begins one; forward, push and ack are children of accept,
on whatever node. Where spans go the OTEL_… variables say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, …).
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from yanchat.errors import ConfigError
from yanchat.model import Envelope, Key, MessageId, Node

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

EXPECTED_AT_MOST: Final = 50_000
"""Pushed messages whose acks are waited for; of more the oldest get no span."""
FLUSHED_WITHIN: Final = 2.0


class Open:
    """A span that has begun."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Span) -> None:
        self._span = span
        at = span.get_span_context()
        self.traceparent = f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"
        """What its children are given."""

    def end(self, error: str = "") -> None:
        from opentelemetry.trace import Status, StatusCode

        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


class Spans:
    """Made by `open_spans`."""

    def __init__(self, provider: TracerProvider, node: Node) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, self._node = provider.get_tracer("yanchat"), node
        self._read = TraceContextTextMapPropagator().extract
        self._kinds = {"accept": SpanKind.SERVER, "forward": SpanKind.PRODUCER, "push": SpanKind.CONSUMER}
        self._other = SpanKind.INTERNAL
        self._expected: dict[Key, tuple[str, int]] = {}
        """Traceparent, and nanoseconds since the epoch."""

    def begin(self, name: str, message_id: MessageId, traceparent: str) -> Open:
        return Open(self._start(name, message_id, traceparent, None, {}))

    def instant(self, name: str, envelope: Envelope, more: Mapping[str, str | bool]) -> None:
        """A step that takes no time."""
        if envelope.traceparent:
            self._start(name, envelope.message_id, envelope.traceparent, None, more).end()

    def expect(self, envelope: Envelope) -> None:
        """A recipient's ack is waited for from now on."""
        if envelope.traceparent:
            self._expected.setdefault(envelope.key, (envelope.traceparent, time.time_ns()))
            if len(self._expected) > EXPECTED_AT_MOST:
                del self._expected[next(iter(self._expected))]

    def came(self, key: Key) -> None:
        """The ack that was waited for is on disk."""
        expected = self._expected.pop(key, None)
        if expected is not None:
            traceparent, since = expected
            self._start("ack", key[0], traceparent, since, {}).end()

    def _start(
        self, name: str, message_id: MessageId, traceparent: str, since: int | None, more: Mapping[str, str | bool]
    ) -> Span:
        parent: Context = self._read({"traceparent": traceparent})
        about = {"messaging.system": "yanchat", "messaging.message.id": message_id, "yanchat.node": self._node, **more}
        kind = self._kinds.get(name, self._other)
        return self._tracer.start_span(name, parent, kind, attributes=about, start_time=since)


@asynccontextmanager
async def open_spans(wanted: bool, node: Node, version: str) -> AsyncIterator[Spans | None]:
    """Spans of this node, None when they are not wanted; at the end those that are left are sent, within seconds.

    ConfigError when OpenTelemetry is not installed.
    """
    if not wanted:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(
            "tracing.otel needs OpenTelemetry: pip install 'yanchat[otel]', or set it to false."
        ) from None
    about = {"service.version": version, "service.instance.id": node}
    if "OTEL_SERVICE_NAME" not in os.environ:
        about["service.name"] = "yanchat"
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield Spans(provider, node)
    finally:
        with trio.move_on_after(FLUSHED_WITHIN, shield=True):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)
