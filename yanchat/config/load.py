"""Where settings come from: defaults < TOML file < environment < options of the call. What is wrong is a ConfigError.

Each error names the file and line, the variable or the option, the key, and what is allowed.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from yanchat.config import BUS_RETENTION, Settings
from yanchat.errors import ConfigError

SYSTEM_FILE: Final = Path("/etc/yanchat/yanchat.toml")
PREFIX: Final = "YANCHAT_"
OTHER_VARIABLES: Final = frozenset({"YANCHAT_CONFIG", "YANCHAT_DEBUG", "YANCHAT_TOKEN", "YANCHAT_FAILPOINT"})
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6}
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\s\[\]]+):\d{1,5}")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^/?#\s,A-Z]+")
CREDENTIALS: Final = "${CREDENTIALS_DIRECTORY}/"
"""What the path of a file may begin with: the directory of the service manager's credentials (systemd.exec(5)). Where
the variable is not set, as in a person's shell, it stays as it is, and whoever needs the file says so."""

_FLAGS: Final = {
    ("redis", "url"): "--redis",
    ("kafka", "brokers"): "--kafka",
    ("log", "format"): "--log-format",
    ("log", "level"): "--log-level",
}
"""The options that are not called as their key is."""

Options = Mapping[tuple[str, str], Any]
"""(section, key) → value of an option of the call; None when it was not given."""


class Loaded(NamedTuple):
    settings: Settings
    origins: dict[tuple[str, str], str]
    """Where each value that is no default came from."""
    warnings: list[str]


def load(file: Path | None, environment: Mapping[str, str], options: Options) -> Loaded:
    """The settings of this call. `file`: what --config says. Raises ConfigError."""
    file = file or (Path(environment["YANCHAT_CONFIG"]) if environment.get("YANCHAT_CONFIG") else None)
    if file is None and SYSTEM_FILE.exists():
        file = SYSTEM_FILE
    values: dict[str, dict[str, Any]] = {}
    origins: dict[tuple[str, str], str] = {}
    warnings: list[str] = []
    if file is not None:
        _from_file(file, values, origins)
    _from_environment(environment, values, origins, warnings)
    for (section, key), value in options.items():
        if value is not None:
            where = _FLAGS.get((section, key), f"--{key.replace('_', '-')}")
            values.setdefault(section, {})[key] = _convert(section, key, value, where)
            origins[section, key] = where
    _expand(values, environment.get("CREDENTIALS_DIRECTORY", ""))
    sections = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    settings = Settings(**{name: sections[name](**keys) for name, keys in values.items()})
    _check(settings, origins)
    return Loaded(settings, origins, warnings)


def state_directory(settings: Settings, environment: Mapping[str, str]) -> Path:
    """Where the nodes of this machine keep their state: the settings, else systemd's directory, else XDG's."""
    given = settings.node.state_dir or environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given).expanduser().absolute()
    home = environment.get("XDG_STATE_HOME", "")
    # the XDG base directory specification: a relative path is ignored
    base = Path(home) if home.startswith("/") else Path("~/.local/state").expanduser()
    return base / "yanchat"


def fields_of(section: str) -> dict[str, msgspec.structs.FieldInfo]:
    """The keys of one section, empty when there is no such section."""
    for field in msgspec.structs.fields(Settings):
        if field.name == section:
            return {inner.name: inner for inner in msgspec.structs.fields(field.type)}
    return {}


def _from_file(file: Path, values: dict[str, dict[str, Any]], origins: dict[tuple[str, str], str]) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; give another --config.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} cannot be read: it is not UTF-8; give another --config.") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: this is not TOML: {error}.") from None
    lines = _Lines(file, text)
    for section, keys in document.items():
        known = fields_of(section)
        if known and not isinstance(keys, dict):
            raise ConfigError(f"{lines.of(section, None)}: {section} is a section; begin it with a line [{section}].")
        if not known:
            raise ConfigError(
                _unknown(lines.of(section, None), f"section [{section}]", section, Settings.__struct_fields__)
            )
        for key, value in keys.items():
            where = lines.of(section, key)
            if key not in known:
                raise ConfigError(_unknown(where, f"key {key!r} in [{section}]", key, known))
            values.setdefault(section, {})[key] = _convert(section, key, value, where)
            origins[section, key] = where


