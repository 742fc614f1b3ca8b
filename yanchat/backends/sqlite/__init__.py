"""SQLite: the message table of both profiles, and the registry and bus of nodes that share a directory."""
