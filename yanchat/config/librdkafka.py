"""The settings of librdkafka that carry our promises, and so cannot be set; each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_ACCEPTED = "a record counts as stored only when all in-sync replicas have it"
_KNOWN_AGAIN = (
    "records that come twice are known by their message id, and it costs a quarter of a node's processor time"
)
_AFTER_US = "a record is done only after our own commit"
REFUSED: Final = {
    "acks": _ACCEPTED,
    "request.required.acks": _ACCEPTED,
    "enable.idempotence": _KNOWN_AGAIN,
    "transactional.id": _KNOWN_AGAIN,
    "delivery.report.only.error": "a node has to know what has been stored",
    "enable.auto.offset.store": _AFTER_US,
    "enable.auto.commit": _AFTER_US,
    "auto.commit.enable": _AFTER_US,
    "auto.offset.reset": "a new topic is read from its beginning",
    "group.id": "it is kafka.group_prefix and the node's name",
    "allow.auto.create.topics": "topics are made with the settings in [kafka]",
    "bootstrap.servers": "it is kafka.brokers",
    "metadata.broker.list": "it is kafka.brokers",
    "test.mock.num.brokers": "a broker in memory loses everything",
}


def refusal_of(keys: Iterable[str]) -> tuple[str, str] | None:
    """The first of the keys that cannot be set, and the sentence that says why."""
    for key in keys:
        if key in REFUSED:
            return key, f"{key} cannot be set: {REFUSED[key]}; take it out."
    return None
