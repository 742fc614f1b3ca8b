"""How a node of a test dies for good, as far as anybody can tell, without waiting for its lease."""

from __future__ import annotations

import apsw

from tests.running import RunningNode


def forget_lease(node: RunningNode) -> None:
    """Let the lease of a node that beats no more be over, in the registry of nodes that share a directory."""
    with apsw.Connection(str(node.state / "cluster.db")) as connection:
        connection.set_busy_timeout(10_000)
        connection.execute("UPDATE nodes SET expires = 0 WHERE node = ?", (node.node,))
    connection.close()


def die(node: RunningNode) -> None:
    """kill -9, and its lease is over."""
    node.kill()
    forget_lease(node)
