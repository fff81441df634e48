"""Records of the log to events in columns: everything that a fold must know of a record.

`decode` is the fast path (msgspec, a few dictionaries, numpy columns); `decode_slow` is its
readable twin through the pydantic contract. The fast path accepts only what the twin accepts,
with the same columns; whatever it finds odd it hands to the twin record by record, so that the
reason of a rejection has one source. Neither raises, whatever the bytes: a bad record is a
`Rejected`, its neighbours are unharmed.

Rules beyond the fields' own (featurestore.events):
- the key must be the user id in UTF-8; a null value with a key erases that user;
- the record must lie in the partition that the partitioner gives (else `misrouted`);
- a topic of one type implies it; another type in it is `invalid_field`;
- of a JSON name given twice the last counts; lone surrogates, NaN and 101 levels are not JSON;
- identity = blake2b-128 of source topic, type and event id. Without an id it is the record's
  position, which no repeat shares, or its bytes where features.derive_ids is set; of a dead letter
  that was sent again, its first position and its bytes, so that it counts once;
- content = 32-bit hash of all that the fold reads of an event: a repeat that differs in a field
  that nobody reads is a duplicate, not a conflict;
- unknown fields are counted exactly in batches of up to 16 records; in larger ones every 16th
  record is looked at and counts 16 times (so counting costs 2 % and not 20).

Shapes: N = events accepted, U = their users. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from featurestore import money, times
from featurestore.columns import NO_ID, STEPS, Erase, EventBatch
from featurestore.events import (
    MAX_DEPTH,
    TYPES,
    action_code,
    addressed,
    category_code,
    word_codes,
)
from featurestore.partitioner import partition as partition_of
from featurestore.partitioner import partitions_of
from featurestore.records import (
    NULL,
    AnyRecord,
    BrowseRecord,
    InteractionRecord,
    PurchaseRecord,
    decoder,
)
from streams import cloudevents
from streams.columns import NO_WORDS, Columns, Decoded, Words, merge
from streams.columns import batch as as_batch
from streams.deadletter import Reason, Rejected, origin
from streams.reading import RawRecord, Reader, Row
from streams.settings import Settings
from streams.valuetable import ONE, Rule

__all__ = ["Codec", "Decoded", "RawRecord", "merge"]

_CACHE = 65_536  # entries of a cache before it starts anew; bounds memory at some 10 MB each
_SAMPLE = 16

# The whole grammar of usual times in dictionaries: "2011-09-10" + "T12:34:" + "56" + ".789Z".
_MINUTES = {f"T{m // 60:02d}:{m % 60:02d}:": m * 60_000 for m in range(24 * 60)}
_SECONDS = {f"{s:02d}": s * 1000 for s in range(60)}
_FRACTIONS = {"Z": 0, "+00:00": 0} | {f".{ms:03d}Z": ms for ms in range(1000)}


class _Odd(Exception):
    """Not for the fast path: the twin decides."""


class Codec:
    """Decodes the records of one deployment's sources."""

    def __init__(self, settings: Settings) -> None:
        kafka = settings.kafka
        self._partitions = kafka.partitions
        self._partitioner = kafka.partitioner
        self._limit = kafka.max_record_bytes
        self._derive_ids = settings.features.derive_ids
        self._social = settings.features.social
        self._interests = settings.features.interests
        self._bare_words: dict[str | None, Words] = {None: NO_WORDS}
        self._reader = Reader(settings)
        self._table = self._reader.table
        self._carry_actions = frozenset(settings.features.carry_actions)
        self._decoders = [decoder(name) for name in self._reader.implied]
        self._rules = [self._table.rule(name) for name in TYPES[:2]]
        self._money_matters = self._rules[1] is not None and self._rules[1].field == "amount"
        # A unit such as "minutes" is no currency that an event could name.
        self._currency = self._table.currency if _is_code(self._table.currency) else ""
        self._days: dict[str, int] = {}
        self._amounts: dict[bytes, int] = {}
        self._categories: dict[str | None, int] = {None: 0}
        self._actions: dict[str, tuple[int, Rule | None, bool]] = {}

    # ---- the fast path -------------------------------------------------------------------

    def decode(self, source: int, partition: int, records: Sequence[RawRecord]) -> Decoded:
        """Decode a run of records of one source partition, in log order."""
        decode = self._decoders[source].decode
        prefixes = self._reader.prefixes[source]
        limit, derive_ids = self._limit, self._derive_ids
        days, amounts, categories = self._days, self._amounts, self._categories
        rule_browse, rule_purchase = self._rules
        currency, plain_money = self._currency, _plain(rule_purchase)
        money_matters = self._money_matters
        users: dict[bytes, int] = {}
        columns, erases, rejected = Columns(), list[tuple[Erase, int]](), list[Rejected]()
        add_user, add_time = columns.user.append, columns.time_ms.append
        add_record, add_value = columns.record_ms.append, columns.value.append
        add_action, add_category = columns.action.append, columns.category.append
        add_kind, add_flags = columns.kind.append, columns.flags.append
        add_offset, add_identity = columns.offset.append, columns.identity.append
        add_event_id, add_target = columns.event_id.append, columns.target.append
        interests, bare_words, add_words = self._interests, self._bare_words, columns.words.append
        no_id = 0

        for record in records:
            key, value = record.key, record.value
            try:
                if value is None or key is None or len(value) > limit:
                    raise _Odd
                if record.headers and (cloudevents.mode(record.headers) or origin(record.headers)):
                    raise _Odd
                if not value.isascii():
                    value.decode()  # msgspec does not look inside strings that it skips
                size = len(value)
                if size > 2 * MAX_DEPTH and value.count(b"{") + value.count(b"[") > MAX_DEPTH:
                    raise _Odd
                event = decode(value)
                if event.user_id.encode() != key:
                    raise _Odd

                said = event.event_time
                if isinstance(said, str):
                    try:
                        time = (
                            days[said[:10]]
                            + _MINUTES[said[10:17]]
                            + _SECONDS[said[17:19]]
                            + _FRACTIONS[said[19:]]
                        )
                    except KeyError:
                        time = self._time(said)
                elif times.EARLIEST_MS <= said <= times.LATEST_MS:
                    time = said
                else:
                    raise _Odd

                action, flags, target, text = 0, 0, None, None
                if type(event) is PurchaseRecord:
                    kind = 1
                    token = bytes(event.amount)
                    worth = amounts.get(token)
                    if worth is None:
                        worth = self._amount(token)
                    code = event.currency
                    if not plain_money or (code is not None and code != currency):
                        worth = self._worth(rule_purchase, worth, code, time, money_matters)
                    if event.items:
                        _check_items(event.items)
                elif type(event) is BrowseRecord:
                    kind, worth, text = 0, 0, event.query
                    if rule_browse is not None:
                        worth = self._table.value(rule_browse, _counted(rule_browse, event))
                else:
                    assert type(event) is InteractionRecord
                    kind, worth, text = 2, 0, event.text
                    action, rule, steps = self._actions.get(event.action) or self._action(
                        event.action
                    )
                    rating = _number(event.rating) if event.rating is not NULL else None
                    if rule is not None:
                        counted = rating if rule.field == "rating" else _counted(rule, event)
                        worth = self._table.value(rule, counted)
                    if steps:
                        flags = STEPS
                    if event.target_user_id is not None:
                        target = addressed(event.target_user_id, event.user_id)
                if worth:
                    flags = STEPS
                if event.properties is not NULL:
                    _check_object(event.properties)

                category = categories.get(event.category)
                if category is None:
                    category = self._category(event.category)
                if interests:
                    known = bare_words.get(event.category) if text is None else None
                    words = known or self._words(event.category, text)
                event_id = event.event_id
                offset = record.offset
                if event_id is not None:
                    named = prefixes[kind] + event_id.encode()
                else:
                    named = self._reader.unnamed(prefixes[kind], partition, offset, value)
                    if not derive_ids:
                        flags |= NO_ID
                        no_id += 1
            except Exception:  # noqa: BLE001 - whatever is odd goes to the twin, which never raises
                # The twin decides, and finds the reason; it costs some 20 µs.
                row = self._reader.record(source, partition, record)
                if isinstance(row, Rejected):
                    rejected.append(row)
                    continue
                assert key is not None
                if row is None:
                    erase = Erase(users.setdefault(key, len(users)), source, record.timestamp)
                    erases.append((erase, record.offset))
                    continue
                time, worth, action, category = row.time_ms, row.value, row.action, row.category
                kind, flags, event_id, offset = row.kind, row.flags, row.event_id, record.offset
                target, words = row.target, row.words
                no_id += bool(flags & NO_ID)
                digest = row.identity
            else:
                digest = blake2b(named, digest_size=16).digest()
            row_of_user = users.get(key)
            if row_of_user is None:
                users[key] = row_of_user = len(users)
            add_user(row_of_user)
            add_time(time)
            add_record(record.timestamp)
            add_value(worth)
            add_action(action)
            add_category(category)
            add_kind(kind)
            add_flags(flags)
            add_offset(offset)
            add_identity(digest)
            add_event_id(event_id)
            add_target(target)
            if interests:
                add_words(words)

        decoded = Decoded(
            as_batch(source, list(users), columns, [erase for erase, _ in erases], self._social),
            rejected,
            self._unknown_fields(source, records),
            no_id,
        )
        return self._reroute(decoded, source, partition, list(users), [at for _, at in erases])

    def _time(self, text: str) -> int:
        """A time that the dictionaries do not hold; remembers its day. TimeError where bad."""
        ms = times.parse(text)
        if len(self._days) >= _CACHE:
            self._days.clear()
        day = text[:10]
        self._days[day] = times.parse(f"{day}T00:00:00Z")
        return ms

    def _amount(self, token: bytes) -> int:
        """Millionths of an amount's JSON token. MoneyError where bad."""
        worth = _number_of(token.decode())
        if len(self._amounts) >= _CACHE:
            self._amounts.clear()
        if len(token) <= 32:
            self._amounts[token] = worth
        return worth

    def _action(self, name: str) -> tuple[int, Rule | None, bool]:
        """Code, rule and whether it steps the carry, remembered."""
        if len(self._actions) >= _CACHE:
            self._actions.clear()
        known = (
            action_code(name),
            self._table.rule("interaction", name),
            name in self._carry_actions,
        )
        self._actions[name] = known
        return known

    def _category(self, name: str | None) -> int:
        if len(self._categories) >= _CACHE:
            self._categories.clear()
            self._categories[None] = 0
        self._categories[name] = code = category_code(name)
        return code

    def _words(self, category: str | None, text: str | None) -> Words:
        """Codes of words; those of a category alone are remembered."""
        made = word_codes(category, text)
        if text is None:
            if len(self._bare_words) >= _CACHE:
                self._bare_words.clear()
            self._bare_words[category] = made
        return made

    def _worth(
        self, rule: Rule | None, amount: int, code: str | None, time_ms: int, matters: bool
    ) -> int:
        """Value of a purchase under a rule or currency that is not plain."""
        if code is not None and not _is_code(code):
            raise _Odd
        if rule is None:
            return 0
        if not matters:
            return self._table.value(rule, money.MICRO if rule.field == "one" else None)
        rate = self._table.rate(code, time_ms) if code is not None else ONE
        return self._table.value(rule, amount, rate)

    def _unknown_fields(self, source: int, records: Sequence[RawRecord]) -> int:
        """Fields that nobody reads, see the module's text."""
        step = 1 if len(records) <= _SAMPLE else _SAMPLE
        return step * sum(
            self._reader.unknown_fields(source, record.value)
            for record in records[::step]
            if record.value is not None and len(record.value) <= self._limit
        )

    def _reroute(
        self,
        decoded: Decoded,
        source: int,
        partition: int,
        keys: Sequence[bytes],
        erased_at: Sequence[int],
    ) -> Decoded:
        """Take out what lies in the wrong partition; asked of every user, so vectorised."""
        where = partitions_of(keys, self._partitions, self._partitioner)
        strays = where != partition
        if not strays.any():
            return decoded
        batch = decoded.batch
        bad = strays[batch.user]
        for at in np.flatnonzero(bad).tolist():
            belongs = int(where[batch.user[at]])
            decoded.rejected.append(self._misrouted(source, int(batch.offset[at]), belongs))
        for erase, at in zip(batch.erases, erased_at, strict=True):
            if strays[erase.user]:
                decoded.rejected.append(self._misrouted(source, at, int(where[erase.user])))
        decoded.rejected.sort(key=lambda one: one.offset)
        decoded.no_id -= int(np.count_nonzero(batch.events["flags"][bad] & NO_ID))
        kept = np.flatnonzero(~bad)
        row = np.cumsum(~strays) - 1  # old row -> new row
        decoded.batch = EventBatch(
            [user for user, stray in zip(batch.users, strays, strict=True) if not stray],
            row[batch.user[kept]].astype(np.int32),
            batch.events[kept],
            batch.offset[kept],
            batch.log_ms[kept],
            [
                Erase(int(row[e.user]), e.source, e.record_ms)
                for e in batch.erases
                if not strays[e.user]
            ],
            [batch.event_id[at] for at in kept.tolist()],
            batch.targets(kept),
        )
        return decoded

    def _misrouted(self, source: int, offset: int, belongs: int) -> Rejected:
        return Rejected(
            source,
            offset,
            Reason.MISROUTED,
            f"{self._partitioner} puts this key into partition {belongs}: "
            "set kafka.partitioner to the producer's",
        )

    # ---- the twin ------------------------------------------------------------------------

    def decode_slow(self, source: int, partition: int, records: Sequence[RawRecord]) -> Decoded:
        """`decode` as one would write it first: the contract's models, one record at a time."""
        users: dict[str, int] = {}
        rows: list[tuple[Row, RawRecord]] = []
        erases: list[Erase] = []
        rejected: list[Rejected] = []
        unknown = 0
        for record in records:
            row = self._reader.record(source, partition, record)
            if not isinstance(row, Rejected):
                key = record.key or b""
                belongs = partition_of(key, self._partitions, self._partitioner)
                if belongs != partition:
                    row = self._misrouted(source, record.offset, belongs)
            match row:
                case Rejected():
                    rejected.append(row)
                case None:
                    user = users.setdefault((record.key or b"").decode(), len(users))
                    erases.append(Erase(user, source, record.timestamp))
                case Row():
                    users.setdefault(row.user_id, len(users))
                    rows.append((row, record))
            if record.value is not None and len(record.value) <= self._limit:
                unknown += self._reader.unknown_fields(source, record.value)
        columns = Columns(
            user=[users[row.user_id] for row, _ in rows],
            time_ms=[row.time_ms for row, _ in rows],
            record_ms=[record.timestamp for _, record in rows],
            value=[row.value for row, _ in rows],
            action=[row.action for row, _ in rows],
            category=[row.category for row, _ in rows],
            kind=[row.kind for row, _ in rows],
            flags=[row.flags for row, _ in rows],
            offset=[record.offset for _, record in rows],
            identity=[row.identity for row, _ in rows],
            event_id=[row.event_id for row, _ in rows],
            target=[row.target for row, _ in rows],
            words=[row.words for row, _ in rows] if self._interests else [],
        )
        names = [user.encode() for user in users]
        batch = as_batch(source, names, columns, erases, self._social)
        no_id = sum(1 for row, _ in rows if row.flags & NO_ID)
        return Decoded(batch, rejected, unknown, no_id)


