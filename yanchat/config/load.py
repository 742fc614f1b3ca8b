"""Where settings come from: defaults < TOML file < environment < options of the call.

Each error names the file and line, the variable or the option, the key, and what is allowed. What is wrong is a
ConfigError; in an option of the call it is a UsageError.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from yanchat.config import Settings
from yanchat.config.check import check
from yanchat.config.librdkafka import refusal_of
from yanchat.config.values import convert, fields_of
from yanchat.errors import ConfigError

SYSTEM_FILE: Final = Path("/etc/yanchat/yanchat.toml")
PREFIX: Final = "YANCHAT_"
OTHER_VARIABLES: Final = frozenset({"YANCHAT_CONFIG", "YANCHAT_DEBUG", "YANCHAT_TOKEN", "YANCHAT_FAILPOINT"})
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
    file: Path | None
    """The one that was read."""


def load(file: Path | None, environment: Mapping[str, str], options: Options) -> Loaded:
    """The settings of this call. `file`: what --config says. Raises ConfigError, UsageError."""
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
            values.setdefault(section, {})[key] = convert(section, key, value, where)
            origins[section, key] = where
    _expand(values, environment.get("CREDENTIALS_DIRECTORY", ""))
    sections = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    settings = Settings(**{name: sections[name](**keys) for name, keys in values.items()})
    check(settings, origins)
    return Loaded(settings, origins, warnings, file)


def state_directory(settings: Settings, environment: Mapping[str, str]) -> Path:
    """Where the nodes of this machine keep their state: the settings, else systemd's directory, else XDG's."""
    given = settings.node.state_dir or environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given).expanduser().absolute()
    home = environment.get("XDG_STATE_HOME", "")
    # the XDG base directory specification: a relative path is ignored
    base = Path(home) if home.startswith("/") else Path("~/.local/state").expanduser()
    return base / "yanchat"


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
            if key == "librdkafka":
                keys[key] = _flat(value)
                if isinstance(value, dict) and (refused := refusal_of(keys[key])):
                    raise ConfigError(f"{lines.of(section, refused[0])}: kafka.librdkafka: {refused[1]}")
            values.setdefault(section, {})[key] = convert(section, key, keys[key], where)
            origins[section, key] = where


def _flat(value: Any) -> Any:
    """A table with `a.b = 1`, which is a table in a table to TOML, by the names with dots that librdkafka knows."""
    if not isinstance(value, dict):
        return value
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        below = _flat(inner)
        flat |= {f"{key}.{name}": leaf for name, leaf in below.items()} if isinstance(below, dict) else {key: below}
    return flat


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
        values.setdefault(section, {})[key] = convert(section, key, text, variable)
        origins[section, key] = variable


def _variables() -> list[str]:
    return [f"{PREFIX}{section}_{key}".upper() for section in Settings.__struct_fields__ for key in fields_of(section)]


def _expand(values: dict[str, dict[str, Any]], credentials: str) -> None:
    for keys in values.values():
        for key, value in keys.items():
            if credentials and key.endswith("_file") and value.startswith(CREDENTIALS):
                keys[key] = str(Path(credentials, value.removeprefix(CREDENTIALS)))


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
