"""Every name that yanchat uses in Redis and Kafka, and a node's slug: the one place where they are spelled."""

from __future__ import annotations

import re
from typing import Final

KEY_PREFIX: Final = "yan_"
TOPIC_PREFIX: Final = "websocket-"
ACK_TOPIC_PREFIX: Final = "netty-ack-"
GROUP_PREFIX: Final = "group"
LONGEST_NODE: Final = 200

_NOT_SLUG = re.compile(r"[^A-Za-z0-9]+")
_SLUG = re.compile(r"(?:[A-Za-z0-9]+-)+[0-9]{1,5}")


def slug(node: str) -> str:
    """The node's address with every run of other characters than letters and digits turned into one `-`.

    >>> slug("192.168.56.1:8084")
    '192-168-56-1-8084'
    """
    return _NOT_SLUG.sub("-", node).strip("-")


def is_slug(text: str) -> bool:
    """Whether an address may have this slug: it ends with a port.

    >>> is_slug("192-168-56-1-8084"), is_slug("orders"), is_slug("orders-v2")
    (True, False, False)
    """
    return _SLUG.fullmatch(text) is not None


def is_node(text: str) -> bool:
    """Whether it may be a node's address: topics are named after it, and Kafka takes 249 characters for one.

    >>> is_node("n1:8084"), is_node("[::1]:8084"), is_node("n1"), is_node("n" * 300 + ":8084")
    (True, True, False, False)
    """
    return len(text) <= LONGEST_NODE and is_slug(slug(text))


def node_key(node: str, prefix: str = KEY_PREFIX) -> str:
    """Redis hash with a time to live: one node's record."""
    return f"{prefix}websocket_server:{node}"


def nodes_key(prefix: str = KEY_PREFIX) -> str:
    """Redis sorted set of all nodes by last heartbeat."""
    return f"{prefix}websocket_servers"


def node_sessions_key(node: str, prefix: str = KEY_PREFIX) -> str:
    """Redis set of the session ids on one node."""
    return f"{prefix}serverclients_{node}"


def user_key(openid: str, prefix: str = KEY_PREFIX) -> str:
    """Redis hash of one user: session id to its entry."""
    return f"{prefix}client_{openid}"


def pending_key(openid: str, prefix: str = KEY_PREFIX) -> str:
    """Redis set of the nodes that hold messages or notices for an absent user."""
    return f"{prefix}pending_{openid}"


def probe_key(prefix: str = KEY_PREFIX) -> str:
    """Redis string that lives for a moment: whether anything can be written."""
    return f"{prefix}probe"


def message_topic(node: str, prefix: str = TOPIC_PREFIX) -> str:
    return prefix + slug(node)


def ack_topic(node: str, prefix: str = ACK_TOPIC_PREFIX) -> str:
    return prefix + slug(node)


def group(node: str, prefix: str = GROUP_PREFIX) -> str:
    return prefix + slug(node)
