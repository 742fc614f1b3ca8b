"""yanchat: a WebSocket messaging cluster that never loses an accepted message."""

from importlib.util import find_spec
from typing import Final, Literal

__version__ = "0.1.0"
COMPILED: Final = "yanchat.node.hub"
"""One of the modules that pyproject.toml has mypyc compile, where a build is asked to."""


def build() -> Literal["compiled", "python"]:
    """Whether what runs for every message is machine code in this build (docs/operating.md). Both do the same."""
    spec = find_spec(COMPILED)
    return "python" if spec is None or str(spec.origin).endswith(".py") else "compiled"
