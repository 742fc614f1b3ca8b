"""`/healthz` and `/readyz`: for a service manager, a load balancer, and a person at night."""

from __future__ import annotations

import os
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat import __version__
from yanchat.admin.answers import answer
from yanchat.admin.control import Control
from yanchat.model import Node
from yanchat.node.assembly import Assembly
from yanchat.ports import Outbox

STUCK_AFTER: Final = 30.0
"""Seconds after which a driver's thread that has not come back counts as wedged."""


class Health(msgspec.Struct):
    """Whether the node can work at all, and why not."""

    node: Node
    pid: int
    version: str
    healthy: bool
    reasons: list[str]
    draining: bool
    connections: int


class Readiness(msgspec.Struct):
    """Whether clients are welcome, and why not."""

    node: Node
    ready: bool
    reasons: list[str]


def unready(work: Assembly, outbox: Outbox) -> list[str]:
    """Why another node should take the clients; nothing when they are welcome."""
    reasons = [work.lease.trouble] if work.lease.trouble else []
    if work.reception.draining:
        reasons.append("This node is stopping.")
    if not outbox.healthy():
        reasons.append("The message table takes nothing now; look at the disk.")
    return reasons


def health_routes(work: Assembly, outbox: Outbox, control: Control) -> list[Route]:
    """The routes of one node."""

    async def healthy(_: Request) -> Response:
        """200 while the node can work at all, 503 with the reasons when it should be killed and started again."""
        stuck = [lane for lane, seconds in control.lanes().items() if seconds > STUCK_AFTER]
        reasons = [f"The thread of {lane} has not come back for over {STUCK_AFTER:.0f} s." for lane in stuck]
        draining, connections = work.reception.draining, control.connections()
        health = Health(work.node, os.getpid(), __version__, not reasons, reasons, draining, connections)
        return answer(health, 503 if reasons else 200)

    async def ready(_: Request) -> Response:
        """200 when clients are welcome, 503 with the reasons when another node should take them."""
        reasons = unready(work, outbox)
        return answer(Readiness(work.node, not reasons, reasons), 503 if reasons else 200)

    return [Route("/healthz", healthy), Route("/readyz", ready)]
