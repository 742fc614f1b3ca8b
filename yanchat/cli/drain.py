"""`yanchat drain`: stop a node gently, and wait until it has stopped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yanchat.cli.call import Call, flag, run_async
from yanchat.cli.ordering import TOKEN_FILE, Way, ways_to
from yanchat.cli.render import note
from yanchat.errors import StoreUnavailable, Unreachable, UsageError

if TYPE_CHECKING:
    from yanchat.cli.nodes import Cluster

ASKED_EVERY = 0.25
TOLD_EVERY = 2.0


def drain(
    call: Call,
    node: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Which one; not needed where only one runs.")
    ] = None,
    no_wait: Annotated[bool, flag("--no-wait", "Return as soon as it has begun.")] = False,
    timeout: Annotated[
        float,
        typer.Option(min=0.0, metavar="SECONDS", help="Stop waiting then, with exit code 4; it goes on draining."),
    ] = 120.0,
    admin_token_file: TOKEN_FILE = None,
) -> None:
    """Stop a node gently, as SIGTERM does.

    It takes no new clients, sends those it has to other nodes, in waves, lets disk and bus have all that it accepted,
    and ends. A service manager may start it again; to keep it down, stop its service.
    """
    from yanchat.cli.witnesses import admin_token

    cluster = call.cluster()
    document = run_async(_drain, cluster, admin_token(cluster, admin_token_file), node, no_wait, timeout)
    name = document["node"]
    call.out.document(document, f"{name} is draining." if no_wait else f"{name} has stopped.")


async def _drain(cluster: Cluster, token: str, node: str | None, no_wait: bool, within: float) -> dict[str, Any]:
    from yanchat.admin.client import ask_node, understood

    ways = await ways_to(cluster, token, node)
    if len(ways) > 1:
        raise UsageError(f"Say which node with --node; there are: {', '.join(way.node for way in ways)}.")
    (way,) = ways
    pid: int = understood(await ask_node(way.at, "POST", "/drain"), int, "pid")
    if not no_wait:
        await _until_stopped(way, pid, within)
    return {"node": way.node, "state": "draining" if no_wait else "stopped"}


async def _until_stopped(way: Way, pid: int, within: float) -> None:
    import trio

    from yanchat.admin.client import ask_node, understood

    begun = said = time.monotonic()
    left = "some"
    while True:
        try:
            health = await ask_node(way.at, "GET", "/healthz")
            if understood(health, int, "pid") != pid:
                return  # another process serves already in its place
            left = understood(health, int, "connections")
        except Unreachable:
            return
        except StoreUnavailable:
            pass  # it is not well, but it is there
        now = time.monotonic()
        if now - begun >= within:
            raise Unreachable(f"{way.node} still drains after {within:.0f} s, with {left} clients left; see its log.")
        if now - said >= TOLD_EVERY:
            said = now
            note(f"{way.node} drains: {left} clients left.")
        await trio.sleep(ASKED_EVERY)
