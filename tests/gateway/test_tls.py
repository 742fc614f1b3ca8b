"""TLS: the same conversation as without it, certificates that are renewed, and whatever else comes to the port."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.gateway.conftest import Gate, Start
from tests.gateway.credentials import Authority
from tests.gateway.raw import Closed, Raw, ack, close, send, text
from tests.running import call, read_line, running, wait_until

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def gate(serve: Start, authority: Authority) -> Gate:  # type: ignore[override]
    cert_file, key_file = authority.issue()
    return serve(
        tls_cert_file=cert_file,
        tls_key_file=key_file,
        limits_handshake="2s",
        limits_messages_per_second=0,
        limits_bytes_per_second=0,
    )


def context(authority: Authority, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=authority.file)
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


def secure(gate: Gate, authority: Authority, version: ssl.TLSVersion | None = None, **more: int) -> Raw:
    """A client over TLS, not logged in yet; an end without a goodbye is an error to it."""
    raw = Raw(gate.url, **more)
    try:
        raw.sock = context(authority, version).wrap_socket(
            raw.sock, server_hostname="localhost", suppress_ragged_eofs=False
        )
    except BaseException:
        raw.sock.close()
        raise
    return raw


def talker(gate: Gate, authority: Authority, openid: str, **more: int) -> Raw:
    raw = secure(gate, authority, **more)
    raw.login(openid)
    return raw


def close_a_loop(gate: Gate, authority: Authority) -> None:
    """Of two new users."""
    number = next(_numbers)
    ann, bob = f"pair-{number}-ann", f"pair-{number}-bob"
    with talker(gate, authority, ann) as sender, talker(gate, authority, bob) as recipient:
        sender.say(text(send(bob, "hello")))
        assert sender.json(0)["status"] == 200
        push = recipient.json(2)
        recipient.say(text(ack(push)))
        assert sender.json(17)["messageId"] == push["messageId"]


@pytest.fixture
def unharmed(gate: Gate, authority: Authority) -> Iterator[Gate]:
    """The node; behind the test it holds nothing of it, and a normal pair closes its loop."""
    before = gate.sockets()
    yield gate
    close_a_loop(gate, authority)
    wait_until(lambda: gate.sockets() <= before, f"no more than {before} sockets")
    assert "Traceback" not in gate.running.log.read_text()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_loop_closes_over_tls(unharmed: Gate, authority: Authority, version: ssl.TLSVersion) -> None:
    assert unharmed.url.startswith("wss://")
    with secure(unharmed, authority, version) as ann, secure(unharmed, authority, version) as bob:
        hello = ann.login(f"ann-{version}")
        assert hello["params"]["openid"] == f"ann-{version}"
        bob.login(f"bob-{version}")
        ann.say(text(send(f"bob-{version}", "über TLS")))
        push = bob.json(2)
        assert push["msg"]["params"]["message"] == "über TLS"
        bob.say(text(ack(push)))
        assert ann.json(17)["messageId"] == push["messageId"]


def test_versions_before_1_2_are_not_spoken(unharmed: Gate) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with Raw(unharmed.url) as raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw.sock)


def test_what_is_large_or_comes_in_drops_is_the_same_as_without_tls(unharmed: Gate, authority: Authority) -> None:
    """Messages of many records, and a request of which each byte is a record of its own."""
    with secure(unharmed, authority) as sender, talker(unharmed, authority, "large-bob") as recipient:
        for byte in sender.request("large-ann"):
            sender.say(bytes((byte,)))
        assert sender.answer().status == 101
        for n in range(40):
            sender.say(text(send("large-bob", f"{n}-" + "x" * 60_000)))
            assert sender.json(0)["status"] == 200
        texts = []
        for _ in range(40):
            push = recipient.json(2)
            recipient.say(text(ack(push)))
            texts.append(push["msg"]["params"]["message"])
        assert [(one.split("-")[0], len(one) > 60_000) for one in texts] == [(str(n), True) for n in range(40)]
        assert {sender.json(17)["msg"]["status"] for _ in range(40)} == {200}


def test_both_sides_say_goodbye(unharmed: Gate, authority: Authority) -> None:
    """The end of the bytes is no torn line: a client may insist on that (RFC 8446, 6.1)."""
    with talker(unharmed, authority, "polite") as client:
        client.say(close(1000))
        assert client.ends().code == 1000
        assert client.sock.recv(1) == b""
    with secure(unharmed, authority) as client:
        client.say(client.request("polite", target="/nowhere"))
        assert client.answer().status == 404
    with talker(unharmed, authority, "brief") as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        client.sock.unwrap().close()


def test_a_client_that_reads_nothing_is_closed_and_loses_nothing(serve: Start, authority: Authority) -> None:
    cert_file, key_file = authority.issue("impatient")
    gate = serve(
        tls_cert_file=cert_file, tls_key_file=key_file, limits_stalled="500ms", limits_outgoing_buffer="128KiB"
    )
    with talker(gate, authority, "feeder") as feeder:
        with talker(gate, authority, "sleepy", receive_buffer=4096) as sleepy:
            for _ in range(60):
                feeder.say(text(send("sleepy", "x" * 60_000)))
                assert feeder.json(0)["status"] == 200
            wait_until(lambda: gate.sockets() <= 2, "the sleepy one is closed")
            with pytest.raises((Closed, OSError)):
                while True:
                    sleepy.json()
        with talker(gate, authority, "sleepy") as awake:
            for _ in range(60):
                awake.say(text(ack(awake.json(2))))
            assert {feeder.json(17)["msg"]["status"] for _ in range(60)} == {200}


def test_without_tls_the_port_says_what_it_speaks(unharmed: Gate) -> None:
    with Raw(unharmed.url) as raw:
        raw.say(raw.request("ann"))
        answer = raw.answer()
    assert (answer.status, answer.body) == (400, b"This port speaks TLS; connect to it with wss://.\n")


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize(
    "name", ["garbage", "hello-and-no-more", "half-a-hello", "huge-record", "nothing", "broken-record"]
)
def test_what_is_no_tls_ends_by_itself_and_leaves_nothing(
    unharmed: Gate, authority: Authority, name: str, end: str
) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context(authority).wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    says = {
        "garbage": os.urandom(4096),
        "hello-and-no-more": hello,
        "half-a-hello": hello[:100],
        "huge-record": b"\x16\x03\x01\xff\xff" + bytes(70_000),
        "nothing": b"",
        "broken-record": b"",
    }[name]
    with Raw(unharmed.url) as raw:
        if name == "broken-record":
            plain = raw.sock.dup()
            raw.sock = context(authority).wrap_socket(raw.sock, server_hostname="localhost")
            raw.login("broken")
            plain.sendall(b"\x17\x03\x03\x00\x20" + os.urandom(32))
            plain.close()
        try:
            raw.say(says)
            if end == "fin":
                raw.sock.shutdown(socket.SHUT_WR)
                while raw.sock.recv(65536):
                    pass
        except OSError:
            pass
        if end == "rst":
            raw.reset()


def test_a_handshake_has_its_time_and_no_more(unharmed: Gate, authority: Authority) -> None:
    """Whatever it is made of: silence, or a byte now and then."""
    with Raw(unharmed.url) as silent, Raw(unharmed.url) as slow:
        slow.say(b"\x16")
        start = time.monotonic()
        assert not silent.more()
        assert not slow.more()
        assert time.monotonic() - start >= 1


# -- certificates that change ------------------------------------------------------------------------------------------
def serial(gate: Gate, authority: Authority) -> str:
    with secure(gate, authority) as raw:
        assert isinstance(raw.sock, ssl.SSLSocket)
        found = raw.sock.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


def test_a_renewed_certificate_is_shown_to_the_next_and_nobody_is_dropped(
    serve: Start, authority: Authority, tmp_path: Path
) -> None:
    """What does not fit together, as half a renewal does, changes nothing and is said once; then all goes on."""
    files = [Path(shutil.copy(file, tmp_path / name)) for file, name in zip(authority.issue(), ("c", "k"), strict=True)]
    gate = serve(tls_cert_file=files[0], tls_key_file=files[1])
    first, renewed = serial(gate, authority), authority.issue("renewed")
    with talker(gate, authority, "faithful") as client:
        os.replace(shutil.copy(renewed[0], tmp_path / "new"), files[0])
        assert [serial(gate, authority) for _ in range(3)] == [first] * 3
        log = [line for line in gate.running.log.read_text().splitlines() if "tls.not_renewed" in line]
        assert len(log) == 1
        assert f"{files[1]} is not the key of the certificate in {files[0]}" in log[0]
        os.replace(shutil.copy(renewed[1], tmp_path / "new"), files[1])
        assert serial(gate, authority) != first
        client.say(text('{"type":11}'))
        assert client.json(12)
        close_a_loop(gate, authority)


def test_an_expired_certificate_is_said_in_the_log(serve: Start, authority: Authority) -> None:
    cert_file, key_file = authority.issue("expired", days=-1)
    gate = serve(tls_cert_file=cert_file, tls_key_file=key_file)
    (line,) = [line for line in gate.running.log.read_text().splitlines() if "tls.expired" in line]
    assert json.loads(line)["file"] == str(cert_file)


def test_a_certificate_that_cannot_be_used_keeps_a_node_from_starting(authority: Authority, tmp_path: Path) -> None:
    """Exit code 78, and one sentence."""
    cert_file, key_file = authority.issue("good")
    _, other = authority.issue("other")
    key = load_pem_private_key(key_file.read_bytes(), None)
    locked = tmp_path / "locked"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    none, garbage = tmp_path / "none", tmp_path / "garbage"
    garbage.write_bytes(os.urandom(1000))
    for cert, private, sentence in [
        (cert_file, other, f"tls.key_file: {other} is not the key of the certificate in {cert_file}."),
        (none, key_file, f"tls.cert_file: {none} cannot be read: No such file or directory."),
        (cert_file, none, f"tls.key_file: {none} cannot be read: No such file or directory."),
        (garbage, key_file, f"{garbage} must hold a certificate in PEM form"),
        (cert_file, garbage, f"{garbage} its key"),
        (key_file, cert_file, f"{key_file} must hold a certificate"),
        (cert_file, locked, f"tls.key_file: {locked} has a password"),
    ]:
        env = {"YANCHAT_TLS_CERT_FILE": str(cert), "YANCHAT_TLS_KEY_FILE": str(private)}
        done = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / "s", env=env)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (78, 1), done.stderr
        assert sentence in done.stderr


# -- our own client ----------------------------------------------------------------------------------------------------
def test_the_command_line_speaks_tls_and_asks_whom_the_certificate_is_of(gate: Gate, authority: Authority) -> None:
    """It finds the node's wss:// URL by itself; an authority of one's own is named by SSL_CERT_FILE."""
    state, trust = gate.running.state, {"SSL_CERT_FILE": str(authority.file)}
    with running("listen", "--as", "cli-bob", "--count", "1", "--ndjson", state=state, env=trust) as listener:
        done = call("send", "cli-bob", "hello", "--as", "cli-ann", state=state, env=trust)
        assert done.returncode == 0, done.stderr
        assert json.loads(read_line(listener))["text"] == "hello"
        listener.communicate(timeout=20)
    unknown = call("send", "cli-bob", "hello", state=state, env={"SSL_CERT_FILE": "/dev/null"})
    assert unknown.returncode == 4
    assert "certificate" in unknown.stderr
    assert "SSL_CERT_FILE" in unknown.stderr
    assert len(unknown.stderr.strip().splitlines()) == 1
    plain = call("send", "cli-bob", "hello", "--url", gate.url.replace("wss:", "ws:"), state=state)
    assert "speaks TLS; connect to it with wss://" in plain.stderr


def test_a_client_without_tls_is_not_taken_for_one_with(start: Start, authority: Authority) -> None:
    plain = start(idle="61s")
    done = call("send", "bob", "hi", "--url", plain.url.replace("ws:", "wss:"), state=plain.running.state)
    assert done.returncode == 4
    assert len(done.stderr.strip().splitlines()) == 1
