"""The program `yanchat`: its commands, its help, and how a call ends. What every command shares is in call.py."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from yanchat.cli import (
    audit,
    bench,
    clients,
    config,
    demo,
    doctor,
    drain,
    kick,
    listen,
    outbox,
    redeliver,
    send,
    serve,
    servers,
    token,
    top,
    trace,
)
from yanchat.cli.call import add_command, add_group, add_shared_options, flag
from yanchat.cli.render import complain

NOT_WRITTEN = 1
INTERRUPTED = 130
# what a wrong call raises; typer exports only a subclass of it
WrongCall: type[Exception] = typer.BadParameter.__mro__[2]


def _version(asked: bool) -> None:
    if asked:
        from yanchat import __version__, build

        typer.echo(f"yanchat {__version__}{' (compiled)' if build() == 'compiled' else ''}")
        raise typer.Exit


def commands() -> typer.Typer:
    """All commands, in the order in which help shows them."""
    app = typer.Typer(
        name="yanchat",
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    add_shared_options(
        app, about, {"version": Annotated[bool, flag("--version", "Show the version.", callback=_version)]}
    )
    for panel, function in (
        ("Run a node", serve.serve),
        ("Run a node", drain.drain),
        ("Talk", send.send),
        ("Talk", listen.listen),
        ("Look around", servers.servers),
        ("Look around", clients.clients),
        ("Look around", kick.kick),
        ("Look around", outbox.outbox),
        ("Look around", trace.trace),
        ("Look around", audit.audit),
        ("Look around", redeliver.redeliver),
        ("Look around", top.top),
        ("Look around", doctor.doctor),
        ("Try it", demo.demo),
        ("Try it", token.token),
        ("Try it", bench.bench),
    ):
        add_command(app, panel, function)
    add_group(app, "Run a node", "config", config.about, (config.init, config.show, config.check))
    return app


def about() -> None:
    """A WebSocket messaging cluster that never loses an accepted message and can prove what became of each one.

    Try it: [bold]yanchat serve[/bold], in a second terminal [bold]yanchat listen --as bob[/bold], in a third
    [bold]yanchat send bob hello[/bold]. Or let [bold]yanchat demo[/bold] show it.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one call; its exit code. Prints every error as one sentence, and never raises but for a second Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _call(list(arguments))
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:  # then the reader has gone, and there is nobody to tell
            complain(f"The output cannot be written: {error.strerror}.")
        # let Python's own flush at the end go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_WRITTEN
    return code


def _call(arguments: list[str]) -> int:
    program = typer.main.get_command(commands())
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    try:
        code = program.main(arguments, prog_name="yanchat", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except WrongCall as wrong:
        return _explain(wrong, program, arguments)
    return code if isinstance(code, int) else 0


def _explain(wrong: Exception, program: Any, arguments: Sequence[str]) -> int:
    context = getattr(wrong, "ctx", None)
    path = context.command_path if context is not None else _command_path(program, arguments)
    sentence = wrong.format_message() if hasattr(wrong, "format_message") else str(wrong)
    if not sentence:  # no command at all: help was printed
        return 2
    if path.endswith(" send") and "unexpected extra argument" in sentence:
        sentence += "; quote a text of several words"
    joint = " See" if sentence.endswith("?") else "; see"
    complain(f"{sentence.rstrip('.')}{joint} `{path} --help`.")
    return 2


def _command_path(program: Any, arguments: Sequence[str]) -> str:
    """The command that was called; an option without its argument does not say of which it is."""
    path = "yanchat"
    for word in arguments:
        command = getattr(program, "commands", {}).get(word)
        if command is not None:
            path, program = f"{path} {word}", command
    return path
