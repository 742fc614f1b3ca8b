"""The seed's own frames, and how a frame of ours is held against them."""

from __future__ import annotations

import json
from pathlib import Path

SEED = json.loads((Path(__file__).parent / "seed_frames.json").read_text())


def shape(value: object) -> object:
    """Keys, types and nesting of a frame."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value)


def holds(frame: object, seed: object) -> None:
    """Assert that a frame has every key of the seed's, of the same type and at the same place."""
    if isinstance(seed, dict):
        assert isinstance(frame, dict)
        assert [key for key in frame if key in seed] == list(seed)
        for key, inner in seed.items():
            holds(frame[key], inner)
    else:
        assert shape(frame) == shape(seed)
