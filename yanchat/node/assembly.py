"""One node's work, put together: every part is named once and gets what it needs by name.

The daemon gives it ports, a clock and settings; the tests give it memory backends and virtual time.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple
from zoneinfo import ZoneInfo

import trio

from yanchat.config import LimitSettings, Settings
from yanchat.model import Node, NodeRecord
from yanchat.node.acks import Acks
from yanchat.node.adoption import Adoption
from yanchat.node.backlog import Backlog
from yanchat.node.claims import Claims
from yanchat.node.delivery import Delivery
from yanchat.node.hub import Hub
from yanchat.node.intake import Intake
from yanchat.node.lease import Lease
from yanchat.node.ledger import Ledger
from yanchat.node.loads import Loads
from yanchat.node.looks import Looks
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.reception import Reception
from yanchat.node.repeats import Repeats
from yanchat.node.settlement import Settlement
from yanchat.node.sweep import Sweep
from yanchat.ports import CAME_FROM, MOVED_TO, Bus, Clock, Inbox, Outbox, Registry
from yanchat.protocol.frames import Dates
from yanchat.protocol.ids import Orders, SessionIds
from yanchat.protocol.retry import RetryPolicy
from yanchat.telemetry import Counters


class Assembly(NamedTuple):
    """The parts that others speak to; `run` runs them all."""

    node: Node
    clock: Clock
    counters: Counters
    registry: Registry
    bus: Bus
    hub: Hub
    mailboxes: Mailboxes
    looks: Looks
    loads: Loads
    ledger: Ledger
    intake: Intake
    repeats: Repeats
    acks: Acks
    delivery: Delivery
    settlement: Settlement
    lease: Lease
    claims: Claims
    reception: Reception
    adoption: Adoption
    sweep: Sweep

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the node's work until cancelled; started when the registry has the node and clients can come.

        Raises AddressTaken when another node holds the address.
        """
        async with AsyncExitStack() as stack:
            messages = await stack.enter_async_context(self.bus.subscribe("message"))
            acks = await stack.enter_async_context(self.bus.subscribe("ack"))
            nursery = await stack.enter_async_context(trio.open_nursery())
            await self.loads.start()
            await self.acks.publish_again()
            parts: list[Callable[[], Awaitable[None]]] = [
                partial(self.delivery.serving.run, messages),
                partial(self.settlement.serving.run, acks),
                self.ledger.run,
                self.acks.run,
                self.acks.keep_publishing,
                self.intake.run,
                self.repeats.run,
                self.loads.run,
                self.looks.run,
                self.claims.run,
                self.lease.run,
                self.sweep.run,
                self.sweep.watch_store,
                self.sweep.housekeeping,
            ]
            for part in parts:
                nursery.start_soon(part)
            await self.lease.joined.wait()
            task_status.started()
            nursery.start_soon(self.adoption.run)  # who may not hold the address must not answer for others' rows

    def apply(self, limits: LimitSettings) -> None:
        """Hold what comes from now on to other limits."""
        for part in (self.intake, self.acks, self.delivery, self.mailboxes, self.looks, self.loads, self.reception):
            part.apply(limits)

    async def idle(self) -> None:
        """Wait until all that was taken is stored, answered and published."""
        parts = (self.intake, self.acks, self.ledger, self.delivery.serving, self.settlement.serving)
        while not all(part.idle for part in parts):  # noqa: ASYNC110 - once, at the end
            await trio.sleep(0.005)
        await self.bus.flush()


async def assemble(
    record: NodeRecord,
    settings: Settings,
    outbox: Outbox,
    inbox: Inbox,
    registry: Registry,
    bus: Bus,
    clock: Clock,
    counters: Counters,
) -> Assembly:
    """Build the work of the node that `record` describes; its state is read from the outbox."""
    node, limits, redelivery, single = (
        record.node,
        settings.limits,
        settings.redelivery,
        settings.node.sessions == "single",
    )
    dates = Dates(datetime.UTC if settings.node.time_zone == "UTC" else ZoneInfo(settings.node.time_zone))
    orders = Orders(await outbox.last_order())
    second = max(clock.wall() // 1000, await outbox.mark("session-second", 0)) + 1
    await outbox.mark("session-second", second)

    hub, backlog = Hub(), Backlog(limits)
    for waiting in await outbox.waiting():
        backlog.add(waiting.sender, waiting.recipient, waiting.rows)
    retry = RetryPolicy(redelivery.first, redelivery.factor, redelivery.longest, redelivery.lifetime)

    ledger = Ledger(outbox, counters)
    mailboxes = Mailboxes(hub, backlog, counters, clock.monotonic, limits)
    loads = Loads(outbox, ledger, mailboxes, counters, limits, first_order=orders.last + 1)
    adopters = [Node(name) for name in await outbox.marks(MOVED_TO)]
    acks = Acks(node, hub, inbox, outbox, ledger, mailboxes, bus, dates, clock, limits.inflight, counters, adopters)
    settlement = Settlement(node, outbox, ledger, mailboxes, bus, clock, counters, acks.pass_on)
    lease = Lease(registry, bus, record, mailboxes, clock, counters)
    claims = Claims(node, hub, registry, bus, lease, mailboxes, single)
    lease.claim_all = claims.claim_all
    repeats = Repeats(node, outbox, ledger, dates, clock)
    intake = Intake(
        hub, outbox, mailboxes, settlement, repeats, backlog, orders, dates, clock, limits.inflight, counters
    )
    dead = {Node(name): last for name, last in (await outbox.marks(CAME_FROM)).items()}
    adoption = Adoption(node, outbox, inbox, orders, mailboxes, settlement, bus, clock, counters, dead)
    delivery = Delivery(
        node,
        hub,
        claims,
        inbox,
        mailboxes,
        settlement,
        bus,
        dates,
        clock,
        counters,
        limits,
        adopt=adoption.take,
    )
    looks = Looks(
        node,
        mailboxes,
        loads,
        ledger,
        registry,
        bus,
        limits,
        retry,
        clock,
        counters,
        deliver=delivery.take,
        doubtful=lambda: not lease.kept,
    )
    reception = Reception(
        node,
        hub,
        lease,
        claims,
        intake,
        acks,
        delivery,
        settlement,
        SessionIds(node, second),
        dates,
        clock,
        limits,
        single,
    )
    sweep = Sweep(hub, outbox, mailboxes, settlement, adoption, redelivery, clock, counters)
    return Assembly(
        node,
        clock,
        counters,
        registry,
        bus,
        hub,
        mailboxes,
        looks,
        loads,
        ledger,
        intake,
        repeats,
        acks,
        delivery,
        settlement,
        lease,
        claims,
        reception,
        adoption,
        sweep,
    )
