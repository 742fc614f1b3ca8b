"""What one node counts, as its `/metrics` tells; the names are those of admin/metrics.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from yanchat.admin.client import Remote

Labels = tuple[tuple[str, str], ...]
WITHIN: Final = 3.0
"""Seconds; a node itself takes up to two for what it has to ask of others."""


class Metrics:
    """One answer of one node."""

    def __init__(self, values: Mapping[tuple[str, Labels], float]) -> None:
        self._values = values

    def value(self, name: str, **labels: str) -> float | None:
        """The number of that name without its prefix; None when the node does not tell it."""
        return self._values.get((f"yanchat_{name}", tuple(sorted(labels.items()))))

    def total(self, name: str) -> float | None:
        """The sum over all labels."""
        found = [value for (key, _), value in self._values.items() if key == f"yanchat_{name}"]
        return sum(found) if found else None

    def process(self, name: str) -> float | None:
        """What is known of any process."""
        return self._values.get((f"process_{name}", ()))

    def buckets(self, name: str) -> dict[float, float]:
        """Of a histogram: how many values lay up to each bound."""
        key = f"yanchat_{name}_bucket"
        return {float(dict(labels)["le"]): value for (found, labels), value in self._values.items() if found == key}


async def read_metrics(at: Path | Remote) -> Metrics:
    """Ask a running node. Raises what ask_node raises."""
    from prometheus_client.parser import text_string_to_metric_families

    from yanchat.admin.client import ask_node, not_understood

    text = await ask_node(at, "GET", "/metrics", within=WITHIN)
    if not isinstance(text, str):
        raise not_understood("it is JSON")
    try:
        return Metrics(
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )
    except (ValueError, AttributeError, IndexError):  # what its parser says of other texts
        raise not_understood("those are no metrics") from None
