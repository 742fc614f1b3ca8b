"""`config init`, `show` and `check`, and docs/configuration.md, which is made from the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.calls import quick
from tests.gateway.credentials import Authority
from tests.running import call
from yanchat.config import Settings
from yanchat.config.load import load
from yanchat.config.reference import document, file_with, sections
from yanchat.config.values import fields_of
from yanchat.reloading import KEYS, SECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def show(*arguments: str | Path, **env: str) -> dict[str, Any]:
    """What `config show --json` says of each setting."""
    done = call("config", "show", "--json", *arguments, env=env)
    assert done.returncode == 0, done.stderr
    return {row["key"]: row for row in json.loads(done.stdout)}


# -- the document ------------------------------------------------------------------------------------------------------
def test_the_page_is_the_settings() -> None:
    """Made again after every change: python -m yanchat.config.reference > docs/configuration.md."""
    assert PAGE.read_text() == document()


def test_every_setting_is_explained() -> None:
    """In words of its own."""
    found = [(setting.section, setting.key) for section in sections() for setting in section.settings]
    keys = [(name, key) for name in Settings.__struct_fields__ for key in fields_of(name) if key != "librdkafka"]
    assert found == keys
    assert [setting for section in sections() for setting in section.settings if len(setting.text) < 6] == []


def test_the_page_says_what_a_reload_takes_up() -> None:
    (line,) = [part for part in PAGE.read_text().split("\n\n") if part.startswith("On SIGHUP")]
    assert all(f"`[{section}]`" in line for section in SECTIONS)
    assert all(f"`{section}.{key}`" in line for section, key in KEYS)
    assert line.count("`[") == len(SECTIONS)


# -- init --------------------------------------------------------------------------------------------------------------
def test_init_writes_a_file_that_changes_nothing_until_it_is_changed(tmp_path: Path) -> None:
    """Later defaults hold for whoever has not set them; with what the call says it is set already."""
    file = tmp_path / "etc" / "yanchat.toml"
    done = call("config", "init", file)
    assert (done.returncode, done.stdout) == (0, f"Written: {file}\n")
    assert f"--config {file}" in done.stderr
    assert set(load(file, {}, {}).origins) == {("kafka", "librdkafka")}  # its heading
    assert '\n#listen = "127.0.0.1:8084" ' in file.read_text()

    other = tmp_path / "other.toml"
    options = ("--profile", "cluster", "--redis", "redis://r:6379/0", "--kafka", "k1:9092,k2:9092")
    assert call("config", "init", other, *options).returncode == 0
    loaded = load(other, {}, {})
    assert loaded.settings.kafka.brokers == ("k1:9092", "k2:9092")
    assert {key for _, key in loaded.origins} == {"profile", "url", "brokers", "librdkafka"}


def test_init_writes_nothing_over_and_no_password(tmp_path: Path) -> None:
    file = tmp_path / "yanchat.toml"
    file.write_text("# mine\n")
    taken = call("config", "init", env={"YANCHAT_CONFIG": str(file)})
    assert (taken.returncode, file.read_text()) == (1, "# mine\n")
    assert "is there already" in taken.stderr
    secret = call("config", "init", "-", "--redis", "redis://:geheim@r:6379/0")
    assert secret.returncode == 2
    assert "redis.password_file" in secret.stderr
    assert "geheim" not in secret.stdout + secret.stderr
    assert call("config", "init", "-").stdout == file_with({})


# -- show --------------------------------------------------------------------------------------------------------------
def test_show_says_where_each_value_comes_from(tmp_path: Path) -> None:
    """A file with its line, a variable, an option, or the default."""
    file = tmp_path / "yanchat.toml"
    file.write_text('[node]\nlisten = "127.0.0.1:9000"\n[limits]\nidle = "2m"\n[kafka.librdkafka]\n"linger.ms" = 5\n')
    found = show("--config", file, "--profile", "cluster", YANCHAT_LIMITS_WINDOW="7")
    assert found["node.listen"] == {
        "key": "node.listen",
        "value": "127.0.0.1:9000",
        "text": '"127.0.0.1:9000"',
        "origin": f"{file}:2",
    }
    assert (found["limits.idle"]["value"], found["limits.idle"]["text"]) == (120, '"2m"')
    assert (found["limits.window"]["value"], found["limits.window"]["origin"]) == (7, "YANCHAT_LIMITS_WINDOW")
    assert found["node.profile"]["origin"] == "--profile"
    assert found["limits.ping"]["origin"] == "default"
    assert found["kafka.librdkafka.linger.ms"]["value"] == 5


def test_what_show_prints_is_a_file_with_the_same_settings(tmp_path: Path) -> None:
    """So it can be kept, or compared between two machines."""
    file, again = tmp_path / "yanchat.toml", tmp_path / "again.toml"
    file.write_text(
        '[node]\ntime_zone = "Asia/Shanghai"\n[limits]\nmessage_size = 1000\nhandshake = "1500ms"\n[origins]\n'
        'allow = ["https://a.example", "https://b.example"]\n[kafka.librdkafka]\n"linger.ms" = 5\n'
    )
    for more in ((), ("--origin",)):
        done = call("config", "show", "--config", file, *more)
        again.write_text(done.stdout)
        assert load(again, {}, {}).settings == load(file, {}, {}).settings
        assert (f"# {file}:2" in done.stdout) == bool(more)


def test_show_tells_no_secret(tmp_path: Path) -> None:
    """In no form and whoever brings it; but that there is one."""
    file = tmp_path / "yanchat.toml"
    file.write_text(
        '[redis]\nurl = "rediss://ann:geheim@r:6379/0"\n'
        '[kafka.librdkafka]\n"sasl.username" = "ann"\n"sasl.password" = "geheim"\n"ssl.key.pem" = "geheim"\n'
    )
    for form in ((), ("--json",), ("--ndjson",), ("--origin",)):
        done = call("config", "show", *form, "--config", file)
        assert "geheim" not in done.stdout + done.stderr
        assert "rediss://ann:***@r:6379/0" in done.stdout
        assert "sasl.password" in done.stdout


# -- check -------------------------------------------------------------------------------------------------------------
def test_check_says_that_a_file_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "yanchat.toml"
    file.write_text('[node]\nprofile = "cluster"\n[kafka.librdkafka]\n"linger.ms" = 1\n')
    assert quick("config", "check", file).stdout == f"{file} is fine.\n"
    done = call("config", "check", "--json", env={"YANCHAT_CONFIG": str(file), "YANCHAT_NODE_LISTN": "x"})
    assert json.loads(done.stdout) == {
        "file": str(file),
        "ok": True,
        "warnings": [
            "YANCHAT_NODE_LISTN is not a setting of yanchat and is ignored; did you mean YANCHAT_NODE_LISTEN?"
        ],
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[node]\nlistn = "x"\n', "yanchat.toml:2"),
        ('[node]\nprofile = "cluster"\n[redis]\nurl = "http://r"\n', "redis.url"),
        ('[node]\nprofile = "cluster"\n[kafka.librdkafka]\n"linger.mss" = 1\n', "linger.mss"),
        (
            '[kafka]\nbrokers = ["h:9092", "h;9092"]\n',
            "yanchat.toml:2: kafka.brokers has 'h;9092'; write each as HOST:PORT",
        ),
        ('[kafka]\nbrokers = ["h:x"]\n', "write each as HOST:PORT"),
        ('[kafka]\nbrokers = ["h:99999"]\n', "write each as HOST:PORT"),
        ('[kafka]\nbrokers = ["h:9092,:9092"]\n', "write each as HOST:PORT"),
        ('[kafka]\nbrokers = ["kafka://h:9092"]\n', "leave kafka:// out"),
        ('[kafka]\nbrokers = ["SSL://h:9092"]\n', "the protocol is plaintext; leave SSL:// out"),
        ('[auth]\nmode = "jwt"\nkey_file = "{tmp}/none"\n', "auth.key_file"),
        ('[admin]\nlisten = "127.0.0.1:0"\ntoken_file = "{tmp}/none"\n', "admin.token_file"),
        ('[tls]\ncert_file = "{tmp}/new.crt"\nkey_file = "{tmp}/none"\n', "tls.key_file"),
        ('[tls]\ncert_file = "{tmp}/old.crt"\nkey_file = "{tmp}/old.key"\n', "has expired"),
        ('[redis]\npassword_file = "{tmp}/open"\n', "may be used by everybody"),
        ("[limits]\nmessage_size = inf\n", "yanchat.toml:2: limits.message_size = inf is not possible"),
        ("[limits]\nmessage_size = nan\n", "a size is at most"),
        ('[limits]\nwindow_bytes = "99999999999GiB"\n', "a size is at most"),
        ("[limits]\nwindow = 99999999999999999999\n", "at most 2147483647"),
        ("[limits]\nmessages_per_second = inf\n", "at most 2147483647"),
        ("[limits]\nmessage_size = 1\noutgoing_buffer = 1\n", "must be at least 4KiB"),
        ("[redelivery]\nfactor = 100000\n", "must be 1 to 1000"),
        ('[redelivery]\nlifetime = "9999999999d"\nkeep = "99999999999999d"\n', "a duration is at most 10000d"),
    ],
)
def test_check_finds_what_would_stop_a_node(text: str, says: str, tmp_path: Path) -> None:
    """Exit code 78 and a sentence, whatever it is."""
    authority = Authority(tmp_path)
    authority.issue("new")
    authority.issue("old", days=-1)
    (tmp_path / "open").write_text("geheim")
    (tmp_path / "open").chmod(0o644)
    file = tmp_path / "yanchat.toml"
    file.write_text(text.replace("{tmp}", str(tmp_path)))
    done = quick("config", "check", file)
    assert done.returncode == 78, done.stdout
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("protocol", ["plaintext", "ssl"])
def test_brokers_are_written_as_librdkafka_takes_them(protocol: str, tmp_path: Path) -> None:
    """With or without a port or a protocol, which is the one that is set."""
    file = tmp_path / "yanchat.toml"
    brokers = f'["k1", "k-2.example.org:9092", "10.0.0.7:1, [fe80::1]:9092", "{protocol.upper()}://k_3:65535"]'
    file.write_text(f'[kafka]\nbrokers = {brokers}\n[kafka.librdkafka]\n"security.protocol" = "{protocol}"\n')
    done = quick("config", "check", file)
    assert done.returncode == 0, done.stderr


def test_shared_options_stand_anywhere_and_help_is_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "yanchat.toml"
    file.write_text("[limits]\nwindow = 3\n")
    for arguments in (
        ("--config", file, "--json", "config", "show"),
        ("config", "--config", file, "--json", "show"),
        ("config", "show", "--json", "--config", file),
    ):
        assert '"value": 3' in call(*arguments).stdout
    assert "Show the settings" in call("help", "config", "show").stdout
    assert call("config").returncode == 2
