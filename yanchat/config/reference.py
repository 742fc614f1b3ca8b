"""Every setting with its default and what it does: as a file to fill in, and as docs/configuration.md.

The words are those of yanchat.toml beside this file, which people read as it is. `python -m yanchat.config.reference`
prints the document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final, NamedTuple

from yanchat.config.values import fields_of, takes, write

_SECTION = re.compile(r"\[(?P<name>[a-z.]+)\]\s*(?:# (?P<text>.*))?")
_KEY = re.compile(r"(?P<name>[a-z_]+) = (?P<value>.*?)(?:\s+# (?P<text>.*))?")
_MORE = re.compile(r"\s*# (?P<text>.*)")
_HEAD: Final = """# Configuration

Nothing has to be set: with no file, `yanchat serve` runs a node of the profile `embedded` at 127.0.0.1:8084.

Each setting is taken from the first of these that has it:

1. an option of the call, as `--listen` (`yanchat serve --help`),
2. the environment variable `YANCHAT_<SECTION>_<KEY>`, as `YANCHAT_NODE_LISTEN`; lists are joined by commas,
3. the file: `--config FILE`, else `YANCHAT_CONFIG`, else `/etc/yanchat/yanchat.toml` if it is there,
4. the default below.

Durations are written as `"500ms"`, `"5s"`, `"10m"`, `"2h"` or `"7d"`, sizes as `"512B"`, `"64KiB"` or `"1MiB"`; at most
`"10000d"`, a PiB, and 2147483647 for other numbers. A file
that a setting names may be `"${CREDENTIALS_DIRECTORY}/NAME"`, one of the service manager's credentials. An unknown
section or key, or a value that cannot be, is refused with its line and what is allowed (exit code 78; 2 for an option);
an unknown `YANCHAT_…` variable is warned of. Besides the settings there are three variables: `YANCHAT_CONFIG`,
`YANCHAT_DEBUG` (as `--debug`) and `YANCHAT_TOKEN` (as `--token`).

On SIGHUP a node reads its settings again and takes up what has changed in `[auth]`, `[limits]`, `[log]`, `[origins]`,
`[proxy]` and `[tls]`, and `node.drain`, `node.insecure` and `admin.token_file`; a warning names what needs a restart.

    yanchat config init     # write a file with every setting, commented out
    yanchat config show     # the settings that a call has, and with --origin where each comes from
    yanchat config check    # whether they can be, with all files that they name

This page is made from the settings: `python -m yanchat.config.reference > docs/configuration.md`.
"""


class Setting(NamedTuple):
    """One line of the file."""

    section: str
    key: str
    default: str
    """As it is written in the file."""
    text: str


class Section(NamedTuple):
    name: str
    text: str
    settings: list[Setting]


def commented() -> str:
    """The file that has every setting with its default."""
    return (files("yanchat.config") / "yanchat.toml").read_text(encoding="utf-8")


def sections() -> list[Section]:
    """What stands in that file."""
    found: list[Section] = []
    for line in commented().splitlines():
        if match := _SECTION.fullmatch(line):
            found.append(Section(match["name"], match["text"] or "", []))
        elif found and (match := _KEY.fullmatch(line)):
            found[-1].settings.append(Setting(found[-1].name, match["name"], match["value"], match["text"] or ""))
        elif found and found[-1].settings and (match := _MORE.fullmatch(line)):
            last = found[-1].settings.pop()
            found[-1].settings.append(last._replace(text=f"{last.text} {match['text']}"))
    return found


def file_with(values: Mapping[tuple[str, str], Any]) -> str:
    """The file with everything commented out but these values."""
    lines, section = [], ""
    for line in commented().splitlines():
        if match := _SECTION.fullmatch(line):
            section = match["name"]
        elif section and (match := _KEY.fullmatch(line)):
            key = (section, match["name"])
            text = f"  # {match['text']}" if match["text"] else ""
            line = f"{match['name']} = {write(*key, values[key])}{text}" if key in values else f"#{line}"  # noqa: PLW2901
        lines.append(line)
    return "\n".join(lines) + "\n"


def document() -> str:
    """docs/configuration.md."""
    parts = [_HEAD]
    for section in sections():
        parts.append(f"## [{section.name}]\n")
        if section.text:
            parts.append(f"{section.text[0].upper()}{section.text[1:]}.\n")
        if section.settings:
            rows = ["| key | takes | default | |", "|---|---|---|---|", *map(_row, section.settings)]
            parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(setting: Setting) -> str:
    kind = takes(fields_of(setting.section)[setting.key].type)
    cells = (f"`{setting.key}`", kind, f"`{setting.default}`", setting.text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201