# ---- shared by both ----------------------------------------------------------------------


def _is_code(text: str) -> bool:
    return len(text) == 3 and text.isascii() and text.isalpha() and text.isupper()


def _plain(rule: Rule | None) -> bool:
    """Whether a purchase's value is its amount."""
    return rule is not None and rule.field == "amount" and rule.exact


def _counted(rule: Rule, event: AnyRecord) -> int | None:
    """The field that a rule counts, in millionths, of a browse or interaction."""
    if rule.field == "one":
        return money.MICRO
    if rule.field not in ("dwell_ms", "duration_ms"):
        return None
    whole: int | None = getattr(event, rule.field, None)
    return whole * money.MICRO if whole is not None else None


def _number_of(token: str) -> int:
    if token.startswith('"'):
        token = token[1:-1]
    return _remembered(token) if len(token) <= 32 else money.micro(token)


_remembered = lru_cache(_CACHE)(money.micro)  # prices and quantities repeat


def _number(raw: msgspec.Raw) -> int | None:
    """Millionths of an optional exact number; MoneyError where it is none."""
    token = bytes(raw).decode()
    return None if token == "null" else _number_of(token)


def _check_items(items: Sequence[Any]) -> None:
    for item in items:
        if item.quantity is not NULL:
            _number(item.quantity)
        if item.price is not NULL:
            _number(item.price)


def _check_object(raw: msgspec.Raw) -> None:
    token = bytes(raw)
    if token[:1] != b"{" and token != b"null":
        raise _Odd
