"""Three nodes are restarted one after the other under load: nothing is lost, and nobody is refused or asked twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import trio

from tests.running import RunningNode
from tests.system.activated import activated, needs_tools
from tests.system.swarm import Swarm, User
from yanchat.cli.nodes import Cluster
from yanchat.client import REASONS, Client, stay_connected
from yanchat.config import Settings

NAMES = [f"user{number}" for number in range(24)]
RESTARTS = f"The node has closed the connection: {REASONS[1012]}."
Find = Callable[[], Awaitable[Sequence[str]]]


class Resident(User):
    """A user with the client library that the command line has; remembers why he lost what, and each attempt."""

    def __init__(self, swarm: Swarm, name: str, find: Find) -> None:
        super().__init__(swarm, name)
        self._find, self.asked, self.lost, self.nodes = find, 0, list[str](), list[str]()

    async def live(self) -> None:
        await stay_connected(self._ask, self.name, self._stay_here, lost=self.lost.append)

    async def _ask(self) -> Sequence[str]:
        self.asked += 1
        return await self._find()

    async def _stay_here(self, client: Client) -> None:
        self.client = client
        self.nodes.append(client.hello.node)
        try:
            await self._converse(client)
        finally:
            self.client = None
            await self._take_the_rest(client)


async def roll(swarm: Swarm, restarts: Sequence[Callable[[], object]]) -> None:
    """Talk all the while, and restart one after the other; then everything is settled."""
    async with trio.open_nursery() as nursery:
        for user in swarm.users.values():
            nursery.start_soon(user.live)
        await swarm.connected()
        enough = trio.Event()
        async with trio.open_nursery() as talking:
            talking.start_soon(talk_until, enough, swarm)
            for restart in restarts:
                await trio.sleep(0.3)
                await trio.to_thread.run_sync(restart)
                await swarm.connected()
            await trio.sleep(0.3)
            enough.set()
        await swarm.settled()
        nursery.cancel_scope.cancel()
    swarm.check()


async def talk_until(enough: trio.Event, swarm: Swarm) -> None:
    """Not cancelled: a message that is just being sent is sent to its end."""
    while not enough.is_set():
        await swarm.talk(20, 0.005)


async def test_a_rolling_restart_loses_nothing_and_costs_a_client_one_reconnect(tmp_path: Path) -> None:
    """Each time that his node stops a user goes once to another one, which takes him at once."""
    state = tmp_path / "state"
    find = Cluster(Settings(), state).finder(None)
    with ExitStack() as stack:
        nodes = [stack.enter_context(RunningNode(state)) for _ in range(3)]
        swarm = Swarm(lambda: [], NAMES, seed=1)
        swarm.users = {name: Resident(swarm, name, find) for name in NAMES}

        def restart(node: RunningNode) -> Callable[[], object]:
            def do() -> None:
                assert node.terminate() == 0
                node.start()

            return do

        await roll(swarm, [restart(node) for node in nodes])
    for user in swarm.users.values():
        assert isinstance(user, Resident)
        assert set(user.lost) <= {RESTARTS}
        assert user.asked == len(user.nodes) == len(user.lost) + 1, "no attempt was in vain"
        assert all(left != came for left, came in zip(user.nodes, user.nodes[1:], strict=False))
    assert not [user.refused for user in swarm.users.values() if user.refused]


@needs_tools
async def test_where_sockets_outlive_the_nodes_everybody_reconnects_once_in_all(tmp_path: Path) -> None:
    """Who comes back to his node's address while it restarts waits there, and is served by its successor."""
    with ExitStack() as stack:
        sites = [stack.enter_context(activated(tmp_path / "state", tmp_path / f"log{n}")) for n in range(3)]

        def to(url: str) -> Find:
            async def find() -> Sequence[str]:
                return [url]

            return find

        swarm = Swarm(lambda: [], NAMES, seed=2)
        swarm.users = {name: Resident(swarm, name, to(sites[number % 3].url)) for number, name in enumerate(NAMES)}

        def restart(number: int) -> Callable[[], object]:
            def do() -> None:
                sites[number].ready()  # of the life that ends now
                sites[number].terminate_node()
                sites[number].ready()

            return do

        await roll(swarm, [restart(number) for number in range(3)])
    for user in swarm.users.values():
        assert isinstance(user, Resident)
        assert user.lost == [RESTARTS]
        assert user.asked == len(user.nodes) == 2
