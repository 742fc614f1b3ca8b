"""All ports in process: several nodes in one trio loop, also in virtual time, with the faults that a test asks for.

One `MemoryRegistry` and one `MemoryBus` for the cluster, of which each node gets a view, and a `MemoryStore` for each
node. No thread, no socket, no chance: the same calls give the same answers.
"""

from yanchat.backends.memory.bus import BusView, MemoryBus
from yanchat.backends.memory.registry import MemoryRegistry, RegistryView
from yanchat.backends.memory.store import MemoryStore

__all__ = ["BusView", "MemoryBus", "MemoryRegistry", "MemoryStore", "RegistryView"]
