"""The Lua scripts: what must be compared and changed in one step. Each names one key, so a Redis Cluster takes it."""

from __future__ import annotations

from typing import Final

from yanchat.backends.redis.connection import Command

_NOW: Final = """
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
"""
_HASH: Final = """
-- What somebody else has written under a user's key is no hash, perhaps: nothing is done.
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind ~= 'hash' and kind ~= 'none' then return 0 end
"""

JOIN: Final = """
-- KEYS[1] a node's hash; ARGV store, time to live (ms), then the record's fields and values. 0: another store holds it.
local held = redis.call('HGET', KEYS[1], 'store')
if held and held ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

RENEW: Final = """
-- KEYS[1] a node's hash; ARGV incarnation, time to live (ms), then fields and values. 0: it is gone; -1: another's.
local held = redis.call('HGET', KEYS[1], 'incarnation')
if not held then return 0 end
if held ~= ARGV[1] then return -1 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

LEAVE: Final = """
-- KEYS[1] a node's hash; ARGV incarnation. 1: it was this incarnation's and is removed.
if redis.call('HGET', KEYS[1], 'incarnation') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

BEAT: Final = f"""
-- KEYS[1] the sorted set of nodes by their last heartbeat, in ms by the server's clock; ARGV node.
{_NOW}
return redis.call('ZADD', KEYS[1], now, ARGV[1])
"""

LIST: Final = f"""
-- KEYS[1] the sorted set of nodes; ARGV node. One that has entries stands in it, so that they can be found and reaped.
{_NOW}
return redis.call('ZADD', KEYS[1], 'NX', now, ARGV[1])
"""

NODES: Final = f"""
-- KEYS[1] the sorted set of nodes. Returns the server's time and each node with its last heartbeat, in ms.
{_NOW}
return {{now, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}}
"""

CLAIM: Final = f"""
-- KEYS[1] a user's hash; ARGV session id, incarnation, entry without its end. 0: it was there. A stamp that is, stays.
{_HASH}
local known = redis.call('HGET', KEYS[1], ARGV[1])
local readable, entry = pcall(cjson.decode, known or '')
if readable and entry.incarnation == ARGV[2] then return 0 end
{_NOW}
if readable and entry.stamp then now = string.format('%.0f', entry.stamp) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ',"stamp":' .. now .. '}}')
return 1
"""

REAP: Final = f"""
-- KEYS[1] a user's hash; ARGV session id, entry. 1: the entry stood so, as far as we know its parts, and is removed.
{_HASH}
local known = redis.call('HGET', KEYS[1], ARGV[1])
local readable, entry = pcall(cjson.decode, known or '')
if not readable then return 0 end
for part, value in pairs(cjson.decode(ARGV[2])) do
    if entry[part] ~= value then return 0 end
end
return redis.call('HDEL', KEYS[1], ARGV[1])
"""


def lua(script: str, key: str, *arguments: str | int) -> Command:
    """The command that runs a script."""
    return "EVAL", script, 1, key, *arguments
