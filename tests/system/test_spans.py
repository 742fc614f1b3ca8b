"""Spans through OpenTelemetry: what a collector gets of a message that goes from one node to another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.running import RunningNode, call, finish, running, wait_until
from yanchat.client import connect
from yanchat.protocol.client_frames import Message, Settled

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEPS = ("accept", "forward", "push", "ack")


class Span(NamedTuple):
    """As the collector got it; ids in hex, times in nanoseconds."""

    name: str
    trace: str
    id: str
    parent: str
    node: str
    message_id: str
    start: int
    end: int


class Collector:
    """What an OTLP collector is to a node: it takes spans over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            about = {one.key: one.value.string_value for one in resource.resource.attributes}
            assert about["service.name"] == "yanchat"
            for scope in resource.scope_spans:
                for one in scope.spans:
                    said = {attribute.key: attribute.value.string_value for attribute in one.attributes}
                    ids = (one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex())
                    times = (one.start_time_unix_nano, one.end_time_unix_nano)
                    node, message_id = about["service.instance.id"], said["messaging.message.id"]
                    self.spans.append(Span(one.name, *ids, node, message_id, *times))

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


def sending_to(url: str) -> dict[str, str]:
    return {"YANCHAT_TRACING_OTEL": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


async def one_loop(ann_at: str, bob_at: str, traceparent: str) -> tuple[Message, Settled]:
    """Ann writes to Bob, in a trace of hers; what he got, and what she was told."""
    with trio.fail_after(20):
        async with connect(bob_at, "bob") as bob, connect(ann_at, "ann") as ann:
            await ann.send(("bob",), "hello", traceparent=traceparent)
            message = told = None
            while message is None:
                frame = await bob.receive()
                message = frame if isinstance(frame, Message) else None
            await bob.ack(message)
            while told is None:
                frame = await ann.receive()
                told = frame if isinstance(frame, Settled) else None
            return message, told


@pytest.mark.parametrize("given", [f"00-{TRACE}-{PARENT}-01", ""])
async def test_the_steps_of_a_message_are_spans_of_one_trace(tmp_path: Path, collector: Collector, given: str) -> None:
    """accept is a child of the sender's span, or begins a trace; the others are its children, each on its node."""
    with (
        RunningNode(tmp_path, env=sending_to(collector.url)) as n1,
        RunningNode(tmp_path, env=sending_to(collector.url)) as n2,
    ):
        message, told = await one_loop(n1.url, n2.url, given)
        wait_until(lambda: all(collector.named(step) for step in STEPS), f"all of {STEPS} are there")
        (accept,), (forward,), (push,), (ack,) = map(collector.named, STEPS)
    assert accept.parent == (PARENT if given else "")
    assert accept.trace == TRACE or not given
    for span in (forward, push, ack):
        assert (span.trace, span.parent) == (accept.trace, accept.id)
    assert [span.node for span in (accept, forward, push, ack)] == [n1.node, n1.node, n2.node, n2.node]
    assert {span.message_id for span in collector.spans} == {message.message_id}
    assert message.traceparent == told.traceparent
    assert message.traceparent.startswith(f"00-{accept.trace}-{accept.id}-")
    assert int(message.traceparent[-2:], 16) & 1, "it is not sampled"
    assert accept.start < accept.end
    assert accept.start <= forward.start <= ack.end
    assert push.start <= ack.end


async def test_what_is_not_sampled_is_not_sent_and_stays_so_on_its_way(tmp_path: Path, collector: Collector) -> None:
    with RunningNode(tmp_path, env=sending_to(collector.url)) as node:
        message, _ = await one_loop(node.url, node.url, f"00-{TRACE}-{PARENT}-00")
        assert message.traceparent.startswith(f"00-{TRACE}-")
        assert message.traceparent.endswith("-00")
        assert node.terminate() == 0  # whatever is left is sent at the end
    assert collector.spans == []


async def test_spans_that_are_left_are_sent_at_the_end(tmp_path: Path, collector: Collector) -> None:
    slow = {**sending_to(collector.url), "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with RunningNode(tmp_path, env=slow) as node:
        await one_loop(node.url, node.url, "")
        assert node.terminate() == 0
    assert {span.name for span in collector.spans} == set(STEPS)


async def test_a_collector_that_is_away_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Neither messages nor the end of the node; the log says that spans are lost."""
    with RunningNode(tmp_path, env=sending_to("http://127.0.0.1:1")) as node:
        await one_loop(node.url, node.url, "")
        wait_until(lambda: "trace_exporter" in node.log.read_text(), "the log says that spans are lost")
        assert node.terminate() == 0


def test_without_opentelemetry_the_node_says_what_to_install(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "opentelemetry"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not installed')")
    env = {"YANCHAT_TRACING_OTEL": "true", "PYTHONPATH": str(hidden.parent)}
    done = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / "state", env=env)
    assert done.returncode == 78
    assert "pip install 'yanchat[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_node_without_tracing_loads_nothing_of_it(tmp_path: Path) -> None:
    """It is an extra; and loading it takes time."""
    hidden = tmp_path / "hidden" / "opentelemetry"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not installed')")
    env = {"PYTHONPATH": str(hidden.parent)}
    with running("serve", "--listen", "127.0.0.1:0", "--json", state=tmp_path / "state", env=env) as process:
        assert process.stdout is not None
        assert "url" in process.stdout.readline()
        assert finish(process)[0] == 0
