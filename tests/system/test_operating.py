"""docs/operating.md is what a person reads at night: its commands are there, and its recipes for the disk work."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import trio

from tests.running import RunningNode, call
from yanchat.client import connect
from yanchat.protocol.client_frames import Message

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text()


def test_every_command_that_is_named_is_there() -> None:
    """And every option that is given with it."""
    words_of = r"((?:config )?[a-z]+)((?: --[a-z-]+(?: [A-Z0-9.:]+)?)*)"
    called = set(re.findall(rf"(?:`|^    (?:sudo -u yanchat )?)yanchat {words_of}", PAGE, re.MULTILINE))
    assert len(called) > 8
    for words, options in sorted(called):
        shown = call(*words.split(), "--help")
        assert shown.returncode == 0, words
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown.stdout, f"yanchat {words} has no {option}"


def test_every_file_that_is_named_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE) + re.findall(r"`((?:configs|scripts|docs)/[\w./-]+)`", PAGE)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).exists() or (ROOT / link).exists(), link


def recipe() -> str:
    """The statement that backs a running node up."""
    (found,) = re.findall(r"\"(VACUUM INTO '[^']+')\"", PAGE)
    return str(found)


async def test_a_backup_of_a_running_node_is_whole_and_can_be_restored(tmp_path: Path) -> None:
    """What was accepted before it is there again; what came after it is lost, and the node serves."""
    backup = tmp_path / "backup.db"
    with RunningNode(tmp_path / "state") as node:
        assert call("send", "bob", "before", "--as", "ann", "--wait", "accepted", state=node.state).returncode == 0
        with closing(sqlite3.connect(node.directory / "node.db")) as table:
            table.execute(re.sub(r"'[^']+'", f"'{backup}'", recipe()))
        assert call("send", "bob", "after", "--as", "ann", "--wait", "accepted", state=node.state).returncode == 0
        node.kill()
        for name in ("node.db-wal", "node.db-shm"):
            (node.directory / name).unlink(missing_ok=True)
        (node.directory / "node.db").write_bytes(backup.read_bytes())
        node.start()
        assert call("send", "bob", "later", "--as", "ann", "--wait", "accepted", state=node.state).returncode == 0
        async with connect(node.url, "bob") as bob:
            texts: list[str] = []
            with trio.fail_after(20):
                while len(texts) < 2:
                    frame = await bob.receive()
                    if isinstance(frame, Message):
                        texts.append(frame.text)
            assert texts == ["before", "later"]
        assert node.terminate() == 0
