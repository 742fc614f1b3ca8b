"""The commented example of a configuration says what is true: every setting is there, with its default."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from yanchat.config import Settings
from yanchat.config.load import load
from yanchat.config.values import fields_of

EXAMPLE = Path(__file__).parents[2] / "configs" / "yanchat.toml"


def test_the_example_is_the_defaults() -> None:
    """Whoever copies it whole changes nothing."""
    loaded = load(EXAMPLE, {}, {})
    assert loaded.settings == Settings()
    assert loaded.warnings == []


def test_the_example_has_every_setting() -> None:
    """A new setting has to be explained there."""
    document = tomllib.loads(EXAMPLE.read_text())
    sections = [field.name for field in msgspec.structs.fields(Settings)]
    assert list(document) == sections
    assert {name: list(keys) for name, keys in document.items()} == {name: list(fields_of(name)) for name in sections}
