"""From what stands in a file, a variable or an option to the value of a setting, with its unit."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from yanchat.config import Settings
from yanchat.errors import ConfigError, UsageError

_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6}
DURATIONS: Final = 'write a duration as "500ms", "5s", "10m", "2h" or "7d"'
SIZES: Final = 'write a size as "512B", "64KiB", "1MiB" or "2GiB"'
LONGEST: Final = 10_000 * 86_400.0
"""Seconds: what clocks, tables and programs of the admin API can still count with; so are these."""
LARGEST: Final = 1 << 50
"""Bytes."""
MOST: Final = (1 << 31) - 1
"""Of any other number."""
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def fields_of(section: str) -> dict[str, msgspec.structs.FieldInfo]:
    """The keys of one section, empty when there is no such section."""
    for field in msgspec.structs.fields(Settings):
        if field.name == section:
            return {inner.name: inner for inner in msgspec.structs.fields(field.type)}
    return {}


def convert(section: str, key: str, value: Any, where: str) -> Any:
    """The value of a setting. ConfigError, for an option UsageError: it cannot be; says where it stands and why."""
    field = fields_of(section)[key]
    unit = unit_of(field.type)
    try:
        if unit == "duration":
            value = parse_duration(value)
        elif unit == "size":
            value = parse_size(value)
        elif isinstance(value, str) and typing.get_origin(field.type) is tuple:
            value = [part.strip() for part in value.split(",") if part.strip()]
        converted = msgspec.convert(value, field.type, strict=not isinstance(value, str))
        if unit is None and type(converted) in (int, float) and not converted <= MOST:
            raise ValueError(f"it must be at most {MOST}")
        return converted
    except msgspec.ValidationError:
        reason = f"it must be {allowed(field.type)}"
    except ValueError as error:
        reason = str(error)
    shown = "" if isinstance(value, dict) else f" = {value!r}"  # there may be a password among them
    raise wrong_at(where)(f"{where}: {section}.{key}{shown} is not possible: {reason}.") from None


def unit_of(kind: Any) -> str | None:
    """Whether it is a "duration" or a "size"."""
    info = msgspec.inspect.type_info(kind)
    return info.extra.get("unit") if isinstance(info, msgspec.inspect.Metadata) and info.extra else None


def wrong_at(where: str) -> type[ConfigError | UsageError]:
    """The kind of error for what came from there."""
    return UsageError if where.startswith("--") else ConfigError


def allowed(kind: Any) -> str:
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
    number, unit = _number(value, DURATIONS)
    if unit and unit not in _DURATION_UNITS:
        raise ValueError(DURATIONS)
    seconds = number * _DURATION_UNITS[unit or "s"]
    if not seconds <= LONGEST:
        raise ValueError(f"a duration is at most {LONGEST / 86_400:.0f}d")
    return seconds


def parse_option(text: str) -> float:
    """A duration as an option has it, in seconds: there a number without a unit might mean anything."""
    seconds = parse_duration(text)
    if seconds and not text.strip()[-1].isalpha():
        raise ValueError(DURATIONS)
    return seconds


def parse_size(value: Any) -> int:
    """Bytes out of "64KiB", "1MiB" or a number of bytes."""
    number, unit = _number(value, SIZES)
    if unit not in _SIZE_UNITS:
        raise ValueError(SIZES)
    size = number * _SIZE_UNITS[unit]
    if not size <= LARGEST:
        raise ValueError(f"a size is at most {LARGEST >> 30}GiB")
    return int(size)


def _number(value: Any, how: str) -> tuple[float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value), ""
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(how)
    return float(match[1]), match[2]


def takes(kind: Any) -> str:
    """What a setting of that type takes, in a word or two of Markdown."""
    if unit := unit_of(kind):
        return unit
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    if typing.get_origin(kind) is tuple and typing.get_origin(typing.get_args(kind)[0]) is Literal:
        return "list of " + takes(typing.get_args(kind)[0])
    return allowed(kind).removeprefix("a ")


def write(section: str, key: str, value: Any) -> str:
    """A value as it is written in the file.

    >>> write("redelivery", "longest", 300.0), write("limits", "window_bytes", 262144), write("log", "level", "info")
    ('"5m"', '"256KiB"', '"info"')
    """
    unit = unit_of(fields_of(section)[key].type)
    if unit is None:
        return toml(value)
    units: tuple[str, ...] = ("d", "h", "m", "s", "ms") if unit == "duration" else ("GiB", "MiB", "KiB", "B")
    sizes: Mapping[str, float] = _DURATION_UNITS if unit == "duration" else _SIZE_UNITS
    if not value:
        return f'"0{"s" if unit == "duration" else "B"}"'
    for name in units:
        if not value % sizes[name]:
            return f'"{value / sizes[name]:.15g}{name}"'
    return toml(value)


def toml(value: Any) -> str:
    """A value in TOML: a text, a number, true or false, or a list of them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    # JSON's strings are TOML's, but for what JSON leaves as it is
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
