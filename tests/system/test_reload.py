"""SIGHUP: what changed is taken up while clients stay; what is wrong changes nothing; what needs a restart is named."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.gateway.raw import Raw, send, talker, text
from tests.running import DEADLINE, RunningNode, command, environment, wait_until
from yanchat.admin.client import ask_node
from yanchat.config import LimitSettings, NodeSettings, Settings, TlsSettings
from yanchat.reloading import merge


class Site:
    """A node with a file of settings, which are changed under it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "yanchat.toml"
        self.file.write_text("")
        self.node = RunningNode(directory / "state", "--config", str(self.file), env={"YANCHAT_LOG_FORMAT": "json"})

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = self.node.log.read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    def reload(self, settings: str, event: str = "node.reloaded") -> dict[str, Any]:
        """Write the settings, say so, and wait for what comes of it."""
        before = len(self.logged(event))
        self.file.write_text(settings)
        self.node.hang_up()
        wait_until(lambda: len(self.logged(event)) > before, event)
        return self.logged(event)[-1]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    with site.node:
        yield site


def status(site: Site, **headers: str) -> int:
    """How an upgrade is answered."""
    with Raw(site.node.url) as client:
        client.say(client.request("probe", headers=headers))
        return client.answer().status


def receipt(client: Raw, message: str) -> int:
    client.say(text(send("nobody", message)))
    return int(client.json(0)["status"])


def test_who_is_there_stays_and_the_new_limits_hold_for_him(site: Site) -> None:
    """A limit that an open connection meets, one of the message table's books, and one for who comes."""
    with talker(site.node.url, "ann") as ann:
        assert receipt(ann, "one") == 200
        news = site.reload("[limits]\npending_per_pair = 1\nmessage_size = '1KiB'\nsessions_per_user = 1\n")
        assert sorted(news["changed"]) == ["limits.message_size", "limits.pending_per_pair", "limits.sessions_per_user"]
        assert receipt(ann, "two") == 429
        with Raw(site.node.url) as second:
            second.say(second.request("ann"))
            assert second.answer().status == 429
        ann.say(text(send("nobody", "x" * 2000)))
        assert ann.ends().code == 1009


def test_the_reserve_of_the_disk_is_a_limit_like_the_others(site: Site) -> None:
    with talker(site.node.url, "ann") as ann:
        assert receipt(ann, "one") == 200
        site.reload("[limits]\ndisk_reserve = '1000000GiB'\n")
        wait_until(lambda: receipt(ann, "two") == 503, "nothing more is accepted")
        site.reload("")
        wait_until(lambda: receipt(ann, "three") == 200, "there is room again")


def test_origins_that_are_allowed_change_for_who_comes(site: Site) -> None:
    assert status(site, Origin="https://a.example") == 101
    site.reload('[origins]\nallow = ["https://b.example"]\n')
    assert status(site, Origin="https://a.example") == 403
    assert status(site, Origin="https://b.example") == 101


def test_the_log_level_changes_in_both_directions(site: Site) -> None:
    """What is below it is not written from then on, and is again when it is lowered."""
    site.file.write_text("[log]\nlevel = 'error'\n")
    site.node.hang_up()
    with talker(site.node.url, "ann") as ann:  # the reload is done when a bad file has been refused after it
        site.reload("[nonsense]\n", "node.not_reloaded")
        assert receipt(ann, "one") == 200
    assert not site.logged("node.reloaded")
    site.reload("[log]\nlevel = 'debug'\n")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("[limits\n", "is not TOML"),
        ("[limits]\nmessage_sice = 1\n", "message_size"),
        ('[auth]\nmode = "jwt"\nkey_file = "/nowhere/key"\n', "/nowhere/key"),
        ("[limits]\nidle = '1s'\n", "limits.ping"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(settings: str, says: str, site: Site) -> None:
    """Not a part of it: the good lines of a bad file do not count either."""
    with talker(site.node.url, "ann") as ann:
        refused = site.reload(f"[origins]\nallow = ['https://a.example']\n{settings}", "node.not_reloaded")
        assert says in refused["error"]
        assert "from before stay" in refused["error"]
        assert status(site, Origin="https://b.example") == 101
        assert receipt(ann, "one") == 200


def test_a_file_that_has_gone_changes_nothing(site: Site) -> None:
    site.file.unlink()
    site.node.hang_up()
    wait_until(lambda: site.logged("node.not_reloaded"), "it says so")
    assert status(site) == 101


def test_what_needs_a_restart_is_named_and_the_rest_is_taken_up(site: Site) -> None:
    news = site.reload(
        "[node]\nlisten = '127.0.0.1:1'\nsessions = 'single'\ndrain = '1s'\n[redelivery]\nfirst = '1s'\n"
    )
    assert news["changed"] == ["node.drain"]
    (warning,) = site.logged("node.restart_needed")
    assert warning["keys"] == ["node.sessions", "redelivery.first"], "the option --listen wins over the file"
    assert "restart" in warning["fix"]


def test_a_reload_that_would_let_strangers_in_is_refused(tmp_path: Path) -> None:
    """As at the start: beyond this machine nobody may be anybody, unless that is wanted."""
    site = Site(tmp_path)
    site.node.options = (*site.node.options, "--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:1")
    site.file.write_text("[node]\ninsecure = true\n")
    with site.node:
        refused = site.reload("[node]\ninsecure = false\n", "node.not_reloaded")
    assert "may be anybody" in refused["error"]


async def test_reloads_that_follow_each_other_closely_harm_nobody(site: Site) -> None:
    for _ in range(5):
        site.node.hang_up()
    await trio.to_thread.run_sync(wait_until, lambda: site.logged("node.reloaded"), "it has")
    assert (await ask_node(site.node.directory / "admin.sock", "GET", "/readyz"))["ready"]


def test_a_terminal_that_is_closed_stops_its_node(tmp_path: Path) -> None:
    """There SIGHUP says that nobody is there any more."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("serve", "--listen", "127.0.0.1:0", state=tmp_path / "state"),
        env=environment(),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509 - it becomes its terminal
    ) as process:
        os.close(theirs)
        try:
            assert process.stdout is not None
            assert b"Serving at" in process.stdout.readline()
            os.close(ours)
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()


# -- what changes at once ----------------------------------------------------------------------------------------------
def test_a_cluster_does_not_outgrow_its_brokers_without_a_restart() -> None:
    """Topics were made for messages of the size that held at the start; nodes without brokers have no such bound."""
    for profile, at_once in (("embedded", True), ("cluster", False)):
        now = Settings(node=NodeSettings(profile=profile))  # type: ignore[arg-type]
        merged, changed, left = merge(now, Settings(node=now.node, limits=LimitSettings(message_size=1 << 20)))
        assert (merged.limits.message_size == 1 << 20) is at_once
        assert (changed, left) == ((["limits.message_size"], []) if at_once else ([], ["limits.message_size"]))


def test_tls_is_not_switched_on_without_a_restart_but_its_files_change() -> None:
    """The registry says ws:// or wss:// of a node."""
    plain, one, other = Settings(), Settings(tls=TlsSettings("a", "b")), Settings(tls=TlsSettings("c", "d"))
    assert merge(plain, one)[0] == plain
    assert merge(plain, one)[2] == ["tls.cert_file", "tls.key_file"]
    assert merge(one, other) == (other, ["tls.cert_file", "tls.key_file"], [])
