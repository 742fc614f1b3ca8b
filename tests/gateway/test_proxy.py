"""Behind proxies: a client's address is the one that a trusted proxy tells; what others tell counts nothing."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.conftest import Gate, Start, still_well
from tests.gateway.credentials import Authority
from tests.gateway.raw import Raw, send, talker, text
from tests.running import call, wait_until
from yanchat.config import ProxySettings
from yanchat.errors import Refused
from yanchat.gateway.proxy import Announced, Proxies, read_announcement

PROXY, OUTSIDE = "127.0.0.2", "127.0.0.9"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def remote(gate: Gate, openid: str) -> str:
    """The address of a user's one session, as the registry has it."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        done = call("clients", "--openid", openid, "--json", state=gate.running.state)
        found[:] = json.loads(done.stdout)
        return len(found) == 1

    wait_until(there, "the session is in the registry")
    return str(found[0]["remote"])


# -- X-Forwarded-For ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("header", "who"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.1.2.3, 10.0.0.1", "192.0.2.1"),
        ("10.9.9.9, 10.0.0.1", "10.9.9.9"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, ::ffff:10.0.0.1", "192.0.2.1"),
        ("unknown", "10.0.0.7"),
        ("192.0.2.1, unknown", "10.0.0.7"),
        ("192.0.2.1, unknown, 10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "10.0.0.7"),
        ("192.0.2.1,", "10.0.0.7"),
        ("", "10.0.0.7"),
    ],
)
def test_the_client_is_the_last_address_that_no_trusted_proxy_has(header: str, who: str) -> None:
    """What stands before it anybody may have written; what is no address ends the chain."""
    assert Proxies(ProxySettings(trusted=("10.0.0.0/8",))).forwarded("10.0.0.7", header) == who


@pytest.fixture(scope="module")
def forwarding(serve: Start) -> Gate:
    return serve(proxy_trusted=f"{PROXY},10.0.0.0/8", limits_connections_per_address=2)


def test_from_a_trusted_proxy_the_header_counts_and_from_others_not(forwarding: Gate) -> None:
    fields = {"X-Forwarded-For": "6.6.6.6, 192.0.2.77, 10.0.0.1"}
    with Raw(forwarding.url, source=PROXY) as behind, Raw(forwarding.url, source=OUTSIDE) as outside:
        behind.login("behind", headers=fields)
        outside.login("outside", headers=fields)
        assert remote(forwarding, "behind") == "192.0.2.77"
        assert remote(forwarding, "outside") == OUTSIDE


def test_caps_are_for_clients_and_not_for_the_proxy_that_brings_them(forwarding: Gate) -> None:
    """A third connection of one client is refused, those of others are not; who leaves makes room."""
    for _ in still_well(forwarding):
        clients = [Raw(forwarding.url, source=PROXY) for _ in range(5)]
        for n, client in enumerate(clients):
            client.login(f"c{n}", headers={"X-Forwarded-For": f"192.0.2.{n // 2}"})
        with Raw(forwarding.url, source=PROXY) as third:
            third.say(third.request("third", headers={"X-Forwarded-For": "192.0.2.0"}))
            answer = third.answer()
            assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        clients[0].sock.close()

        def again() -> bool:
            with Raw(forwarding.url, source=PROXY) as raw:
                raw.say(raw.request("third", headers={"X-Forwarded-For": "192.0.2.0"}))
                return raw.answer().status == 101

        wait_until(again, "there is room again")
        for client in clients:
            client.sock.close()


def test_rates_of_addresses_are_for_clients(serve: Start) -> None:
    gate = serve(proxy_trusted=PROXY, limits_address_messages_per_second=0.1)
    with Raw(gate.url, source=PROXY) as one, Raw(gate.url, source=PROXY) as other:
        one.login("one", headers={"X-Forwarded-For": "192.0.2.1"})
        other.login("other", headers={"X-Forwarded-For": "192.0.2.2"})
        for client in (one, other):
            client.say(text(send("nobody", "x")) * 2)
            assert [client.json(0)["status"] for _ in range(2)] == [200, 429]


# -- the PROXY protocol ------------------------------------------------------------------------------------------------
def v2(command: int, family: int, body: bytes, *, version: int = 2) -> bytes:
    return SIGNATURE + bytes((version << 4 | command, family << 4 | 1)) + struct.pack("!H", len(body)) + body


