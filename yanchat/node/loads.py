"""Reading into mailboxes what they lack of the message table. Nothing is sent here."""

from __future__ import annotations

import structlog
import trio

from yanchat.config import LimitSettings
from yanchat.errors import StoreUnavailable
from yanchat.model import OPEN, OpenId, Row
from yanchat.node.ledger import AGAIN_AFTER, Ledger
from yanchat.node.mailbox import Mailbox
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.tray import Bounds, Item, TrayRows, window_of
from yanchat.ports import Outbox, Tray
from yanchat.telemetry import Counters

USERS_AT_ONCE = 1000
AT_ONCE = 200
"""Mailboxes; their reads share transactions of the store."""


class Loads:
    """`want` marks a mailbox whose window has room for rows that are on disk alone; `run` reads and nudges it."""

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        mailboxes: Mailboxes,
        counters: Counters,
        limits: LimitSettings,
        first_order: int,
    ) -> None:
        self._outbox, self._ledger, self._mailboxes, self._counters = outbox, ledger, mailboxes, counters
        self._window, self._first_order = window_of(limits), first_order
        self._wanted: dict[OpenId, list[tuple[Tray, TrayRows]]] = {}
        self._wake = trio.Event()

    def apply(self, limits: LimitSettings) -> None:
        """Hold what comes from now on to other limits."""
        self._window = window_of(limits)

    async def start(self) -> None:
        """Take up every user with anything open on disk."""
        after, found = "", await self._outbox.users_with_open_rows("", USERS_AT_ONCE)
        while found:
            for openid in found:
                self._mailboxes.awaited.setdefault(openid, False)
            after = found[-1]
            found = await self._outbox.users_with_open_rows(after, USERS_AT_ONCE)
        self._mailboxes.look_at_all()

    def want(self, box: Mailbox) -> None:
        """Read what the window has room for; nothing when that is under way already."""
        trays = [(name, tray) for name, tray in box.trays() if tray.wants_load(self._window)]
        if trays:
            for _, tray in trays:
                tray.start_load()
            self._wanted.setdefault(box.openid, []).extend(trays)
            self._wake.set()

    async def run(self) -> None:
        """Read, as long as the node lives."""
        while True:
            await self._wake.wait()
            batch = list(self._wanted.items())[:AT_ONCE]
            for openid, _ in batch:
                del self._wanted[openid]
            if not self._wanted:
                self._wake = trio.Event()
            await self._ledger.flushed()  # the disk must know what memory knows
            failed: list[TrayRows] = []
            async with trio.open_nursery() as nursery:
                for openid, trays in batch:
                    for name, tray in trays:
                        nursery.start_soon(self._load, openid, name, tray, failed)
            if failed:
                await trio.sleep(AGAIN_AFTER)
            for tray in failed:
                tray.give_up_load()
            for openid, _ in batch:
                self._mailboxes.nudge(openid)

    async def _load(self, openid: OpenId, name: Tray, tray: TrayRows, failed: list[TrayRows]) -> None:
        held = tray.held  # a reload may change it meanwhile
        try:
            rows = await self._outbox.open_rows(openid, name, *held)
        except StoreUnavailable as error:
            structlog.get_logger().warning("mailbox.load_failed", error=str(error))
            self._counters.store_failed += 1
            failed.append(tray)
            return
        items = self._mailboxes.items
        found = [items.get(row.envelope.key) or Item.read(row, self._sent_before(row)) for row in rows]
        if name == "notices":
            found = [item for item in found if item.rank > OPEN]  # memory is about to follow the disk, and puts these
            for item in found:
                item.lighten()
        read = Bounds(len(rows), sum(len(row.envelope.text) for row in rows))
        for item in tray.end_load(found, held, read):
            items[item.key] = item

    def _sent_before(self, row: Row) -> bool:
        """Whether the user may have had it: from us, now or earlier, or from the node it was adopted from."""
        return row.attempts > 0 or row.envelope.order < self._first_order or row.adopted_at > 0
