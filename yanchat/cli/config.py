"""`yanchat config`: write a file of settings, show those that a call has, check them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from yanchat.cli.call import Call, flag
from yanchat.cli.render import note, warn
from yanchat.errors import ConfigError, NotAllowed, UsageError, YanchatError

if TYPE_CHECKING:
    from yanchat.config import Settings
    from yanchat.config.load import Loaded

HIDDEN: Final = "***"
_PASSWORD = re.compile(r"(?<=://)([^:/]*:).*(?=@)|(password=)[^&#]*", re.IGNORECASE)
"""In a URL: up to its last @, as whoever connects reads it, or among the options behind it."""
_SECRET = re.compile(r"password|secret|token|jaas|\.pem$|credential", re.IGNORECASE)
DEFAULT: Final = "default"
INIT_FILE: Final = typer.Argument(
    metavar="[FILE]",
    show_default=False,
    help="Else what --config or YANCHAT_CONFIG says, else the system's; - is stdout.",
)


def about() -> None:
    """Write, show and check settings.

    They come from options, else YANCHAT_<SECTION>_<KEY> variables, else the file, else their defaults.
    """


def init(call: Call, file: Annotated[str | None, INIT_FILE] = None) -> None:
    """Write a file with every setting, its default and what it does, commented out.

    What is given with the call is set in it: `yanchat config init --profile cluster --redis redis://redis:6379/0`. A
    file that is there is never changed.
    """
    from yanchat.config.load import SYSTEM_FILE, load
    from yanchat.config.reference import file_with

    given = load(Path(os.devnull), {}, call.options)
    values = {(section, key): getattr(getattr(given.settings, section), key) for section, key in given.origins}
    if _PASSWORD.search(given.settings.redis.url):
        raise UsageError("A password is not written into the file; put it into one of its own, redis.password_file.")
    text = file_with(values)
    if file == "-":
        call.out.raw(text.removesuffix("\n"))
        return
    path = Path(file or call.config or os.environ.get("YANCHAT_CONFIG") or SYSTEM_FILE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as made:
            made.write(text)
    except FileExistsError:
        raise YanchatError(f"{path} is there already and stays as it is; name another FILE, or - for stdout.") from None
    except PermissionError:
        raise NotAllowed(f"You may not write {path}; call this as root, or name another FILE.") from None
    except OSError as error:
        raise YanchatError(f"{path} cannot be written: {error.strerror}; name another FILE.") from None
    call.out.document({"file": str(path)}, f"Written: {path}")
    if path != SYSTEM_FILE:
        note(f"Name it in each call: --config {path}, or YANCHAT_CONFIG={path}.")


def show(
    call: Call, origin: Annotated[bool, flag("--origin", "Say as well where each one comes from.")] = False
) -> None:
    """Show the settings that a call here has, as TOML. Passwords are never shown."""
    from yanchat.config.load import state_directory

    loaded = call.load()
    _warn_of(loaded)
    if call.out.form != "person":
        call.out.table((), _rows(loaded))
        return
    section = ""
    for row in _rows(loaded):
        before, (section, _, key) = section, row["key"].rpartition(".")
        if row["key"].startswith("kafka.librdkafka."):
            section, key = "kafka.librdkafka", f'"{row["key"].removeprefix("kafka.librdkafka.")}"'
        if section != before:
            call.out.line(f"{chr(10) if before else ''}[{section}]", "bold")
        line = f"{key} = {row['text']}"
        call.out.line(f"{line:<40}  # {row['origin']}" if origin else line)
    note(f"The state of nodes here is in {state_directory(loaded.settings, os.environ)}.")


def check(
    call: Call,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", show_default=False, help="Else --config.")] = None,
) -> int:
    """Say whether a node could run with these settings, and look at every file that they name.

    Ends with 78 when it could not. Nothing is connected to: whether Redis and Kafka are well says `yanchat doctor`.
    """
    from yanchat.cli.checks.files import certificates, secrets

    if file is not None and call.config is not None:
        raise UsageError("Name one file to check, not two.")
    loaded = call.load(file=file)
    _warn_of(loaded)
    _open_all(loaded.settings)
    found = [one for one in (*secrets(loaded.settings), *certificates(loaded.settings)) if one.status != "ok"]
    for one in found:
        if one.status == "fail":
            raise ConfigError(f"{one.detail}; {one.fix}.")
        warn(f"{one.detail}; {one.fix}.")
    warnings = [*loaded.warnings, *(one.detail for one in found)]
    where = str(loaded.file) if loaded.file else None
    call.out.document(
        {"file": where, "ok": True, "warnings": warnings},
        f"{where} is fine." if where else "There is no file, and the settings are fine.",
    )
    return 0


def _open_all(settings: Settings) -> None:
    """What a node does with them before it connects to anything. ConfigError says what is wrong."""
    import time

    from yanchat.cli.nodes import hush

    hush()
    if settings.node.profile == "cluster":
        from confluent_kafka.admin import AdminClient

        from yanchat.backends.kafka.clients import admin_config, make
        from yanchat.backends.redis.servers import connector

        connector(settings.redis)
        make(AdminClient, {**admin_config(settings.kafka, "yanchat-config"), "bootstrap.servers": ""})
    if settings.admin.listen:
        from yanchat.admin.tcp import read_token

        read_token(settings.admin)
    from yanchat.gateway.auth import open_authenticator
    from yanchat.gateway.tls import open_tls

    open_authenticator(settings.auth, lambda: time.time_ns() // 1_000_000)
    open_tls(settings.tls)


def _warn_of(loaded: Loaded) -> None:
    for warning in loaded.warnings:
        warn(warning)


def _rows(loaded: Loaded) -> list[dict[str, Any]]:
    """Every setting; `value` in seconds and bytes, `text` as it is written."""
    from yanchat.config import Settings
    from yanchat.config.values import fields_of, toml, write

    rows: list[dict[str, Any]] = []
    for section in Settings.__struct_fields__:
        for key in fields_of(section):
            value = getattr(getattr(loaded.settings, section), key)
            where = loaded.origins.get((section, key), DEFAULT)
            if key == "librdkafka":
                for name, one in value.items():
                    shown = HIDDEN if _SECRET.search(name) else one
                    rows.append(
                        {"key": f"{section}.{key}.{name}", "value": shown, "text": toml(shown), "origin": where}
                    )
                continue
            if (section, key) == ("redis", "url"):
                value = _PASSWORD.sub(rf"\1\2{HIDDEN}", value)
            rows.append(
                {"key": f"{section}.{key}", "value": value, "text": write(section, key, value), "origin": where}
            )
    return rows
