"""What holds for every command: help, forms of output, shared options, errors as one sentence, quiet ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import on_terminal
from tests.running import RunningNode, call, command, environment, read_line, running
from yanchat.cli.app import run

COMMANDS = (
    "serve",
    "drain",
    "send",
    "listen",
    "servers",
    "doctor",
    "top",
    "config",
    "clients",
    "kick",
    "outbox",
    "trace",
    "audit",
    "redeliver",
    "demo",
    "bench",
)
SHARED = ("--config", "--state-dir", "--profile", "--redis", "--kafka", "--json", "--ndjson", "--debug")
ASKING = (
    ("servers",),
    ("clients",),
    ("kick", "--openid", "bob"),
    ("drain",),
    ("outbox",),
    ("top",),
    ("trace", "0" * 32),
    ("audit",),
    ("redeliver", "--all"),
    ("send", "bob", "hi"),
    ("listen", "--as", "bob"),
)
"""Commands that need a running node."""


def test_help_shows_all_commands_and_how_to_begin() -> None:
    """Without arguments, too: a newcomer types the bare name."""
    for arguments in (["--help"], ["-h"], []):
        done = call(*arguments)
        assert done.returncode == (0 if arguments else 2)
        assert all(name in done.stdout for name in (*COMMANDS, *SHARED, "yanchat serve", "--install-completion"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_the_shared_options(name: str) -> None:
    """Each option is explained where it can be given."""
    done = call(name, "--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in SHARED)
    assert "Traceback" not in done.stderr


def test_version() -> None:
    """What a bug report begins with."""
    done = call("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("yanchat ")


def test_help_loads_no_driver() -> None:
    """Help is quick because neither trio nor a driver nor a web library is loaded for it."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "yanchat", "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {
        "trio",
        "apsw",
        "websockets",
        "trio_websocket",
        "starlette",
        "hypercorn",
        "httpx",
        "structlog",
        "jwt",
        "cryptography",
    }


