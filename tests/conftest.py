"""What holds for all tests: async ones run in trio (pytest-trio), and with `autojump_clock` in virtual time."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["tests.services_plugin"]

settings.register_profile("yanchat", deadline=None)  # a busy machine is no failure
settings.load_profile("yanchat")
