"""The exception tree: every error that yanchat raises on purpose, with the exit code that the command line gives it.

YanchatError                   1
├── UsageError                 2    the call is wrong
├── NotFound                   3    there is no such thing
├── Unreachable                4    a node or service does not answer
│   ├── RegistryUnavailable
│   ├── BusUnavailable
│   └── AddressTaken                the node's address or directory is held by another
├── NotAllowed                 5
├── Unhealthy                  10
├── ConfigError                78   a setting is wrong; says which and where
├── StoreUnavailable           1    the message table cannot take anything now (a full disk, a broken file)
└── Refused                    1    a client's frame or login is refused; carries the wire's status

The text of each is one sentence that says what is wrong and what to do.
"""

from __future__ import annotations


class YanchatError(Exception):
    """Base of all errors that yanchat raises on purpose."""

    exit_code = 1


class UsageError(YanchatError):
    exit_code = 2


class NotFound(YanchatError):
    exit_code = 3


class Unreachable(YanchatError):
    exit_code = 4


class RegistryUnavailable(Unreachable):
    """The registry cannot be reached now; the call had no effect or an unknown one, and may be repeated."""


class BusUnavailable(Unreachable):
    """The bus cannot be reached now; records may or may not have been stored, and may be published again."""


class AddressTaken(Unreachable):
    """Another node holds this address or this directory."""


class NotAllowed(YanchatError):
    exit_code = 5


class Unhealthy(YanchatError):
    exit_code = 10


class ConfigError(YanchatError):
    exit_code = 78


class StoreUnavailable(YanchatError):
    """The message table could not take it: nothing of the call was stored."""


class Refused(YanchatError):
    """A client's frame or login is refused.

    `status` is the wire's (400, 401, 403, 404, 413, 429, 503), `retry_after` seconds when waiting helps.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after
