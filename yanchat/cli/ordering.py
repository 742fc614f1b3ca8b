"""Where a node takes an order: at its socket, if it is one of this machine, else at its admin address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from yanchat.errors import NotFound, Unreachable, YanchatError
from yanchat.names import slug

if TYPE_CHECKING:
    from yanchat.admin.client import Remote
    from yanchat.cli.nodes import Cluster
    from yanchat.model import NodeRecord

TOKEN_FILE = Annotated[
    Path | None,
    typer.Option(
        "--admin-token-file",
        metavar="FILE",
        help="For nodes of other machines, else admin.token_file of the settings.",
    ),
]


class Way(NamedTuple):
    """A node, and where it is asked."""

    node: str
    at: Path | Remote


async def ways_to(cluster: Cluster, token: str, node: str | None) -> list[Way]:
    """All nodes that take orders, those of this machine first, or the one of that name.

    NotFound: there is no such node. Unreachable: it, or any, cannot be asked; says what to do. What is wrong with the
    registry, when none of this machine is meant.
    """
    from yanchat.admin.client import Remote

    here = await cluster.nodes_here()
    live: list[NodeRecord] | None = None
    unknown: YanchatError | None = None
    try:
        live = [record for record in await cluster.records() if record.state != "dead"]
    except YanchatError as error:
        unknown = error
    slugs = {one.directory.name for one in here}
    elsewhere = [record for record in live or () if slug(record.node) not in slugs]
    if node is not None:
        for one in here:
            if one.directory.name == slug(node):
                return [Way(node, one.directory / "admin.sock")]
        if unknown is not None:
            raise unknown
        return [_remote(node, elsewhere, [one.name for one in here], token, cluster.state)]
    known = slugs if live is None else {slug(record.node) for record in live}
    sockets = [(one.name, one.directory / "admin.sock") for one in here if one.directory.name in known]
    ways = [Way(name, file) for name, file in sockets if file.exists()]
    ways += [Way(record.node, Remote(record.admin, token)) for record in elsewhere if record.admin and token]
    if not ways:
        raise unknown or Unreachable("No node runs that could be asked from here; start one with `yanchat serve`.")
    return ways


def _remote(node: str, elsewhere: list[NodeRecord], here: list[str], token: str, state: Path) -> Way:
    from yanchat.admin.client import Remote

    record = next((record for record in elsewhere if record.node == node), None)
    if record is None:
        names = ", ".join([*here, *(record.node for record in elsewhere)]) or "none"
        raise NotFound(f"There is no node {node}; there are: {names}.")
    if not record.admin:
        where = f"has no admin address, and its socket is not in {state}"
        raise Unreachable(f"{node} {where}: set admin.listen there, or call this where it is.")
    if not token:
        raise Unreachable(f"{node} answers at {record.admin} only to who has the token: give --admin-token-file.")
    return Way(node, Remote(record.admin, token))