def _from_environment(
    environment: Mapping[str, str],
    values: dict[str, dict[str, Any]],
    origins: dict[tuple[str, str], str],
    warnings: list[str],
) -> None:
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
            continue
        section, _, key = variable.removeprefix(PREFIX).lower().partition("_")
        known = fields_of(section)
        if key not in known or key == "librdkafka":
            near = difflib.get_close_matches(variable, _variables(), 1, 0.8)
            hint = f"; did you mean {near[0]}?" if near else "."
            warnings.append(f"{variable} is not a setting of yanchat and is ignored{hint}")
            continue
        values.setdefault(section, {})[key] = _convert(section, key, text, variable)
        origins[section, key] = variable


def _variables() -> list[str]:
    return [f"{PREFIX}{section}_{key}".upper() for section in Settings.__struct_fields__ for key in fields_of(section)]


def _expand(values: dict[str, dict[str, Any]], credentials: str) -> None:
    for keys in values.values():
        for key, value in keys.items():
            if credentials and key.endswith("_file") and value.startswith(CREDENTIALS):
                keys[key] = str(Path(credentials, value.removeprefix(CREDENTIALS)))


def _convert(section: str, key: str, value: Any, where: str) -> Any:
    field = fields_of(section)[key]
    info = msgspec.inspect.type_info(field.type)
    unit = info.extra.get("unit") if isinstance(info, msgspec.inspect.Metadata) and info.extra else None
    try:
        if unit == "duration":
            value = parse_duration(value)
        elif unit == "size":
            value = parse_size(value)
        elif isinstance(value, str) and typing.get_origin(field.type) is tuple:
            value = [part.strip() for part in value.split(",") if part.strip()]
        return msgspec.convert(value, field.type, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        reason = f"it must be {_allowed(field.type)}"
    except ValueError as error:
        reason = str(error)
    shown = "" if isinstance(value, dict) else f" = {value!r}"  # there may be a password among them
    raise ConfigError(f"{where}: {section}.{key}{shown} is not possible: {reason}.") from None


def _allowed(kind: Any) -> str:
    """The values of a setting's type, for people."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(kind))
    if typing.get_origin(kind) is dict:
        return "a table of its own in the file, of texts, numbers, true and false"
    if typing.get_origin(kind) is tuple and typing.get_origin(typing.get_args(kind)[0]) is Literal:
        return "a list out of " + ", ".join(repr(value) for value in typing.get_args(typing.get_args(kind)[0]))
    bare, *metas = typing.get_args(kind) if typing.get_origin(kind) is typing.Annotated else (kind,)
    least = next((meta.ge for meta in metas if meta.ge is not None), None)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return words.get(bare, "a list of texts") + ("" if least is None else f" of at least {least}")


def parse_duration(value: Any) -> float:
    """Seconds out of "5s", "10m", "7d" or a number of seconds."""
    number, unit = _number(value)
    if unit and unit not in _DURATION_UNITS:
        raise ValueError('write a duration as "500ms", "5s", "10m", "2h" or "7d"')
    return number * _DURATION_UNITS[unit or "s"]


def parse_size(value: Any) -> int:
    """Bytes out of "64KiB", "1MiB" or a number of bytes."""
    number, unit = _number(value)
    if unit not in _SIZE_UNITS:
        raise ValueError('write a size as "512B", "64KiB", "1MiB" or "2GiB"')
    return int(number * _SIZE_UNITS[unit])


def _number(value: Any) -> tuple[float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value), ""
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("write a number with its unit")
    return float(match[1]), match[2]


def _unknown(where: str, what: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
    return f"{where}: there is no {what}; {hint}"


class _Lines:
    """Finds the line of a key, for people: TOML parsers do not tell."""

    def __init__(self, file: Path, text: str) -> None:
        self._file, self._lines = file, text.splitlines()

    def of(self, section: str, key: str | None) -> str:
        inside = False
        for number, line in enumerate(self._lines, 1):
            if match := re.match(r"\s*\[\s*\"?([^\]\"]*?)\"?\s*\]", line):
                inside = match[1].split(".")[0].strip() == section
                if inside and (key is None or match[1].replace(" ", "") == f"{section}.{key}"):
                    return f"{self._file}:{number}"
            elif (key is not None and inside and re.match(rf"\s*\"?{re.escape(key)}\"?\s*[=.]", line)) or (
                not inside and re.match(rf"\s*{re.escape(section)}\s*[=.]", line)
            ):
                return f"{self._file}:{number}"
        return str(self._file)


def _check(settings: Settings, origins: Mapping[tuple[str, str], str]) -> None:
    """What one value alone cannot tell."""

    def wrong(section: str, key: str, sentence: str) -> ConfigError:
        return ConfigError(f"{origins.get((section, key), 'defaults')}: {section}.{key} {sentence}")

    redelivery, limits = settings.redelivery, settings.limits
    if redelivery.first <= 0:
        raise wrong("redelivery", "first", "must be more than 0s.")
    if redelivery.longest < redelivery.first:
        raise wrong("redelivery", "longest", "must not be less than redelivery.first.")
    cluster = settings.node.profile == "cluster"
    if redelivery.keep <= redelivery.lifetime + (settings.kafka.retention if cluster else BUS_RETENTION):
        key = "keep" if ("redelivery", "keep") in origins else "lifetime"
        retention = "kafka.retention" if cluster else "7d, the bus's retention"
        raise wrong("redelivery", key, f"is not possible: keep must be more than lifetime + {retention}.")
    if limits.message_size < 1 or limits.message_size > 16 << 20:
        raise wrong("limits", "message_size", "must be 1B to 16MiB.")
    if limits.outgoing_buffer < limits.message_size:
        raise wrong("limits", "outgoing_buffer", "must not be less than limits.message_size.")
    if limits.ping <= 0 or limits.idle <= limits.ping:
        raise wrong("limits", "idle", "must be more than limits.ping, and that more than 0s.")
    for key in ("listen", "advertise"):
        address = getattr(settings.node, key)
        if (address or key == "listen") and not _HOST_PORT.fullmatch(address):
            raise wrong("node", key, f"= {address!r} is not HOST:PORT, as 127.0.0.1:8084 is.")
    _check_security(settings, wrong)
    try:
        _zone(settings.node.time_zone)
    except (KeyError, ValueError):
        raise wrong("node", "time_zone", "is not the name of a time zone, as Asia/Shanghai or UTC are.") from None


def _check_security(settings: Settings, wrong: Callable[[str, str, str], ConfigError]) -> None:
    """Tokens, TLS, origins and proxies. What the files hold is looked at by whoever opens them."""
    auth, tls = settings.auth, settings.tls
    if auth.mode == "jwt":
        if not auth.algorithms:
            raise wrong("auth", "algorithms", "is empty; name those that tokens may have, as HS256.")
        if bool(auth.key_file) == bool(auth.jwks_file):
            raise wrong("auth", "mode", "= 'jwt' needs keys: set either auth.key_file or auth.jwks_file.")
    if bool(tls.cert_file) != bool(tls.key_file):
        given, missing = ("cert_file", "key_file") if tls.cert_file else ("key_file", "cert_file")
        raise wrong("tls", given, f"is not enough; set tls.{missing}, too.")
    for origin in settings.origins.allow:
        if not _ORIGIN.fullmatch(origin):
            raise wrong(
                "origins",
                "allow",
                f"has {origin!r}; write origins in lower case and without a path, as https://chat.example.org.",
            )
    for network in settings.proxy.trusted:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise wrong("proxy", "trusted", f"has {network!r}; write addresses and networks as 10.0.0.0/8.") from None


def _zone(name: str) -> None:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - most calls name no zone

    if name != "UTC":
        ZoneInfo(name)