IPV4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 4711, 8084)
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack("!HH", 4711, 8084)
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1") * 2 + struct.pack("!HH", 4711, 8084)
HEADERS = [
    (b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 8084\r\n", "192.0.2.1"),
    (b"PROXY TCP6 2001:db8::1 ::1 4711 8084\r\n", "2001:db8::1"),
    (b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n", "ffff:" * 7 + "ffff"),
    (b"PROXY UNKNOWN\r\n", ""),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", ""),
    (v2(1, 1, IPV4), "192.0.2.1"),
    (v2(1, 1, IPV4 + b"\x04\x00\x03abc"), "192.0.2.1"),
    (v2(1, 2, IPV6), "2001:db8::1"),
    (v2(1, 2, MAPPED), "192.0.2.1"),
    (v2(0, 0, b""), ""),
    (v2(0, 1, IPV4), ""),
    (v2(1, 3, bytes(216)), ""),
]


@pytest.mark.parametrize(("header", "address"), HEADERS)
@given(rest=st.binary(max_size=20))
def test_a_proxy_header_is_read_wherever_the_network_cuts_it(header: bytes, address: str, rest: bytes) -> None:
    assert all(read_announcement(header[:n]) is None for n in range(1, len(header)))
    assert read_announcement(header + rest) == Announced(address, len(header))


@pytest.mark.parametrize(
    "data",
    [
        b"GET /ws HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 192.0.2.1\r\n",
        b"PROXY TCP4 192.0.2.999 127.0.0.1 1 2\r\n",
        b"PROXY TCP4 localhost 127.0.0.1 1 2\r\n",
        b"PROXY TCP5 192.0.2.1 127.0.0.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\n",
        b"PROXY " + b"x" * 200,
        b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n",
        v2(1, 1, IPV4[:-1]),
        v2(1, 2, IPV4),
        v2(2, 1, IPV4),
        v2(1, 1, IPV4, version=1),
        v2(1, 1, IPV4 + bytes(60_000)),
    ],
)
def test_what_is_no_proxy_header_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(Refused):
        read_announcement(data)


@given(data=st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda rest: SIGNATURE + rest)))
def test_whatever_comes_is_read_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        found = read_announcement(data) if data else None
    except Refused as refused:
        assert refused.status == 400
    else:
        assert found is None or 0 < found.length <= len(data)


@pytest.fixture(scope="module")
def announced(serve: Start) -> Gate:
    return serve(
        proxy_trusted=PROXY, proxy_header="proxy-protocol", limits_connections_per_address=2, limits_handshake="2s"
    )


@pytest.mark.parametrize("header", [HEADERS[0][0], HEADERS[6][0]])
@pytest.mark.parametrize("drops", [False, True])
def test_a_connection_of_a_trusted_proxy_begins_with_its_header(announced: Gate, header: bytes, drops: bool) -> None:
    """Whole with the request, or in drops; X-Forwarded-For counts nothing then."""
    with Raw(announced.url, source=PROXY) as raw:
        request = header + raw.request("behind", headers={"X-Forwarded-For": "6.6.6.6"})
        for part in [request[n : n + 1] for n in range(len(request))] if drops else [request]:
            raw.say(part)
        assert raw.answer().status == 101
        assert raw.json()["type"] == 6
        assert remote(announced, "behind") == "192.0.2.1"
    wait_until(lambda: announced.sockets() == 1, "it has left")


def test_a_trusted_proxy_without_its_header_is_refused_and_another_client_may_not_send_one(announced: Gate) -> None:
    with Raw(announced.url, source=PROXY) as raw:
        raw.say(raw.request("ann"))
        answer = raw.answer()
        assert (answer.status, b"PROXY header" in answer.body) == (400, True)
    with Raw(announced.url, source=OUTSIDE) as raw:
        raw.say(HEADERS[0][0] + raw.request("ann"))
        assert raw.answer().status == 400
    with talker(announced.url, "direct", source=OUTSIDE):
        assert remote(announced, "direct") == OUTSIDE
    wait_until(lambda: announced.sockets() == 1, "all have left")


def test_a_proxy_that_asks_whether_the_node_lives_does_no_harm(announced: Gate) -> None:
    """LOCAL and an end, half a header, silence: each has its time, and leaves nothing."""
    for said in (v2(0, 0, b""), HEADERS[0][0][:20], SIGNATURE[:3], b""):
        with Raw(announced.url, source=PROXY) as raw:
            raw.say(said)
            raw.sock.shutdown(socket.SHUT_WR)
            assert not raw.more()
    with Raw(announced.url, source=PROXY) as raw:
        raw.say(HEADERS[0][0][:20])
        assert not raw.more(), "after limits.handshake"
    wait_until(lambda: announced.sockets() == 1, "all have left")


def test_the_cap_of_an_address_holds_behind_the_header(announced: Gate) -> None:
    clients = [Raw(announced.url, source=PROXY) for _ in range(3)]
    statuses = []
    for n, client in enumerate(clients):
        client.say(HEADERS[0][0] + client.request(f"u{n}"))
        statuses.append(client.answer().status)
    assert statuses == [101, 101, 429]
    for client in clients:
        client.sock.close()
    wait_until(lambda: announced.sockets() == 1, "all have left")


def test_the_header_stands_before_tls(serve: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert_file, key_file = authority.issue()
    gate = serve(proxy_trusted=PROXY, proxy_header="proxy-protocol", tls_cert_file=cert_file, tls_key_file=key_file)
    with Raw(gate.url, source=PROXY) as raw:
        raw.say(HEADERS[5][0])
        raw.sock = ssl.create_default_context(cafile=authority.file).wrap_socket(raw.sock, server_hostname="localhost")
        raw.login("behind")
        assert remote(gate, "behind") == "192.0.2.1"
    with Raw(gate.url, source=PROXY) as raw:
        raw.say(raw.request("ann"))
        assert not raw.more()
    wait_until(lambda: gate.sockets() == 1, "all have left")
