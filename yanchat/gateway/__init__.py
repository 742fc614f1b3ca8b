"""The edge of a node: WebSocket connections as bytes in, bytes out, and the one task that moves the bytes."""