@pytest.mark.parametrize("arguments", ASKING, ids=lambda arguments: arguments[0])
def test_without_a_node_it_says_how_to_start_one(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 4, one sentence, and no file made in a directory that was perhaps only misspelled."""
    done = call(*arguments, state=tmp_path / "none")
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "yanchat serve" in done.stderr
    assert str(tmp_path / "none") in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "nonsense"),
        (["serv"], "'serve'"),
        (["send", "bob"], "TEXT"),
        (["send"], "TO"),
        (["send", "bob", "two", "words"], "quote"),
        (["send", "bob smith", "hi"], "'bob smith'"),
        (["send", "bob,", "hi"], "Recipient ''"),
        (["send", "bob", "hi", "--as", "a b"], "--as"),
        (["send", "bob", "hi", "--wait", "forever"], "accepted or delivered"),
        (["send", "bob", "hi", "--count", "0"], "--count"),
        (["send", "bob", "hi", "--count", "many"], "--count"),
        (["send", "bob", "hi", "--timeout", "0"], "--timeout"),
        (["send", "bob", "hi", "--request-id", ""], "request id"),
        (["send", "bob", "hi", "--request-id", "x" * 65], "64"),
        (["send", "bob", "-", "--count", "2"], "stdin"),
        (["send", "bob", "\udcff"], "UTF-8"),
        (["send", "bob", "hi", "--timeout", "nan"], "--timeout"),
        (["send", "bob", "hi", "--token", "a\nb", "--url", "ws://127.0.0.1:1"], "token"),
        (["send", "bob", "hi", "--name", "\udcff", "--url", "ws://127.0.0.1:1"], "name"),
        (["listen", "--as", "bob", "--url", "http://127.0.0.1:8084"], "ws://127.0.0.1:8084/ws"),
        (["send", ",".join(f"u{n}" for n in range(101)), "hi"], "100"),
        (["listen"], "--as"),
        (["listen", "--as", "a b"], "--as"),
        (["listen", "--as", "bob", "--count", "0"], "--count"),
        (["listen", "--as", "bob", "--raw", "--json"], "--raw"),
        (["servers", "--json", "--ndjson"], "not both"),
        (["servers", "--watch", "1", "--check"], "--watch"),
        (["kick"], "--openid OPENID or --session-id ID"),
        (["kick", "--openid", "bob", "--session-id", "x"], "either"),
        (["drain", "--timeout", "-1"], "--timeout"),
        (["outbox", "--state", "lost"], "pending, delivered"),
        (["outbox", "--limit", "0"], "--limit"),
        (["redeliver"], "--all, --to OPENID, --message-id ID"),
        (["redeliver", "--all", "--to", "bob"], "--all"),
        (["redeliver", "--message-id", "xyz"], "32"),
        (["redeliver", "--to", "a b"], "--to"),
        (["redeliver", "--older-than", "soon"], 'write a duration as "500ms"'),
        (["redeliver", "--older-than", "10"], 'write a duration as "500ms"'),
        (["redeliver", "--adopt"], "yanchat redeliver --help"),
        (["config", "check", "--config"], "yanchat config check --help"),
        (["redeliver", "--older-than", "3 parsecs"], "--older-than"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_a_wrong_call_ends_with_2_and_one_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked of a node, and nothing printed but what is wrong."""
    assert run(arguments) == 2
    out, errors = capsys.readouterr()
    assert says in errors
    assert errors.startswith("yanchat: ")
    assert errors.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[node]\nlistn = "x"\n', "yanchat.toml:2: there is no key 'listn' in [node]; did you mean 'listen'?"),
        ("[nodes]\n", "yanchat.toml:1: there is no section [nodes]"),
        ('[limits]\nidle = "soon"\n', "yanchat.toml:2: limits.idle"),
        ("[limits]\nmessage_size = true\n", "yanchat.toml:2: limits.message_size"),
        ('[redelivery]\nlifetime = "30d"\n', "yanchat.toml:2: redelivery.lifetime"),
        ('[node]\nsessions = "none"\n', "'multi' or 'single'"),
        ("[node]\ninsecure = 3\n", "true or false"),
        ("[limits]\nwindow = 0\n", "a whole number of at least 1"),
        ('[node]\ntime_zone = "Mars"\n', "yanchat.toml:2: node.time_zone"),
        ("not toml", "this is not TOML"),
        ("node = 3", "yanchat.toml:1: node is a section; begin it with a line [node]."),
        ('[kafka.librdkafka]\n"linger.ms" = 1\n"acks" = 1\n', "yanchat.toml:3: kafka.librdkafka: acks cannot be set:"),
        ("[kafka.librdkafka]\nenable.auto.commit = true\n", "kafka.librdkafka: enable.auto.commit cannot be set:"),
    ],
)
def test_a_bad_file_ends_with_78(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File, line, key and what is allowed."""
    file = tmp_path / "yanchat.toml"
    file.write_text(text)
    assert run(["servers", "--config", str(file)]) == 78
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1


def test_a_bad_variable_ends_with_78_and_an_unknown_one_is_warned_of(tmp_path: Path) -> None:
    """A variable is named as it is written."""
    bad = call("servers", state=tmp_path, env={"YANCHAT_LIMITS_IDLE": "soon"})
    assert bad.returncode == 78
    assert "YANCHAT_LIMITS_IDLE" in bad.stderr
    unknown = call("servers", state=tmp_path, env={"YANCHAT_YES": "1", "YANCHAT_DEBUG": "", "YANCHAT_TOKEN": "x"})
    assert unknown.stderr.splitlines()[0] == "YANCHAT_YES is not a setting of yanchat and is ignored."
    assert len(unknown.stderr.splitlines()) == 2
    near = call("servers", state=tmp_path, env={"YANCHAT_STATE_DIR": "x"})
    assert "did you mean YANCHAT_NODE_STATE_DIR?" in near.stderr


def test_a_registry_that_does_not_answer_ends_with_4() -> None:
    """The options of a call lead to Redis as the settings do; nothing but data is on stdout."""
    for arguments in (("servers",), ("send", "bob", "hi")):
        done = call(*arguments, "--profile", "cluster", "--redis", "redis://127.0.0.1:1/0")
        assert done.returncode == 4
        assert "127.0.0.1:1" in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_options_stand_before_and_behind_the_positionals_and_before_the_command(tmp_path: Path) -> None:
    """Wherever a person's fingers put them."""
    with RunningNode(tmp_path / "state") as node:
        state = ("--state-dir", str(node.state))
        for arguments in (
            ("send", "bob", "hi", "--wait", "accepted", "--json", *state),
            ("send", "--json", "--wait", "accepted", *state, "bob", "hi"),
            ("send", "bob", "--json", *state, "hi", "--wait", "accepted"),
            ("--json", *state, "send", "bob", "hi", "--wait", "accepted"),
        ):
            done = call(*arguments)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)[0]["state"] == "accepted"


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    """By option and by variable, and only then."""
    for arguments, env in ((("--debug",), {}), ((), {"YANCHAT_DEBUG": "1"})):
        done = call("servers", *arguments, state=tmp_path, env=env)
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("yanchat: ")
        assert done.returncode == 4


