"""Settings about tokens, TLS, origins and proxies: what cannot be is refused in one sentence, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yanchat.config import Settings
from yanchat.config.load import load
from yanchat.errors import ConfigError


def settings(tmp_path: Path, text: str = "", **environment: str) -> Settings:
    file = tmp_path / "yanchat.toml"
    file.write_text(text)
    return load(file, environment, {}).settings


def test_algorithms_may_be_given_in_the_environment_by_commas(tmp_path: Path) -> None:
    found = settings(tmp_path, YANCHAT_AUTH_ALGORITHMS="RS256, EdDSA")
    assert found.auth.algorithms == ("RS256", "EdDSA")


@pytest.mark.parametrize("name", ["none", "HS512", "hs256", ""])
def test_an_algorithm_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"yanchat.toml:2: auth.algorithms.*'HS256', 'RS256', 'ES256', 'EdDSA'"):
        settings(tmp_path, f'[auth]\nalgorithms = ["HS256", "{name}"]')


def test_files_may_be_among_the_credentials_of_the_service_manager(tmp_path: Path) -> None:
    text = '[redis]\npassword_file = "${CREDENTIALS_DIRECTORY}/redis"\nurl = "redis://${CREDENTIALS_DIRECTORY}/"'
    found = settings(tmp_path, text, CREDENTIALS_DIRECTORY="/run/credentials/x")
    assert found.redis.password_file == "/run/credentials/x/redis"
    assert found.redis.url == "redis://${CREDENTIALS_DIRECTORY}/"


def test_without_a_service_manager_such_a_path_stays_as_it_is(tmp_path: Path) -> None:
    """Commands that do not need the file work in a person's shell with the service's own settings."""
    found = settings(tmp_path, '[tls]\ncert_file = "${CREDENTIALS_DIRECTORY}/c"\nkey_file = "k"')
    assert found.tls.cert_file == "${CREDENTIALS_DIRECTORY}/c"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[auth]\nmode = "jwt"', r":2: auth.mode = 'jwt' needs keys: set either auth.key_file or auth.jwks_file\."),
        ('[auth]\nmode = "jwt"\nkey_file = "k"\njwks_file = "j"', r"set either auth.key_file or auth.jwks_file\."),
        ('[auth]\nmode = "jwt"\nkey_file = "k"\nalgorithms = []', r":4: auth.algorithms is empty"),
        ('[tls]\ncert_file = "c"', r":2: tls.cert_file is not enough; set tls.key_file, too\."),
        ('[tls]\nkey_file = "c"', r":2: tls.key_file is not enough; set tls.cert_file, too\."),
        ('[origins]\nallow = ["https://chat.example.org/"]', r":2: origins.allow has 'https://chat.example.org/'"),
        ('[origins]\nallow = ["chat.example.org"]', r":2: origins.allow has 'chat.example.org'"),
        ('[origins]\nallow = ["*"]', r":2: origins.allow has '\*'"),
        ('[proxy]\ntrusted = ["10.0.0.1/8"]', r":2: proxy.trusted has '10.0.0.1/8'; write addresses and networks"),
        ('[proxy]\ntrusted = ["proxy.example.org"]', r":2: proxy.trusted has 'proxy.example.org'"),
        ('[proxy]\nheader = "forwarded"', r":2: proxy.header.*'x-forwarded-for' or 'proxy-protocol'"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        settings(tmp_path, text)


def test_origins_and_proxies_in_all_their_forms(tmp_path: Path) -> None:
    allow = ["https://a.example", "http://localhost:3000", "https://[::1]:8443", "null", "chrome-extension://abcdef"]
    trusted = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"]
    found = settings(tmp_path, f"[origins]\nallow = {allow}\n[proxy]\ntrusted = {trusted}")
    assert (list(found.origins.allow), list(found.proxy.trusted)) == (allow, trusted)


@pytest.mark.parametrize("value", ['["x"]', "2026-01-01"])
def test_no_error_shows_what_stands_beside_it_among_the_settings_of_librdkafka(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="librdkafka") as caught:
        settings(tmp_path, f'[kafka.librdkafka]\n"sasl.password" = "geheim"\n"ssl.ca.location" = {value}')
    assert "geheim" not in str(caught.value)
