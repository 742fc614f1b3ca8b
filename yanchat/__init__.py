"""yanchat: a WebSocket messaging cluster that never loses an accepted message."""

__version__ = "0.1.0"
