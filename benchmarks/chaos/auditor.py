"""The auditor: what is in the log, what should have come of it, and what did.

It knows nothing of the worker. It reads the input topics, `scores`, what was published and the
dead letters (all read-committed), folds the log itself with the slow twins (Codec.decode_slow,
featurestore.twin.Twin), one partition at a time in one piece, and compares with what Redis holds:

- lost, applied twice: events of each user and type, by count; where counts agree and the sums of
  identities do not, one was lost and another applied twice;
- wrong: users of whom anything else exact differs, such as money, gaps and sessions, which depend
  on the order of the log; and ranks and due dates that their documents do not explain (listed.py);
- outputs missing: users whose last document on `scores` is not Redis's byte by byte, or whose
  document tells another history than the twin, and holes in the revisions: a document names the
  revision before it, and that one must have been sent unless a later document of the same
  transaction has replaced it; where it names none there must have been none, but for the erased
  and for what a roll-back has undone;
- outputs twice: a (user, revision) seen twice; backwards: a revision below an earlier one;
- strangers: users who are held or sent in a partition whose log does not know them (strangers.py);
- dead letters missing, doubled, or wrong in reason or raw bytes.

A user who was erased and did nothing since must have a null as the last word on `scores`, and in
Redis a state that holds the marker and no event, no document, no rank and no date; of one who came
back only what is later than the erasure counts, and no document names one from before it as
`previous`. A record that an erasure covers may be a dead letter, if its batch ended before the
erasure was read, but under no other reason than it had then.

Values themselves are not computed here: `livevalue verify` replays the log and compares them.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from benchmarks.chaos import strangers
from benchmarks.chaos.found import Audit
from benchmarks.chaos.listed import Listed
from benchmarks.chaos.sent import Sent, boundaries
from benchmarks.chaos.wanted import Letter, Place, Wanted, fold
from featurestore import times
from featurestore.columns import NO_TIME
from featurestore.state import States
from featurestore.update import Side
from streams import broker, compaction, topics
from streams.row import split
from streams.settings import KafkaSettings, Settings

_READ_S = 60.0
_PAGE = 500
_CONNECT = "__connect.errors."
_MICRO = 1_000_000


class Unauditable(Exception):
    """The log does not tell what should have come of it."""


def audit(
    settings: Settings,
    client: redis.Redis,
    undone_to: Sequence[Mapping[int, int]] | None = None,
) -> Audit:
    """Compare what is in the log with what is in Redis and on the output topics.

    undone_to: of each roll-back of Redis, by partition, a commit that was not undone; None: nobody
    knows what was undone or wiped, and a document that names none before it is believed.

    Raises Unauditable where a source is compacted: what it no longer holds would pass for faults.
    """
    if said := compaction.warning(topics.compacted(settings)):
        raise Unauditable(said)
    kafka, found = settings.kafka, Audit()
    logs = [_by_partition(read(kafka, topic)) for topic in kafka.sources]
    scores = _by_partition(read(kafka, kafka.scores))
    published = _by_partition(read(kafka, kafka.published))
    due, may = dict[Place, Letter](), dict[Place, Letter]()
    serving = {p: _serving(settings, client, p) for p in range(kafka.partitions)}
    present = strangers.present(client, serving, scores)
    for p, store in serving.items():
        wanted = fold(settings, p, [log.get(p, ()) for log in logs], due, may, found)
        sent = Sent(scores.get(p, ()), found)
        sent.look_for_holes(boundaries(published.get(p, ())))
        if undone_to is not None:
            never = [user for user, want in wanted.items() if want.erased_ms is None]
            sent.look_for_beginnings(never, [seqs.get(p, 0) for seqs in undone_to])
        held = _held(client, store, p, list(wanted))
        for user, want in wanted.items():
            _compare_state(user, want, held[user], found)
            if want.side.events:
                _compare_output(user, want.side, held[user].document, sent.last.get(user), found)
                listed, share = held[user].listed, settings.model.republish_share
                for what in listed.amiss(held[user].document, share):
                    found.users_wrong += 1
                    found.show(what, user, listed)
            else:
                _compare_forgotten(user, held[user], sent, found)
        for user in wanted:
            present[p].pop(user, None)
    for p, users in present.items():
        for user, where in users.items():
            found.strangers += 1
            found.show("stranger", user, p, " ".join(sorted(where)))
    _compare_letters(due, may, read(kafka, kafka.dlq), found)
    return found


def read(kafka: KafkaSettings, topic: str) -> list[Any]:
    """All committed records of a topic, partition by partition, in order."""
    consumer = KafkaConsumer(
        **broker.connection(kafka),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
    )
    try:
        tps = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(tps)
        ends = consumer.end_offsets(tps)
        records: list[Any] = []
        until = time.monotonic() + _READ_S
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            if time.monotonic() > until:
                raise TimeoutError(f"nothing came of {topic} for {_READ_S:g} s before its end")
            for batch in consumer.poll(timeout_ms=500).values():
                records += batch
                until = time.monotonic() + _READ_S  # slow is not stuck
        return sorted(records, key=lambda r: (r.partition, r.offset))
    finally:
        consumer.close()


def _by_partition(records: Sequence[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for record in records:
        found[record.partition].append(record)
    return dict(found)


# ---- what is


@dataclass(frozen=True, slots=True)
class _Held:
    """What Redis says of a user."""

    head: Any
    erased_ms: int
    document: bytes | None
    listed: Listed


def _held(client: redis.Redis, store: str, p: int, users: list[str]) -> dict[str, _Held]:
    """What Redis holds of these users, in the store that serves."""
    found: dict[str, _Held] = {}
    for first in range(0, len(users), _PAGE):
        page = users[first : first + _PAGE]
        rows = cast(list[Any], client.mget([f"lv:{store}:{{{p}}}:s:{user}" for user in page]))
        documents = cast(list[Any], client.mget([f"lv:{{{p}}}:v:{user}" for user in page]))
        ranks = cast(list[Any], client.zmscore(f"lv:{{{p}}}:top", page))
        dates = cast(list[Any], client.zmscore(f"lv:{store}:{{{p}}}:due", page))
        states = States.decode(page, [split(row)[0] if row else None for row in rows])
        for i, user in enumerate(page):
            erased_ms = int(states.erased_ms[i])
            found[user] = _Held(states.head[i], erased_ms, documents[i], Listed(ranks[i], dates[i]))
    return found


def _serving(settings: Settings, client: redis.Redis, p: int) -> str:
    """Name of the store that serves a partition."""
    active = cast("bytes | None", client.get(f"lv:{{{p}}}:active"))
    return active.decode() if active else settings.store.name


# ---- the two compared


_TYPED = ("browses", "purchases", "interactions")


def _compare_state(user: str, want: Wanted, held: _Held, found: Audit) -> None:
    side, head = want.side, held.head
    counts = [int(n) for n in head["counts"]]
    lost = sum(max(0, w - h) for w, h in zip(side.counts, counts, strict=True))
    twice = sum(max(0, h - w) for w, h in zip(side.counts, counts, strict=True))
    identity = (int(head["id_hi"]), int(head["id_lo"]))
    if not (lost or twice) and identity != (side.id_hi, side.id_lo):
        lost = twice = 1
    found.lost += lost
    found.applied_twice += twice
    if lost or twice:
        found.show("counts", user, side.counts, counts, identity, (side.id_hi, side.id_lo))
        return
    marker = ("erased_ms", _time(want.erased_ms), held.erased_ms)
    differs = {
        name: (wanted, have)
        for name, wanted, have in (marker, *_fields(side, head))
        if wanted != have
    }
    if differs:
        found.users_wrong += 1
        found.show("state", user, differs)


def _fields(side: Side, head: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, wanted, have) of what is exact beside counts and identities."""
    for name in (
        *("orders", "refunds", "gross_micro", "refunded_micro", "late"),
        *("order_gap_ms", "event_gap_ms", "sessions", "session_events"),
    ):
        yield name, getattr(side, name), int(head[name])
    for name in (
        *("first_ms", "last_ms", "first_order_ms", "last_order_ms", "last_refund_ms"),
        *("session_ms", "first_record_ms"),
    ):
        yield name, _time(getattr(side, name)), int(head[name])
    wanted = [_time(at) for at in side.last_type_ms]
    yield "last_type_ms", wanted, [int(at) for at in head["last_type_ms"]]


