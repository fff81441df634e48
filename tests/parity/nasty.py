"""One seeded log with everything that a log can do to a fold, for the tests of parity.

Event times are shuffled within the allowed lateness; one record in twenty repeats an earlier
one, some with other content, some long after; money and browses come late; some events have no
id, some are of the future, some are no events at all; users are erased, and records of theirs
with older timestamps come after the erase.

Times are integer milliseconds, UTC. Same arguments, same log.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

from featurestore.partitioner import partition
from streams.delivery import RawRecord, Simple
from streams.settings import KafkaSettings

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
LATENESS_MS = 72 * HOUR_MS  # the settings' default
TYPES = ("browse", "purchase", "interaction")


@dataclass(frozen=True)
class Sent:
    """One record in the order of arrival."""

    type: str  # which of the three topics
    key: bytes
    value: bytes | None
    timestamp: int


@dataclass(frozen=True)
class Quiet:
    """A topic that falls silent after a fifth of the log, and one that never has a record."""

    idle: str = ""
    never: str = ""


def nasty(
    count: int,
    users: int = 60,
    seed: int = 1,
    *,
    quiet: Quiet = Quiet(),
    erases: int = 4,
) -> list[Sent]:
    """About `count` records that span some two weeks."""
    idle, never = quiet.idle, quiet.never
    rng = random.Random(seed)
    pace_ms = 14 * 24 * HOUR_MS / count
    names = [f"user-{n}" if n % 7 else f"Zoë {n}" for n in range(users)]
    erasing = {count * (k + 1) // (erases + 1): names[3 * k + 1] for k in range(erases)}
    log: list[Sent] = []
    now = float(START_MS)
    for n in range(count):
        now += rng.expovariate(1 / pace_ms)
        if n in erasing:
            log += _erase(erasing[n], int(now), rng, n, never)
        type_ = rng.choices(TYPES, (50, 30, 20))[0]
        if type_ == never or (type_ == idle and n > count // 5):
            type_ = next(t for t in TYPES if t not in (never, idle))
        chance = rng.random()
        past = [sent for sent in log[-400:] if sent.type == type_ and sent.value]
        if chance < 0.05 and past:
            log.append(_repeat(rng.choice(past), int(now), rng))
        elif chance < 0.06:
            log.append(Sent(type_, rng.choice(names).encode(), rng.choice(_BROKEN), int(now)))
        else:
            log.append(_event(type_, rng.choice(names), int(now), rng, f"e{n}"))
    return log


_BROKEN = (b"{broken", b"[1]", b'{"user_id":"nobody"}', b"")


def _event(type_: str, user: str, now: int, rng: random.Random, name: str) -> Sent:
    lag_ms = rng.choice((0, 0, rng.random() * 60_000, rng.random() * (LATENESS_MS - HOUR_MS)))
    chance = rng.random()
    if chance < 0.04:  # too late, unless it is money
        lag_ms = LATENESS_MS + rng.random() * 100 * HOUR_MS
    elif chance < 0.05:  # beyond the skew
        lag_ms = -2 * HOUR_MS
    time_ms = now - int(lag_ms)
    if rng.random() < 0.2:
        time_ms -= time_ms % HOUR_MS  # many equal times
    event: dict[str, object] = {"type": type_, "user_id": user, "event_time": time_ms}
    if rng.random() > 0.03:
        event["event_id"] = name
    if rng.random() < 0.5:
        event["category"] = rng.choice(("books", "toys", "garden"))
    if type_ == "purchase":
        event["amount"] = f"{rng.choice((1, 1, 1, 1, -1)) * rng.randrange(100, 9999) / 100:.2f}"
    elif type_ == "interaction":
        event["action"] = rng.choice(("cart_add", "wishlist", "like", "sing"))
        event["target_user_id"] = f"user-{crc32(name.encode()) % 40}"  # now and then oneself
    return Sent(type_, user.encode(), json.dumps(event).encode(), now)


def _repeat(sent: Sent, now: int, rng: random.Random) -> Sent:
    """The same record again; one in five says something else under the same id."""
    assert sent.value is not None
    value = sent.value
    if rng.random() < 0.2 and value.startswith(b'{"type"'):
        event = json.loads(value)
        value = json.dumps(event | {"event_time": event["event_time"] - 1}).encode()
    return replace(sent, value=value, timestamp=now)


def _erase(user: str, now: int, rng: random.Random, n: int, never: str) -> list[Sent]:
    """An erase on every source, and records of the user from before it and after it."""
    types = [t for t in TYPES if t != never]
    older = [
        _event(t, user, now - rng.randrange(1, HOUR_MS), rng, f"old{n}-{k}")
        for k, t in enumerate(types * 2)
    ]
    newer = [_event(t, user, now + 1 + k, rng, f"new{n}-{k}") for k, t in enumerate(types)]
    erases = [Sent(t, user.encode(), None, now) for t in types]
    return [*older[: len(types)], *erases, *older[len(types) :], *newer]


Laid = dict[tuple[int, int], list[RawRecord]]  # (partition, source) -> records in log order


def laid(log: Sequence[Sent], kafka: KafkaSettings) -> Laid:
    """The log as its topics hold it: a record's source, partition and offset."""
    out: Laid = {(p, s): [] for p in range(kafka.partitions) for s in range(len(kafka.sources))}
    for sent in log:
        source = 0 if kafka.mixed else TYPES.index(sent.type)
        p = partition(sent.key, kafka.partitions, kafka.partitioner)
        mine = out[p, source]
        mine.append(Simple(len(mine), sent.key, sent.value, sent.timestamp))
    return out
