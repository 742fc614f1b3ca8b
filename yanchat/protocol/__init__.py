"""The rules: wire frames, one client's conversation, records between nodes, ids, retries.

Synchronous and pure: no trio, no clock, no driver, no socket. Wire names live here and in `names.py` only.
"""
