"""What is read from files that others renew while the node runs: keys and certificates."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import structlog

from yanchat.errors import ConfigError

T = TypeVar("T")
Mark = tuple[int, int, int] | None


class Renewed(Generic[T]):
    """Reads once when it is made (ConfigError), and again when a file has changed. What cannot be read changes nothing.

    Asking costs a look at each file's inode.
    """

    def __init__(self, what: str, files: Sequence[str], read: Callable[[], T]) -> None:
        self._what, self._files, self._read = what, files, read
        self._marks = self._look()
        self._value = read()

    def get(self) -> T:
        marks = self._look()
        if marks != self._marks:
            self._marks = marks
            try:
                self._value = self._read()
            except ConfigError as error:
                structlog.get_logger().error(f"{self._what}.not_renewed", error=f"{error} What was read before stays.")
            else:
                structlog.get_logger().info(f"{self._what}.renewed", files=list(self._files))
        return self._value

    def _look(self) -> list[Mark]:
        return [_mark(file) for file in self._files]


def read_bytes(file: str, setting: str) -> bytes:
    """The file that a setting names. Raises ConfigError."""
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise ConfigError(f"{setting}: {file} cannot be read: {error.strerror}.") from None


def warn_of_readers(file: str, setting: str) -> None:
    """Log when everybody on this machine may read a secret."""
    if os.stat(file).st_mode & 0o007:
        structlog.get_logger().warning(
            "secret.readable", setting=setting, file=file, fix=f"chmod 640 {file}: others may read the secret"
        )


def _mark(file: str) -> Mark:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
