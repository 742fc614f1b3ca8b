"""What every command has: the shared options, the settings they lead to, and how errors become exit codes."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yanchat.cli.render import Form, NotWritten, Output, complain, end_line, warn
from yanchat.errors import NotAllowed, UsageError, YanchatError

if TYPE_CHECKING:
    from yanchat.cli.nodes import Cluster
    from yanchat.config import Settings
    from yanchat.config.load import Loaded

INTERRUPTED = 130
INTERNAL = 1
_PANEL = "For every command"


def flag(name: str, text: str, **more: Any) -> Any:
    """An option without a value."""
    return typer.Option(name, metavar="", help=text, **more)


def choices(name: str, values: Sequence[str], text: str, **more: Any) -> Any:
    """An option that takes one of these values; the shell completes them. Who reads the value says what is wrong."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return typer.Option(name, metavar="|".join(values), help=text, autocompletion=complete, **more)


SHARED: dict[str, Any] = {
    "config": Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            readable=False,  # whoever reads it says what is wrong
            show_default=False,
            rich_help_panel=_PANEL,
            help="File of settings, else YANCHAT_CONFIG, else /etc/yanchat/yanchat.toml if it is there.",
        ),
    ],
    "state_dir": Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            readable=False,
            show_default=False,
            rich_help_panel=_PANEL,
            help="Where the nodes of this machine keep their state, else node.state_dir of the settings, else"
            " $STATE_DIRECTORY, else $XDG_STATE_HOME/yanchat, else ~/.local/state/yanchat.",
        ),
    ],
    "profile": Annotated[
        str | None,
        choices(
            "--profile",
            ("embedded", "cluster"),
            "embedded: nodes that share a state directory are a cluster; cluster: Redis and Kafka join them.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ],
    "redis": Annotated[
        str | None,
        typer.Option(
            "--redis", metavar="URL", show_default=False, rich_help_panel=_PANEL, help="Of the profile cluster."
        ),
    ],
    "kafka": Annotated[
        str | None,
        typer.Option(
            "--kafka", metavar="BROKERS", show_default=False, rich_help_panel=_PANEL, help="Of the profile cluster."
        ),
    ],
    "json": Annotated[bool, flag("--json", "Print one JSON document, for programs.", rich_help_panel=_PANEL)],
    "ndjson": Annotated[
        bool, flag("--ndjson", "Print one JSON object a line, as things happen.", rich_help_panel=_PANEL)
    ],
    "debug": Annotated[
        bool, flag("--debug", "Show where an error came from.", envvar="YANCHAT_DEBUG", rich_help_panel=_PANEL)
    ],
}


class Call:
    """One call of a command."""

    def __init__(
        self,
        config: Path | None,
        state_dir: Path | None,
        profile: str | None,
        redis: str | None,
        kafka: str | None,
        json: bool,
        ndjson: bool,
        debug: bool,
    ) -> None:
        self.debug = debug
        self.config = config
        """What --config says."""
        self.options = {
            ("node", "state_dir"): None if state_dir is None else str(state_dir),
            ("node", "profile"): profile,
            ("redis", "url"): redis,
            ("kafka", "brokers"): kafka,
        }
        self._both = json and ndjson
        form: Form = "json" if json else "ndjson" if ndjson else "person"
        self.out = Output(form)

    def settings(self, options: Mapping[tuple[str, str], Any] | None = None) -> Settings:
        """The settings, with what the options of this command say; warns of what is ignored."""
        loaded = self.load(options)
        for warning in loaded.warnings:
            warn(warning)
        return loaded.settings

    def load(self, options: Mapping[tuple[str, str], Any] | None = None, *, file: Path | None = None) -> Loaded:
        """The settings with where each came from; `file`: another one than --config says."""
        from yanchat.config.load import load

        return load(file or self.config, os.environ, {**self.options, **(options or {})})

    def cluster(self) -> Cluster:
        """The nodes that these settings lead to."""
        from yanchat.cli.nodes import Cluster
        from yanchat.config.load import state_directory

        settings = self.settings()
        return Cluster(settings, state_directory(settings, os.environ))

    def run(self, function: Callable[..., Any], values: Mapping[str, Any]) -> int:
        """Run the command; its exit code. Errors are printed."""
        try:
            if self._both:
                raise UsageError("Give --json or --ndjson, not both.")
            try:
                code = function(self, **values)
            finally:
                self.out.end_list()
            return code or 0
        except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
            return self._end(error)

    def _end(self, error: BaseException) -> int:
        errors = leaves(error)
        for leaf in errors:
            if isinstance(leaf, NotWritten):
                raise leaf
        if self.debug:
            import traceback

            traceback.print_exception(error)
        if any(isinstance(leaf, KeyboardInterrupt | typer.Abort) for leaf in errors):
            end_line()
            return INTERRUPTED
        for leaf in errors:
            if isinstance(leaf, YanchatError):
                complain(str(leaf))
                return leaf.exit_code
            if isinstance(leaf, PermissionError):
                complain(f"You may not use {leaf.filename}; call this as the user that runs the nodes.")
                return NotAllowed.exit_code
            if isinstance(leaf, OSError) and leaf.errno in (errno.EMFILE, errno.ENFILE):
                complain("There are too few file descriptors; allow more, by ulimit -n or the unit's LimitNOFILE=.")
                return INTERNAL
        first = errors[0]
        complain(
            f"This should not happen ({type(first).__name__}: {first}). Run it again with --debug, and report what"
            " that shows."
        )
        return INTERNAL


def leaves(error: BaseException) -> list[BaseException]:
    """The errors of a group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def run_async(function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Run the asynchronous part of a command."""
    import trio

    return trio.run(function, *arguments, restrict_keyboard_interrupt_to_checkpoints=True)


def add_command(app: typer.Typer, panel: str | None, function: Callable[..., Any]) -> None:
    """Make a function a command of its name: it gets a Call, its own options, and every shared one."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

    def run(ctx: typer.Context, **values: Any) -> None:
        shared = {name: values.pop(name) or ctx.obj[name] for name in SHARED}
        raise typer.Exit(Call(**shared).run(function, values))

    _sign(run, own, function)
    app.command(function.__name__, rich_help_panel=panel)(run)


def add_group(
    app: typer.Typer, panel: str, name: str, about: Callable[[], None], functions: Sequence[Callable[..., Any]]
) -> None:
    """Make functions commands of a command: `yanchat NAME FUNCTION`."""
    group = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
    add_shared_options(group, about, {})
    for function in functions:
        add_command(group, None, function)
    app.add_typer(group, name=name, rich_help_panel=panel)


def add_shared_options(app: typer.Typer, about: Callable[[], None], more: Mapping[str, Any]) -> None:
    """Let the shared options stand before the command, too."""

    def remember(ctx: typer.Context, **values: Any) -> None:
        before = ctx.obj or {}
        ctx.obj = {name: value or before.get(name, value) for name, value in values.items()}

    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in more.items()
    ]
    _sign(remember, own, about)
    app.callback()(remember)


def _sign(wrapper: Any, own: list[inspect.Parameter], function: Callable[..., Any]) -> None:
    """Give a wrapper the signature that typer reads."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    shared = [
        inspect.Parameter(
            name, keyword, default=False if name in {"json", "ndjson", "debug"} else None, annotation=kind
        )
        for name, kind in SHARED.items()
    ]
    parameters = [context, *(parameter.replace(kind=keyword) for parameter in own), *shared]
    wrapper.__signature__ = inspect.Signature(parameters)
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    # rich breaks lines itself: each paragraph is one line
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    wrapper.__name__, wrapper.__doc__ = function.__name__, "\n\n".join(part.replace("\n", " ") for part in paragraphs)
