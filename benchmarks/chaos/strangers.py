"""Who is there: users of whom a reader could learn from Redis or from `scores`, by partition.

The auditor takes away those whom the log knows; what is left are strangers: a user of nobody's log,
of another partition's, or of another store's. Looked at is everything that names a user and lasts:
`lv:{p}:v:<user>` and `lv:{p}:top`, the states and dates of the store that serves
(`lv:<store>:{p}:s:<user>`, `lv:<store>:{p}:due`), and last documents on `scores`. A partition
that the deployment does not have is looked at as well.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis

Present = dict[int, dict[str, set[str]]]  # partition -> user -> where

# A user's name may hold anything, braces and colons too; a store's may not.
_KEY = re.compile(rb"lv:(?:([a-z0-9-]+):)?\{(\d+)\}:(?:(v|s):(.*)|(top|due))", re.DOTALL)
_PAGE = 1000


def present(
    client: redis.Redis, serving: Mapping[int, str], scores: Mapping[int, Sequence[Any]]
) -> Present:
    """Everybody who is somewhere. serving: the store that serves each partition there is."""
    found: Present = defaultdict(lambda: defaultdict(set))
    for key in client.scan_iter(match="lv:*", count=_PAGE):
        if (parts := _KEY.fullmatch(key)) is None:
            continue
        store, p, single, user, ranking = parts.groups()
        if store and store.decode() != serving.get(int(p), store.decode()):
            continue  # what another store holds, no reader sees
        for one in _members(client, key) if ranking else (user,):
            found[int(p)][_name(one)].add((single or ranking).decode())
    for p, records in scores.items():
        for user, document in {r.key: r.value for r in records}.items():
            if document is not None:
                found[p][_name(user)].add("scores")
    return found


def _members(client: redis.Redis, key: bytes) -> Iterable[bytes]:
    return (user for user, _ in client.zscan_iter(key, count=_PAGE))


def _name(user: bytes) -> str:
    return user.decode(errors="backslashreplace")  # of what no user can be called, too
