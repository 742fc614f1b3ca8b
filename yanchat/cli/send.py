"""`yanchat send`: its options, and how an outcome reads. The sending itself is in sending.py."""

from __future__ import annotations

import secrets
import statistics
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yanchat.cli.call import Call, choices, leaves, run_async
from yanchat.cli.render import NotWritten, end_line, note, span, warn
from yanchat.cli.token import owner
from yanchat.errors import Refused, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from yanchat.cli.sending import Outcome, Text

NOT_IN_TIME = 4
FAILED = 1
SHOWN = 3
URL = typer.Option(metavar="ws://HOST:PORT", help="The node to connect to; else a live one from the registry.")
TOKEN = typer.Option(
    envvar="YANCHAT_TOKEN",
    metavar="JWT",
    help="For nodes that ask for one; it says who you are. In the variable it is not seen by others.",
)


def send(
    call: Call,
    to: Annotated[str, typer.Argument(metavar="TO", help="Who gets it; several openids joined by commas.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="- reads texts from stdin, one a line.")],
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="OPENID", help="Who sends; else whose the token is, or a random cli-…."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The sender's name, as the recipient sees it.")
    ] = None,
    url: Annotated[str | None, URL] = None,
    token: Annotated[str | None, TOKEN] = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Send it so many times.")] = 1,
    file_type: Annotated[int, typer.Option(metavar="N", help="0 is text; any other number is passed on.")] = 0,
    request_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The same id, sender and text are the same message, however often it is sent. Of several texts the"
            " ids are ID-1, ID-2 and so on.",
        ),
    ] = None,
    wait: Annotated[
        str, choices("--wait", ("accepted", "delivered"), "Until it is stored, or until its recipient has it.")
    ] = "delivered",
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait for each message.")
    ] = 30.0,
) -> int:
    """Send a message, and say when its recipient has it.

    Exit code 4 says that something was not delivered in time; what was accepted is kept by its node all the same, and
    delivered when its recipient comes.
    """
    find = call.cluster().finder(url)
    recipients = tuple(dict.fromkeys(part.strip() for part in to.split(",")))
    sender = as_ or (owner(token) if token else f"cli-{secrets.token_hex(4)}")
    if not timeout > 0:  # NaN
        raise UsageError("--timeout takes a number of seconds.")
    if wait not in {"accepted", "delivered"}:
        raise UsageError(f"--wait {wait} is not possible: accepted or delivered.")
    from_stdin = text == "-"
    if from_stdin and count != 1:
        raise UsageError("--count repeats one text; it does not go with texts from stdin.")
    texts_left = count if not from_stdin else None
    _check(recipients, sender, None if from_stdin else text, request_id, texts_left)

    from yanchat.cli.sending import Sending, Text, lines

    def request_ids(number: int) -> str:
        if request_id is None:
            return secrets.token_hex(16)
        return request_id if texts_left == 1 else f"{request_id}-{number}"

    async def texts() -> AsyncIterator[Text]:
        number = 0
        if not from_stdin:
            for number in range(1, count + 1):
                yield Text(text, request_ids(number))
            return
        if sys.stdin.isatty():
            note("Each line is a message; Ctrl-D ends.")
        async for line in lines(sys.stdin.fileno()):
            number += 1
            yield Text(line, request_ids(number))

    outcomes = _Outcomes(call, timeout)
    sending = Sending(
        recipients, texts(), file_type, wait == "delivered", timeout, outcomes.show, warn, outcomes.awaited
    )
    try:
        run_async(sending.run, find, sender, name or "", token or "")
    except BaseException as error:
        outcomes.cut_off(error, sending.left)
        raise
    outcomes.sum_up()
    if sending.foreign:
        warn(f"Messages wait for {sender}; read them with `yanchat listen --as {sender}`.")
    return outcomes.code


def _check(
    recipients: tuple[str, ...], sender: str, text: str | None, request_id: str | None, texts: int | None
) -> None:
    """What the node would refuse anyway is a wrong call."""
    from yanchat.protocol.frames import MAX_RECIPIENTS, MAX_REQUEST_ID, check_openid

    try:
        for recipient in recipients:
            check_openid(recipient, f"Recipient {recipient!r}")
        check_openid(sender, f"--as {sender!r}")
    except Refused as refused:
        raise UsageError(str(refused)) from None
    if len(recipients) > MAX_RECIPIENTS:
        raise UsageError(f"A message has at most {MAX_RECIPIENTS} recipients, not {len(recipients)}.")
    longest = 0 if request_id is None else len(request_id) + (0 if texts == 1 else 10)
    if request_id == "" or longest > MAX_REQUEST_ID:
        raise UsageError(f"A request id has 1 to {MAX_REQUEST_ID} characters, its number for several texts included.")
    if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError("The text is not UTF-8.")


class _Outcomes:
    """Prints what became of each message, and remembers what the exit code depends on."""

    def __init__(self, call: Call, timeout: float) -> None:
        self._call, self._within = call, f"within {span(timeout)}"
        self._late = self._failed = False
        self._latencies: list[float] = []
        call.out.begin_list()

    def show(self, outcome: Outcome) -> None:
        self._failed |= outcome.state == "failed" and not outcome.late
        self._late |= outcome.late or outcome.state == "expired"
        if not outcome.late and outcome.state in {"accepted", "delivered"}:
            self._latencies.append(outcome.seconds)
        sentence, style = self._sentence(outcome)
        if self._call.out.form == "person" and style:
            warn(sentence)
        else:
            self._call.out.item(_as_json(outcome), sentence)

    def _sentence(self, outcome: Outcome) -> tuple[str, str]:
        to = outcome.to
        if outcome.late and outcome.state == "accepted":
            return f"not delivered to {to} {self._within}: {outcome.error}", "yellow"
        if outcome.state == "accepted":
            return f"accepted for {to} in {span(outcome.seconds)}", ""
        if outcome.state == "delivered":
            return f"delivered to {to} in {span(outcome.seconds)}", ""
        return f"{outcome.state} for {to}: {outcome.error}", "yellow"

    def awaited(self, recipients: Sequence[str]) -> None:
        """Tell a person why nothing happens."""
        if self._call.out.form == "person":
            more = f" and {len(recipients) - SHOWN} more" if len(recipients) > SHOWN else ""
            note(f"Accepted; waiting for {', '.join(recipients[:SHOWN])}{more}.")

    def cut_off(self, error: BaseException, left: Sequence[Outcome]) -> None:
        """The call ends before these have their outcomes: what is known of them, for a person in a few lines."""
        errors = leaves(error)
        if not left or any(isinstance(leaf, NotWritten) for leaf in errors):
            return
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in errors):
            end_line()
        self._within = "so far"
        some = left if self._call.out.form != "person" else left[:SHOWN]
        for outcome in some:
            self.show(outcome)
        if len(some) < len(left):
            warn(f"{len(left) - len(some)} more are under way; see `yanchat outbox`.")

    def sum_up(self) -> None:
        if len(self._latencies) > 1 and self._call.out.form == "person":
            middle = statistics.median(self._latencies)
            note(f"{len(self._latencies)} messages, half of them within {span(middle)}.")

    @property
    def code(self) -> int:
        return FAILED if self._failed else NOT_IN_TIME if self._late else 0


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "message_id": outcome.message_id,
        "request_id": outcome.request_id,
        "to": outcome.to,
        "state": outcome.state,
        "error": outcome.error,
        "latency_ms": round(outcome.seconds * 1000, 2),
    }