CHOICES = (
    ("yanchat servers --profile ", {"embedded", "cluster"}),
    ("yanchat send bob hi --wait d", {"delivered"}),
    ("yanchat serve --log-format ", {"auto", "console", "json"}),
    ("yanchat serve --log-level w", {"warning"}),
    ("yanchat outbox --state p", {"pending"}),
)
"""Where there is a choice, the shell is told of it: else it would offer files."""


def test_the_completion_script_is_printed_and_completes() -> None:
    """What `--install-completion` writes, and what the shell asks for with it."""
    script = call(env={"_YANCHAT_COMPLETE": "source_bash"})
    assert script.returncode == 0
    assert "complete -o default -F _yanchat_completion yanchat" in script.stdout
    for words, expected in (("yanchat ser", {"serve", "servers"}), ("yanchat send --req", {"--request-id"}), *CHOICES):
        asked = {"_YANCHAT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert set(call(env=asked).stdout.split()) == expected


def test_a_reader_that_goes_away_is_no_error_worth_words(tmp_path: Path) -> None:
    """`yanchat listen | head -1` ends without a traceback."""
    with (
        RunningNode(tmp_path / "state") as node,
        running("listen", "--as", "bob", "--ndjson", state=node.state) as bob,
    ):
        assert bob.stdout is not None
        assert bob.stderr is not None
        with subprocess.Popen(["head", "-1"], stdin=bob.stdout, stdout=subprocess.PIPE, text=True) as head:
            bob.stdout.close()
            for text in ("one", "two"):
                sent = call("send", "bob", text, "--as", "ann", "--wait", "accepted", state=node.state)
                assert sent.returncode == 0
                if text == "one":
                    line, _ = head.communicate(timeout=20)
        assert json.loads(line)["text"] == "one"
        assert bob.wait(20) == 1
        assert bob.stderr.read().count("\n") == 1  # that it listens


def test_a_full_disk_behind_stdout_is_an_error() -> None:
    """What could not be written is never passed over."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--version"), env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("yanchat: ")
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130_and_without_a_word(tmp_path: Path) -> None:
    """A command that waits is left by Ctrl-C."""
    with RunningNode(tmp_path / "state") as node, running("listen", "--as", "bob", "--ndjson", state=node.state) as bob:
        call("send", "bob", "hi", "--as", "ann", state=node.state)
        read_line(bob)
        bob.send_signal(signal.SIGINT)
        out, errors = bob.communicate(timeout=20)
        assert bob.returncode == 130
        assert out == ""
        assert len(errors.splitlines()) == 1  # that it listens


def test_colour_is_for_terminals_and_no_color_is_heeded(tmp_path: Path) -> None:
    """Escape codes reach neither a pipe nor a person who does not want them."""
    with RunningNode(tmp_path / "state") as node:
        assert "\x1b" not in call("servers", state=node.state).stdout
        assert "\x1b" in on_terminal("servers", state=node.state)[1]
        assert "\x1b[32m" not in on_terminal("servers", state=node.state, NO_COLOR="1")[1]


def test_help_fits_a_terminal_and_an_error_is_one_sentence_there_too() -> None:
    """What a newcomer sees first."""
    code, shown = on_terminal("sevre")
    assert code == 2
    assert "No such command 'sevre'" in shown
    assert shown.count("\n") == 1
