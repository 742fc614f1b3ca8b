"""The rules of adoption: the test of each fails when the rule is left out of the program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.node import test_adoption as calm
from tests.node import test_adoption_faults as faults
from tests.node import test_adoption_late as late
from tests.node.mutation import Mutation, left_out
from yanchat import adoption as run
from yanchat.node import acks, adoption, loads, mailboxes, settlement, sweep, tray

RULES: dict[str, tuple[Callable[[object], Awaitable[None]], Mutation]] = {
    "no-catch-up": (
        faults.test_what_comes_back_when_the_run_has_begun_is_heard_by_the_adopter,
        Mutation(
            adoption,
            "await self._settlement.hear(records)",
            "pass",
            "what came back for the dead node is not heard",
        ),
    ),
    "rows-know-nothing": (
        faults.test_what_had_come_back_comes_with_the_rows_though_the_adopter_dies,
        Mutation(
            run,
            "_parts([_follow(row, acked, told, now) for row in rows])",
            "_parts(rows)",
            "rows leave without what had come back for them",
        ),
    ),
    "no-acks-here": (
        calm.test_an_ack_of_a_user_of_the_adopter_counts_although_its_record_was_lost,
        Mutation(
            adoption,
            "if acked and row.rank < ACKED else row",
            "if False else row",
            "the adopter does not look into its own inbox",
        ),
    ),
    "unsafe-orders": (
        faults.test_rows_accepted_in_the_same_instant_or_in_the_future_meet_nobody,
        Mutation(
            adoption,
            "        self._orders.take(now, len(rows))\n",
            "",
            "an adopted row may get the order of a message that is being accepted",
        ),
    ),
    "bury-at-once": (
        late.test_before_an_adopted_row_is_given_up_the_topic_is_read_once_more,
        Mutation(
            sweep,
            "await self._adoption.hear()",
            "True",
            "rows are given up though an ack may stand in the dead node's topic",
        ),
    ),
    "not-marked-redelivered": (
        calm.test_what_a_dead_node_had_accepted_arrives_on_another_node,
        Mutation(
            loads,
            " or row.adopted_at > 0",
            "",
            "nobody is told that he may have had an adopted message before",
        ),
    ),
    "window-upset": (
        calm.test_older_rows_come_before_those_in_flight_without_upsetting_the_window,
        Mutation(
            tray,
            "                self.changed |= self.mixed\n",
            "",
            "rows in flight behind older ones are counted as within the window",
        ),
    ),
    "not-counted": (
        calm.test_an_adopted_row_counts_against_what_may_wait,
        Mutation(
            mailboxes,
            "        if row.rank == OPEN:\n            self._backlog.add(envelope.sender, envelope.recipient)\n",
            "        if row.rank == OPEN:\n            pass\n",
            "adopted rows do not stand in the backlog",
        ),
    ),
    "lazy-books": (
        calm.test_users_who_are_there_get_it_at_once,
        Mutation(
            adoption,
            "            self._mailboxes.adopted(row)\n",
            "            pass\n",
            "adopted rows wait on disk until somebody asks for them",
        ),
    ),
    "mark-first": (
        faults.test_without_an_answer_nothing_is_marked_and_the_run_says_so,
        Mutation(
            run,
            "                    await self._hand_over(batch)\n                    await self._mark(batch)\n",
            "                    await self._mark(batch)\n                    await self._hand_over(batch)\n",
            "rows are marked before they are on the other disk",
        ),
    ),
    "not-learnt": (
        faults.test_what_the_dead_node_has_learnt_meanwhile_is_known_at_once,
        Mutation(
            adoption,
            "        await self._settlement.learn(rows)\n",
            "",
            "what the dead node knew of rows that are here reaches the disk and not the memory",
        ),
    ),
    "future-orders": (
        faults.test_rows_accepted_in_the_same_instant_or_in_the_future_meet_nobody,
        Mutation(
            adoption,
            " if row.envelope.order > latest else row",
            " if False else row",
            "orders of a clock that is ahead are taken over",
        ),
    ),
    "acks-stay": (
        calm.test_acks_that_the_dead_node_had_not_published_leave_with_the_run,
        Mutation(
            run,
            "        await self._publish_acks()\n",
            "",
            "the dead node's acks do not leave",
        ),
    ),
    "heard-once": (
        late.test_an_ack_that_leaves_late_reaches_the_adopter,
        Mutation(
            adoption,
            "        self._pause = min(2 * self._pause, SELDOM)\n",
            "        self._dead.clear()\n",
            "the dead node's topic is read once and never again",
        ),
    ),
    "heard-in-one-life": (
        late.test_also_when_the_adopter_was_started_again,
        Mutation(
            adoption,
            "        self._dead = dict(dead)\n",
            "        self._dead = dict[Node, int]()\n",
            "an adopter that is started again hears no dead node",
        ),
    ),
    "heard-for-ever": (
        late.test_a_topic_is_read_less_and_less_often_and_not_when_nothing_is_open,
        Mutation(
            adoption,
            "                del self._dead[node]\n",
            "                pass\n",
            "dead nodes are heard although no row of theirs is open",
        ),
    ),
    "last-dead-alone": (
        late.test_also_when_the_adopter_has_died_and_another_has_its_rows,
        Mutation(
            run,
            "self._earlier = tuple(map(Node, await self._outbox.marks(CAME_FROM)))",
            "pass",
            "who adopts from an adopter does not hear the first of the dead",
        ),
    ),
    "kept-to-itself": (
        late.test_an_ack_that_the_node_hears_itself_when_it_lives_again_reaches_the_adopter,
        Mutation(
            settlement,
            "            await self._pass_on(rest)\n",
            "            pass\n",
            "a node that lives again tells nobody of acks of what has moved away",
        ),
    ),
    "to-and-fro": (
        late.test_an_ack_does_not_go_to_and_fro_between_nodes_that_have_adopted_from_one_another,
        Mutation(
            acks,
            "zip(away, known, strict=True) if not there]",
            "zip(away, known, strict=True)]",
            "acks of what has moved away are passed on again and again",
        ),
    ),
}


@pytest.mark.plain
@pytest.mark.parametrize("name", RULES)
async def test_a_program_without_the_rule_is_found_out(name: str, autojump_clock: object) -> None:
    """The test of a rule fails when the rule is left out."""
    holds, mutation = RULES[name]
    with left_out(mutation), pytest.raises((Exception, BaseExceptionGroup)):
        await holds(autojump_clock)