def _time(ms: int | None) -> int:
    return NO_TIME if ms is None else ms


def _compare_output(
    user: str, side: Side, held: bytes | None, sent: bytes | None, found: Audit
) -> None:
    if held is None or sent != held:
        found.outputs_missing += 1
        found.show("document", user, held, sent)
        return
    said = json.loads(held)["history"]
    differs = {
        name: (wanted, said[name])
        for name, wanted in _history(side).items()
        if wanted != _exact(said[name])
    }
    if differs:
        found.outputs_missing += 1
        found.show("history", user, differs)


def _compare_forgotten(user: str, held: _Held, sent: Sent, found: Audit) -> None:
    """Erased, and nothing since."""
    if held.document is not None or held.listed != Listed():
        found.users_wrong += 1
        found.show("not forgotten", user, held.document, held.listed)
    if user not in sent.last or sent.last[user] is not None:
        found.outputs_missing += 1
        found.show("no tombstone", user, sent.last.get(user))


def _history(side: Side) -> dict[str, int | None]:
    """What a document must say of the past: millionths, milliseconds, counts."""
    return {
        "orders": side.orders * _MICRO,
        "refunds": side.refunds * _MICRO,
        "spent": side.gross_micro - side.refunded_micro,
        "spent_gross": side.gross_micro,
        "refunded": side.refunded_micro,
        "first_event_at": side.first_ms,
        "last_event_at": side.last_ms,
        "last_order_at": side.last_order_ms,
    }


def _exact(said: Any) -> int | None:
    if said is None:
        return None
    return times.parse(said) if isinstance(said, str) else round(said * _MICRO)


def _compare_letters(
    due: Mapping[Place, Letter],
    may: Mapping[Place, Letter],
    records: Sequence[Any],
    found: Audit,
) -> None:
    found.letters = len(due)
    came: Counter[Place] = Counter()
    for letter in records:
        headers = {name: value.decode() for name, value in letter.headers}
        place = (
            headers[f"{_CONNECT}topic"],
            int(headers[f"{_CONNECT}partition"]),
            int(headers[f"{_CONNECT}offset"]),
        )
        came[place] += 1
        reason = headers[f"{_CONNECT}exception.class.name"].removeprefix("livevalue.")
        if (right := due.get(place) or may.get(place)) is None:
            found.letters_wrong += 1
            found.show("letter not due", place, reason)
            continue
        wanted, record = right
        whole = headers["livevalue.raw"] == "whole"
        same = (letter.key, letter.value) == (record.key, record.value)
        if reason != wanted or not (whole and same):
            found.letters_wrong += 1
            found.show("letter", place, wanted, reason, headers["livevalue.raw"])
    for place in due.keys() - came.keys():
        found.letters_missing += 1
        found.show("letter missing", place, due[place][0])
    found.letters_twice = sum(n - 1 for n in came.values())
    for place, n in came.items():
        if n > 1:
            found.show("letter twice", place, n)
