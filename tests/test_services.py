"""A service that is missing is seen: it skips on a laptop and fails where everything has to be there."""

from __future__ import annotations

import pytest

from tests.services import Missing, RedisServer, Server, _programs
from tests.services_plugin import _started


def missing() -> Server:
    raise Missing("install it with: apt-get install redis-server")


def test_a_missing_service_skips_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install redis-server"):
        next(_started("Redis", missing))


def test_with_ci_set_a_missing_service_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install redis-server"):
        next(_started("Redis", missing))


def test_who_is_not_root_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Missing, match="apt-get install redis-server maven"):
        _programs("redis-server", "mvn")


def test_a_killed_server_comes_back_on_its_port(redis_server: RedisServer) -> None:
    port = redis_server.port
    redis_server.kill()
    assert not redis_server.answers()
    redis_server.start()
    assert redis_server.answers()
    assert redis_server.port == port
